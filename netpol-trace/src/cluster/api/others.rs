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
use super::feed::{Feed, Lists};
use super::items::Named;
use super::trouble::{Asked, Trouble};
use super::watch::{self, Pause, Resource};

/// CRDs come and go with an installation, not by the minute.
const LOOK: Duration = Duration::from_secs(300);
const SOURCE: &str = "other policy APIs";

/// Runs for ever.
pub(super) async fn run(connection: Connection, cluster: Cluster) {
    let mut feed = Feed::new(
        cluster.clone(),
        SOURCE,
        Kind::OtherPolicy { group: "".into(), kind: "".into() }.into(),
        Lists::Additions,
    );
    let mut pause = Pause::default();
    let mut watches: JoinSet<Found> = JoinSet::new();
    let mut watched: BTreeSet<Found> = BTreeSet::new();
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
                feed.begin();
                feed.complete();
                pause = Pause::default();
                for kind in found.into_iter().filter(|kind| !watched.contains(kind)).collect::<Vec<_>>() {
                    watched.insert(kind.clone());
                    watches.spawn(one(connection.clone(), cluster.clone(), kind));
                }
                tokio::time::sleep(LOOK).await;
            }
            Err(trouble) => {
                feed.trouble(&trouble);
                pause.wait().await;
            }
        }
    }
}

/// Group, version, kind, plural.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    group: String,
    version: String,
    kind: String,
    plural: String,
}

impl Found {
    pub fn resource(&self) -> Resource {
        Resource { metadata_only: true, ..Resource::of(&self.group, &self.version, &self.plural) }
    }

    pub fn kind(&self) -> Kind {
        Kind::OtherPolicy { group: self.group.as_str().into(), kind: self.kind.as_str().into() }
    }
}

async fn one(connection: Connection, cluster: Cluster, found: Found) -> Found {
    let name = format!("{}.{}", found.plural, found.group);
    let feed = Feed::new(cluster, &name, found.kind().into(), Lists::Whole);
    watch::run::<Named>(connection, found.resource(), feed, true).await;
    found
}

/// Which of the known kinds the server has.
pub(super) async fn find(client: &Client) -> Result<Vec<Found>, Trouble> {
    let asked = Asked { verb: "discover", group: "", resource: "API groups", verbs: &["get"] };
    let trouble = |error: kube::Error| Trouble::of(&error, asked);
    let groups = client.list_api_groups().await.map_err(trouble)?.groups;
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
                Err(error) => return Err(trouble(error)),
            };
            for (_, kind, plural) in known() {
                let there = resources.iter().any(|resource| resource.name == *plural);
                let already = found.iter().any(|f: &Found| f.group == group.name && f.plural == *plural);
                if there && !already {
                    found.push(Found {
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
