//! Where the agent's knowledge of the cluster comes from: manifest files, or the API server.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;

use crate::cluster::Cluster;
use crate::cluster::api::{self, Lookups, lookup};

/// How long the start waits for the sources; later they catch up while drops are recorded.
const SETTLING: Duration = Duration::from_secs(10);

/// What keeps the cluster's state current.
pub enum Source {
    Manifests,
    Api { options: api::ApiOptions, lookups: Lookups, queues: lookup::LookupQueues },
}

/// Where the state is to come from.
#[derive(Debug, Clone)]
pub enum From {
    Manifests(Vec<PathBuf>),
    Api(api::ApiOptions),
}

/// Opens the source. Wrong paths and options end the agent; a server that is away does not.
pub async fn open(from: &From) -> anyhow::Result<(Cluster, Source)> {
    match from {
        From::Manifests(paths) => {
            for path in paths.iter().filter(|path| path.as_os_str() != "-") {
                if let Err(error) = std::fs::metadata(path) {
                    bail!("--manifests {}: {error}", path.display());
                }
            }
            let (cluster, loaded) = Cluster::from_manifests(paths);
            for problem in &loaded.problems {
                tracing::warn!("{problem}");
            }
            Ok((cluster, Source::Manifests))
        }
        From::Api(options) => {
            options.access.config().await?;
            let (lookups, queues) = Lookups::new(options.node.as_deref().map(Into::into));
            Ok((Cluster::live(), Source::Api { options: options.clone(), lookups, queues }))
        }
    }
}

impl Source {
    /// Where pods of other nodes may have to be looked up.
    pub fn lookups(&self) -> Option<Lookups> {
        match self {
            Source::Manifests => None,
            Source::Api { lookups, .. } => Some(lookups.clone()),
        }
    }

    /// Keeps `cluster` current until dropped.
    pub async fn follow(self, cluster: Cluster) {
        match self {
            Source::Manifests => cluster.watch().await,
            Source::Api { options, lookups, queues } => api::follow(cluster, options, lookups, queues).await,
        }
    }
}

/// Waits until each source is in sync or has said why not, or has had its time.
pub async fn settled(cluster: &Cluster) {
    let mut changes = cluster.changes();
    let all = async {
        loop {
            let sources = cluster.sources();
            if !sources.is_empty() && sources.iter().all(|source| source.synced || source.error.is_some()) {
                return;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(SETTLING, all).await;
}
