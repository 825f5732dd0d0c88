//! Policies of other APIs: watched by name where the server has their CRDs, since their presence alone makes a verdict on
//! NetworkPolicy less than final.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::Client;
use tokio::task::JoinSet;

use super::super::change::Kind;
use super::super::decode::OTHER_POLICIES;
use super::super::source::Cluster;
use super::connect::Connection;
use super::error::{ApiError, ApiRequest};
use super::items::Named;
use super::reflector::{Lists, Reflector};
use super::watch::{self, Collection, Pause};

/// CRDs come and go with an installation, not by the minute.
const LOOK: Duration = Duration::from_secs(300);
const SOURCE: &str = "other policy APIs";

/// Runs for ever.
pub(super) async fn run(connection: Connection, cluster: Cluster) {
    let mut reflector = Reflector::new(
        cluster.clone(),
        SOURCE,
        Kind::OtherPolicy { group: "".into(), kind: "".into() }.into(),
        Lists::Additions,
    );
    let mut pause = Pause::default();
    let mut watches: JoinSet<DiscoveredKind> = JoinSet::new();
    let mut watched: BTreeSet<DiscoveredKind> = BTreeSet::new();
    loop {
        // Those whose CRD went have ended.
        while let Some(Ok(gone)) = watches.try_join_next() {
            watched.remove(&gone);
        }
        let found = match connection.current().await {
            Ok(current) => find(&current.client).await,
            Err(error) => Err(error.into()),
        };
        match found {
            Ok(found) => {
                reflector.begin();
                reflector.complete();
                pause = Pause::default();
                for kind in found.into_iter().filter(|kind| !watched.contains(kind)).collect::<Vec<_>>() {
                    watched.insert(kind.clone());
                    watches.spawn(one(connection.clone(), cluster.clone(), kind));
                }
                tokio::time::sleep(LOOK).await;
            }
            Err(error) => {
                reflector.failed(&error);
                pause.wait().await;
            }
        }
    }
}

/// Group, version, kind, plural.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DiscoveredKind {
    group: String,
    version: String,
    kind: String,
    plural: String,
}

impl DiscoveredKind {
    pub fn resource(&self) -> Collection {
        Collection { metadata_only: true, ..Collection::of(&self.group, &self.version, &self.plural) }
    }

    pub fn kind(&self) -> Kind {
        Kind::OtherPolicy { group: self.group.as_str().into(), kind: self.kind.as_str().into() }
    }
}

async fn one(connection: Connection, cluster: Cluster, found: DiscoveredKind) -> DiscoveredKind {
    let name = format!("{}.{}", found.plural, found.group);
    let reflector = Reflector::new(cluster, &name, found.kind().into(), Lists::Whole);
    watch::run::<Named>(connection, found.resource(), reflector, true).await;
    found
}

/// Which of the known kinds the server has.
pub(super) async fn find(client: &Client) -> Result<Vec<DiscoveredKind>, ApiError> {
    let asked = ApiRequest { verb: "discover", group: "", resource: "API groups", verbs: &["get"] };
    let api_error = |error: kube::Error| ApiError::of(&error, asked);
    let groups = client.list_api_groups().await.map_err(api_error)?.groups;
    let has = |name: &str| groups.iter().any(|group| group.name == name);
    let mut found = Vec::new();
    for group in &groups {
        let known = || OTHER_POLICIES.iter().filter(|(name, ..)| *name == group.name);
        // Calico's own API server shows what its CRDs hold under a second name.
        let twice = group.name == "crd.projectcalico.org" && has("projectcalico.org");
        if known().next().is_none() || twice {
            continue;
        }
        for version in &group.versions {
            let resources = match client.list_api_group_resources(&version.group_version).await {
                Ok(resources) => resources.resources,
                // A group without its server, or one that went between the two questions.
                Err(kube::Error::Api(status)) if status.code != 401 => {
                    tracing::debug!("{}: {}", version.group_version, status.message);
                    continue;
                }
                Err(error) => return Err(api_error(error)),
            };
            for (_, kind, plural) in known() {
                let there = resources.iter().any(|resource| resource.name == *plural);
                let already = found.iter().any(|f: &DiscoveredKind| f.group == group.name && f.plural == *plural);
                if there && !already {
                    found.push(DiscoveredKind {
                        group: group.name.clone(),
                        version: version.version.clone(),
                        kind: (*kind).to_owned(),
                        plural: (*plural).to_owned(),
                    });
                }
            }
        }
    }
    Ok(found)
}
