//! The API server as source: what is watched, and what is queues.
//!
//! ```text
//! connect ─> watch (list, then changes; one for each resource) ─> reflector ─> Cluster
//!         ─> others (CRDs of other policy APIs) ─> watch
//!         ─> lookup (whose address, with --peers=lookup) ─────────────> Cluster
//! ```

mod connect;
mod error;
mod items;
pub mod lookup;
mod once;
mod others;
mod reflector;
pub mod review;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use kube::api::ListParams;
use tokio::sync::Notify;
use tokio::task::JoinSet;

pub(super) use connect::chain;
pub use connect::{Access, AccessError};
use connect::{Connection, Current};
pub use error::{ApiError, ApiErrorKind};
use items::{Item, Named};
pub use lookup::Lookups;
pub use once::load;
use reflector::{Lists, Reflector};
use watch::{Collection, Pause};

use super::change::Kind;
use super::source::{Cluster, SourceStatus};
use crate::model::Str;

/// The client repeats at each layer what its caller gets as an error, and tells in words of its own.
pub const LOG_OF_CLIENT: &str = "kube_client";
/// Up to so many pods `--peers=auto` watches them all: below, watching costs the API server less than asking.
pub const WATCHED_PODS: u64 = 5_000;
/// Other nodes are listed this often when only this node is watched.
const NODES: Duration = Duration::from_secs(3600);

/// Whether pods of other nodes are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Peers {
    /// By the number of pods in the cluster.
    #[default]
    Auto,
    /// All of them.
    Watch,
    /// Only this node's; others are looked up when they first appear in a drop.
    Lookup,
}

/// How the API server is to be followed.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub access: Access,
    pub peers: Peers,
    /// This node's name in the cluster.
    pub node: Option<String>,
}

/// Keeps `cluster` current until dropped.
pub async fn follow(cluster: Cluster, options: Options, lookups: Lookups, queues: lookup::LookupQueues) {
    let connection = Connection::new(options.access.clone());
    let reflector = |name, kind: Kind, lists| Reflector::new(cluster.clone(), name, kind.into(), lists);
    let resource = Collection::of;
    let (policies, namespaces) = (
        reflector("networkpolicies", Kind::Policy, Lists::Whole),
        reflector("namespaces", Kind::Namespace, Lists::Whole),
    );
    let (services, slices) = (
        reflector("services", Kind::Service, Lists::Whole),
        reflector("endpointslices", Kind::EndpointSlice, Lists::Whole),
    );
    let (pods, nodes) = (reflector("pods", Kind::Pod, Lists::Parts), reflector("nodes", Kind::Node, Lists::Whole));

    let mut watches = JoinSet::new();
    let here = || connection.clone();
    watches.spawn(watch::run::<items::NetworkPolicy>(
        here(),
        resource("networking.k8s.io", "v1", "networkpolicies"),
        policies,
        false,
    ));
    watches.spawn(watch::run::<items::Namespace>(here(), resource("", "v1", "namespaces"), namespaces, false));
    watches.spawn(watch::run::<items::Service>(here(), resource("", "v1", "services"), services, false));
    watches.spawn(watch::run::<items::EndpointSlice>(
        here(),
        resource("discovery.k8s.io", "v1", "endpointslices"),
        slices,
        false,
    ));
    watches.spawn(others::run(here(), cluster.clone()));
    watches.spawn(peers(here(), cluster.clone(), options, pods, nodes, lookups, queues));
    while let Some(ended) = watches.join_next().await {
        // None ends by itself: a bug, which must not pass for a cluster where nothing changes.
        if let Err(error) = ended {
            tracing::error!(%error, "a watch of the API server ended");
            let broken = SourceStatus::expected("API server");
            cluster.set_source(SourceStatus { error: Some(error.to_string()), ..broken });
        }
    }
}

