//! Policy APIs that a cluster need not have: found by their CRDs, and watched while the API server serves them.
//!
//! Of the policies that are not evaluated only the names are read: their presence alone makes a verdict on NetworkPolicy less
//! than final.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::Client;
use tokio::task::JoinSet;

use super::super::kinds::{KINDS, Kind, OTHER_POLICIES};
use super::super::resource::Watched;
use super::super::source::Cluster;
use super::connect::ApiConnection;
use super::error::{ApiError, ApiRequest};
use super::reflector::{ListMode, Reflector};
use super::watch::{BACKOFF, Collection};

/// CRDs come and go with an installation, not by the minute.
const INTERVAL: Duration = Duration::from_secs(300);
const SOURCE: &str = "other policy APIs";

/// Discovers and watches until dropped.
pub(super) async fn run(connection: ApiConnection, cluster: Cluster) {
    let unknown = Kind::OtherPolicy { group: "".into(), kind: "".into() };
    let mut reflector = Reflector::new(cluster.clone(), SOURCE, unknown.into(), ListMode::Additions);
    let mut backoff = BACKOFF;
    let mut watches: JoinSet<DiscoveredKind> = JoinSet::new();
    let mut watched: BTreeSet<DiscoveredKind> = BTreeSet::new();
    loop {
        // A watch ends when the CRD is gone.
        while let Some(Ok(gone)) = watches.try_join_next() {
            watched.remove(&gone);
        }
        let discovered = match connection.current().await {
            Ok(current) => discover(&current.client).await,
            Err(error) => Err(error.into()),
        };
        match discovered {
            Ok(discovered) => {
                reflector.begin();
                reflector.complete();
                backoff = BACKOFF;
                for kind in discovered {
                    if watched.insert(kind.clone()) {
                        watches.spawn(watch(connection.clone(), cluster.clone(), kind));
                    }
                }
                tokio::time::sleep(INTERVAL).await;
            }
            Err(error) => {
                reflector.failed(&error);
                backoff.wait().await;
            }
        }
    }
}

/// A kind that the API server has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DiscoveredKind {
    pub kind: Kind,
    pub collection: Collection,
}

async fn watch(connection: ApiConnection, cluster: Cluster, discovered: DiscoveredKind) -> DiscoveredKind {
    let DiscoveredKind { kind, collection } = &discovered;
    let name = format!("{}.{}", collection.plural, collection.group);
    let reflector = Reflector::new(cluster, &name, kind.clone().into(), ListMode::Whole);
    kind.resource().watch(connection, collection.clone(), reflector, true).await;
    discovered
}

/// A kind that the API server may have.
struct OptionalKind {
    kind: Kind,
    group: &'static str,
    /// `None`: any version will do, as only metadata is read.
    version: Option<&'static str>,
    plural: &'static str,
}

fn optional_kinds() -> Vec<OptionalKind> {
    let evaluated = KINDS.iter().filter(|entry| entry.info.watched == Watched::WhereServed).map(|entry| {
        let (group, version) = entry.info.group_version();
        OptionalKind { kind: entry.kind.clone(), group, version: Some(version), plural: entry.info.plural }
    });
    let others = OTHER_POLICIES.iter().map(|(group, kind, plural)| {
        let kind = Kind::OtherPolicy { group: (*group).into(), kind: (*kind).into() };
        OptionalKind { kind, group, version: None, plural }
    });
    evaluated.chain(others).collect()
}

/// The optional_kinds that the API server has.
pub(super) async fn discover(client: &Client) -> Result<Vec<DiscoveredKind>, ApiError> {
    let request = ApiRequest { verb: "discover", group: "", resource: "API groups", verbs: &["get"] };
    let api_error = |error: kube::Error| ApiError::of(&error, request);
    let optional_kinds = optional_kinds();
    let groups = client.list_api_groups().await.map_err(api_error)?.groups;
    let has = |name: &str| groups.iter().any(|group| group.name == name);
    let mut discovered: Vec<DiscoveredKind> = Vec::new();
    for group in &groups {
        let optional_kinds: Vec<&OptionalKind> =
            optional_kinds.iter().filter(|kind| kind.group == group.name).collect();
        // Calico's own API server shows what its CRDs hold under a second name.
        let duplicate = group.name == "crd.projectcalico.org" && has("projectcalico.org");
        if optional_kinds.is_empty() || duplicate {
            continue;
        }
        for version in &group.versions {
            let resources = match client.list_api_group_resources(&version.group_version).await {
                Ok(resources) => resources.resources,
                // A group without its server, or a group that went between the two requests.
                Err(kube::Error::Api(status)) if status.code != 401 => {
                    tracing::debug!("{}: {}", version.group_version, status.message);
                    continue;
                }
                Err(error) => return Err(api_error(error)),
            };
            for OptionalKind { kind, version: wanted, plural, .. } in &optional_kinds {
                let is_served = resources.iter().any(|resource| resource.name == *plural);
                let is_wanted = wanted.is_none_or(|wanted| wanted == version.version);
                if is_served && is_wanted && !discovered.iter().any(|known| known.kind == *kind) {
                    let collection = Collection {
                        metadata_only: kind.info().is_none(),
                        ..Collection::new(&group.name, &version.version, plural)
                    };
                    discovered.push(DiscoveredKind { kind: kind.clone(), collection });
                }
            }
        }
    }
    Ok(discovered)
}
