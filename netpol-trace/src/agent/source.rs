//! The source of cluster objects: manifest files or the API server.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;

use crate::cluster::Cluster;
use crate::cluster::api::{self, Lookups, lookup};

/// Longest wait for the sources at the start. After that, drops are recorded while the sources catch up.
const SYNC_TIME: Duration = Duration::from_secs(10);

/// An opened source.
pub enum ClusterSource {
    Manifests,
    Api { options: api::ApiOptions, lookups: Lookups, queues: lookup::LookupQueues },
}

/// The configured source.
#[derive(Debug, Clone)]
pub enum SourceConfig {
    Manifests(Vec<PathBuf>),
    Api(api::ApiOptions),
}

/// Opens the source. Wrong paths and options end the agent; an API server that is not reachable does not.
pub async fn open(from: &SourceConfig) -> anyhow::Result<(Cluster, ClusterSource)> {
    match from {
        SourceConfig::Manifests(paths) => {
            for path in paths.iter().filter(|path| path.as_os_str() != "-") {
                if let Err(error) = std::fs::metadata(path) {
                    bail!("--manifests {}: {error}", path.display());
                }
            }
            let (cluster, loaded) = Cluster::from_manifests(paths);
            for problem in &loaded.problems {
                tracing::warn!("{problem}");
            }
            Ok((cluster, ClusterSource::Manifests))
        }
        SourceConfig::Api(options) => {
            options.access.config().await?;
            let (lookups, queues) = Lookups::new(options.node.as_deref().map(Into::into));
            Ok((Cluster::live(), ClusterSource::Api { options: options.clone(), lookups, queues }))
        }
    }
}

impl ClusterSource {
    /// Returns the look-ups of pods on other nodes, with the API server as source.
    pub fn lookups(&self) -> Option<Lookups> {
        match self {
            ClusterSource::Manifests => None,
            ClusterSource::Api { lookups, .. } => Some(lookups.clone()),
        }
    }

    /// Keeps `cluster` up to date until dropped.
    pub async fn follow(self, cluster: Cluster) {
        match self {
            ClusterSource::Manifests => cluster.watch().await,
            ClusterSource::Api { options, lookups, queues } => api::follow(cluster, options, lookups, queues).await,
        }
    }
}

/// Waits until each source is in sync or has an error, at most [`SYNC_TIME`].
pub async fn wait_for_sync(cluster: &Cluster) {
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
    let _ = tokio::time::timeout(SYNC_TIME, all).await;
}