/// Pods and nodes: all of them, or this node's.
async fn peers(
    connection: Connection,
    cluster: Cluster,
    options: Options,
    mut pods: Reflector,
    mut nodes: Reflector,
    lookups: Lookups,
    queues: lookup::LookupQueues,
) {
    let pod_resource = Collection { verbs: &["get", "list", "watch"], ..Collection::of("", "v1", "pods") };
    let node_resource = Collection::of("", "v1", "nodes");
    for reflector in [&mut pods, &mut nodes] {
        let lookups = lookups.clone();
        reflector.on_first(move || lookups.heard());
    }
    let (mode, why) = choose(&connection, &options, &pod_resource, [&mut pods, &mut nodes]).await;
    let Mode::Lookup(node) = mode else {
        tracing::info!("all pods are watched: {why}");
        pods.describe(format!("all pods are watched: {why}"));
        let pods = watch::run::<items::Pod>(connection.clone(), pod_resource, pods, false);
        let nodes = watch::run::<items::Node>(connection, node_resource, nodes, false);
        futures::join!(pods, nodes);
        return;
    };
    tracing::info!("pods of node {node} are watched, others looked up: {why}");
    pods.describe(format!("pods of node {node} are watched, others looked up: {why}"));
    pods.only_on(node.clone());
    let own_node = Reflector::new(cluster.clone(), "own node", Kind::Node.into(), Lists::Additions);
    nodes.describe("listed each hour, and when an address can't be found".to_owned());
    let local = Collection { fields: Some(format!("spec.nodeName={node}")), ..pod_resource };
    let own = Collection { fields: Some(format!("metadata.name={node}")), ..node_resource.clone() };
    let again = Arc::new(Notify::new());
    let pods = watch::run::<items::Pod>(connection.clone(), local, pods, false);
    let own_node = watch::run::<items::Node>(connection.clone(), own, own_node, false);
    let nodes = list_nodes(connection.clone(), node_resource, nodes, again.clone());
    let lookups = lookup::run(connection, cluster, lookups, queues, again);
    futures::join!(pods, own_node, nodes, lookups);
}

enum Mode {
    Watch,
    Lookup(Str),
}

/// Which, and why. Asks until there is an answer: a server that is away may be a large cluster's.
async fn choose(
    connection: &Connection,
    options: &Options,
    pods: &Collection,
    mut reflectors: [&mut Reflector; 2],
) -> (Mode, String) {
    match (options.peers, options.node.as_deref()) {
        (Peers::Watch, _) => (Mode::Watch, "--peers=watch".to_owned()),
        (Peers::Lookup, Some(node)) => (Mode::Lookup(node.into()), "--peers=lookup".to_owned()),
        (_, None) => (Mode::Watch, "this node's name is not known (--node-name)".to_owned()),
        (Peers::Auto, Some(node)) => {
            let mut pause = Pause::default();
            loop {
                let count = match connection.current().await {
                    Ok(current) => count(&current, pods).await,
                    Err(error) => Err(error.into()),
                };
                match count {
                    Ok(count) if count <= WATCHED_PODS => return (Mode::Watch, format!("{count} in the cluster")),
                    Ok(count) => return (Mode::Lookup(node.into()), format!("{count} in the cluster")),
                    // Whoever grants the right later may do so in a large cluster.
                    Err(error) if error.kind == ApiErrorKind::Forbidden => {
                        return (Mode::Lookup(node.into()), "they can't be counted".to_owned());
                    }
                    Err(error) => reflectors.iter_mut().for_each(|reflector| reflector.failed(&error)),
                }
                pause.wait().await;
            }
        }
    }
}

/// How many there are, without reading them.
async fn count(current: &Current, resource: &Collection) -> Result<u64, ApiError> {
    let names = Collection { metadata_only: true, ..resource.clone() };
    let params = ListParams { limit: Some(1), ..ListParams::default() };
    let page = names.page::<Item<Named>>(&current.client, &params).await?;
    let more = page.metadata.remaining_item_count.and_then(|count| u64::try_from(count).ok());
    Ok(page.items.len() as u64 + more.unwrap_or(0))
}

/// Lists all nodes now, each hour, and when told to.
async fn list_nodes(connection: Connection, resource: Collection, mut reflector: Reflector, again: Arc<Notify>) {
    let mut pause = Pause::default();
    loop {
        let listed = match connection.current().await {
            Ok(current) => watch::list::<items::Node>(&current, &resource, &mut reflector).await.map(drop),
            Err(error) => Err(error.into()),
        };
        match listed {
            Ok(()) => {
                pause = Pause::default();
                let _ = tokio::time::timeout(NODES, again.notified()).await;
            }
            Err(error) => {
                reflector.failed(&error);
                pause.wait().await;
            }
        }
    }
}
