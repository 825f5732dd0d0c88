//! The API server as source: watches, and look-ups of single addresses.
//!
//! ```text
//! connect ─> watch (list, then changes; one for each kind) ─> reflector ─> Cluster
//!         ─> discovery (CRDs of policy APIs) ─> watch
//!         ─> lookup (the pod of an address, with --peers=lookup) ─────────> Cluster
//! ```

mod connect;
mod discovery;
mod error;
pub mod lookup;
mod reflector;
pub mod review;
mod snapshot;
pub(in crate::cluster) mod watch;

use std::sync::Arc;
use std::time::Duration;

use kube::api::ListParams;
use tokio::sync::Notify;
use tokio::task::JoinSet;

pub(in crate::cluster) use connect::ApiConnection;
use connect::Current;
pub(super) use connect::chain;
pub use connect::{Access, AccessError};
pub use error::{ApiError, ApiErrorKind};
pub use lookup::Lookups;
use reflector::ListMode;
pub(in crate::cluster) use reflector::Reflector;
pub use snapshot::load;
pub(in crate::cluster) use snapshot::{Need, Snapshot};
use watch::BACKOFF;
pub(in crate::cluster) use watch::Collection;

use super::decode::wire::WireObject;
use super::kinds::{KINDS, Kind, node, pod};
use super::resource::{KindInfo, Watched};
use super::source::{Cluster, SourceStatus};
use crate::model::Str;
use crate::model::cluster::{Node, OtherPolicy, Pod};

/// Target of the client's log events, which `telemetry` filters out: each repeats an error that its caller gets.
pub const LOG_OF_CLIENT: &str = "kube_client";
/// `--peers=auto` watches all pods of clusters up to this size: a watch then costs the API server less than look-ups.
pub const WATCHED_PODS: u64 = 5_000;
/// Interval of the list of all nodes when only this node is watched.
const NODES: Duration = Duration::from_secs(3600);

/// How the agent learns of pods on other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum PeerDiscovery {
    /// By a watch or look-ups, depending on the number of pods in the cluster.
    #[default]
    Auto,
    /// By a watch of all pods.
    Watch,
    /// By a look-up when they first appear in a drop.
    Lookup,
}

/// ApiOptions of the API server as source.
#[derive(Debug, Clone, Default)]
pub struct ApiOptions {
    pub access: Access,
    pub peers: PeerDiscovery,
    /// This node's name in the cluster.
    pub node: Option<String>,
}

/// Keeps `cluster` current until dropped.
pub async fn follow(cluster: Cluster, options: ApiOptions, lookups: Lookups, queues: lookup::LookupQueues) {
    let connection = ApiConnection::new(options.access.clone());
    let reflector = |info: &KindInfo, kind: Kind, mode| Reflector::new(cluster.clone(), info.plural, kind.into(), mode);
    let pods = reflector(&pod::INFO, Kind::Pod, ListMode::Parts);
    let nodes = reflector(&node::INFO, Kind::Node, ListMode::Whole);

    let mut watches = JoinSet::new();
    for entry in KINDS.iter().filter(|entry| entry.info.watched == Watched::Always) {
        let reflector = reflector(entry.info, entry.kind.clone(), ListMode::Whole);
        watches.spawn(entry.resource.watch(connection.clone(), Collection::of(entry.info), reflector, false));
    }
    watches.spawn(discovery::run(connection.clone(), cluster.clone()));
    watches.spawn(peers(connection, cluster.clone(), options, pods, nodes, lookups, queues));
    while let Some(ended) = watches.join_next().await {
        // A watch that ends has a bug. Without an error the cluster would seem to be without changes.
        if let Err(error) = ended {
            tracing::error!(%error, "a watch of the API server ended");
            let broken = SourceStatus::expected("API server");
            cluster.set_source(SourceStatus { error: Some(error.to_string()), ..broken });
        }
    }
}

/// Pods and nodes: all of them, or this node's.
async fn peers(
    connection: ApiConnection,
    cluster: Cluster,
    options: ApiOptions,
    mut pods: Reflector,
    mut nodes: Reflector,
    lookups: Lookups,
    queues: lookup::LookupQueues,
) {
    let pod_collection = Collection::of(&pod::INFO);
    let node_collection = Collection::of(&node::INFO);
    for reflector in [&mut pods, &mut nodes] {
        let lookups = lookups.clone();
        reflector.on_first(move || lookups.list_completed());
    }
    let (mode, why) = choose(&connection, &options, &pod_collection, [&mut pods, &mut nodes]).await;
    let Mode::Lookup(node) = mode else {
        tracing::info!("all pods are watched: {why}");
        pods.describe(format!("all pods are watched: {why}"));
        let pods = watch::run::<Pod>(connection.clone(), pod_collection, pods, false);
        let nodes = watch::run::<Node>(connection, node_collection, nodes, false);
        futures::join!(pods, nodes);
        return;
    };
    tracing::info!("pods of node {node} are watched, others looked up: {why}");
    pods.describe(format!("pods of node {node} are watched, others looked up: {why}"));
    pods.only_on(node.clone());
    let own_node = Reflector::new(cluster.clone(), "own node", Kind::Node.into(), ListMode::Additions);
    nodes.describe("listed each hour, and when a look-up finds no pod".to_owned());
    let local = Collection { fields: Some(format!("spec.nodeName={node}")), ..pod_collection };
    let own = Collection { fields: Some(format!("metadata.name={node}")), ..node_collection.clone() };
    let again = Arc::new(Notify::new());
    let pods = watch::run::<Pod>(connection.clone(), local, pods, false);
    let own_node = watch::run::<Node>(connection.clone(), own, own_node, false);
    let nodes = list_nodes(connection.clone(), node_collection, nodes, again.clone());
    let lookups = lookup::run(connection, cluster, lookups, queues, again);
    futures::join!(pods, own_node, nodes, lookups);
}

enum Mode {
    Watch,
    Lookup(Str),
}

/// The mode, and the reason for it. Retries until the API server answers: a server that does not may be that of a large
/// cluster.
async fn choose(
    connection: &ApiConnection,
    options: &ApiOptions,
    pods: &Collection,
    mut reflectors: [&mut Reflector; 2],
) -> (Mode, String) {
    match (options.peers, options.node.as_deref()) {
        (PeerDiscovery::Watch, _) => (Mode::Watch, "--peers=watch".to_owned()),
        (PeerDiscovery::Lookup, Some(node)) => (Mode::Lookup(node.into()), "--peers=lookup".to_owned()),
        (_, None) => (Mode::Watch, "this node's name is not known (--node-name)".to_owned()),
        (PeerDiscovery::Auto, Some(node)) => {
            let mut backoff = BACKOFF;
            loop {
                let count = match connection.current().await {
                    Ok(current) => count(&current, pods).await,
                    Err(error) => Err(error.into()),
                };
                match count {
                    Ok(count) if count <= WATCHED_PODS => return (Mode::Watch, format!("{count} in the cluster")),
                    Ok(count) => return (Mode::Lookup(node.into()), format!("{count} in the cluster")),
                    // An administrator may grant the right later, in a large cluster.
                    Err(error) if error.kind == ApiErrorKind::Forbidden => {
                        return (Mode::Lookup(node.into()), "the account may not count them".to_owned());
                    }
                    Err(error) => reflectors.iter_mut().for_each(|reflector| reflector.failed(&error)),
                }
                backoff.wait().await;
            }
        }
    }
}

/// Counts the objects without reading them.
async fn count(current: &Current, resource: &Collection) -> Result<u64, ApiError> {
    let names = Collection { metadata_only: true, ..resource.clone() };
    let params = ListParams { limit: Some(1), ..ListParams::default() };
    let page = names.page::<WireObject<OtherPolicy>>(&current.client, &params).await?;
    let more = page.metadata.remaining_item_count.and_then(|count| u64::try_from(count).ok());
    Ok(page.items.len() as u64 + more.unwrap_or(0))
}

/// Lists all nodes now, each hour, and when `again` is notified.
async fn list_nodes(connection: ApiConnection, resource: Collection, mut reflector: Reflector, again: Arc<Notify>) {
    let mut backoff = BACKOFF;
    loop {
        let listed = match connection.current().await {
            Ok(current) => watch::list::<Node>(&current, &resource, &mut reflector).await.map(drop),
            Err(error) => Err(error.into()),
        };
        match listed {
            Ok(()) => {
                backoff = BACKOFF;
                let _ = tokio::time::timeout(NODES, again.notified()).await;
            }
            Err(error) => {
                reflector.failed(&error);
                backoff.wait().await;
            }
        }
    }
}
