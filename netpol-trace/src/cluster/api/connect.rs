//! Makes the client from a kubeconfig or the pod's service account, and replaces it when its credentials expire.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderValue, USER_AGENT};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tokio::sync::Mutex;

/// A server sends watch bookmarks about once a minute: a connection without any bytes for this long is dead.
const READ_TIMEOUT: Duration = Duration::from_secs(150);
const CONNECT: Duration = Duration::from_secs(10);

/// The API server that the command line names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Instead of `KUBECONFIG` and `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// Instead of the kubeconfig's current context.
    pub context: Option<String>,
}

/// Why the client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("--kubeconfig {}: {}", .0.display(), chain(.1))]
    File(PathBuf, #[source] KubeconfigError),
    #[error("the kubeconfig: {}", chain(.0))]
    Kubeconfig(#[source] KubeconfigError),
    #[error("the pod's service account: {}", chain(.0))]
    InCluster(#[source] InClusterError),
    #[error(
        "no cluster: found no kubeconfig (KUBECONFIG, ~/.kube/config), and this is no pod of a cluster; give --kubeconfig PATH, or files instead (--manifests PATH; for tail, FILE)"
    )]
    None,
    #[error("unusable credentials or certificates: {}", chain(.0))]
    Client(#[source] kube::Error),
    #[error("{server}: no answer: {}", chain(error))]
    Unreachable {
        server: String,
        #[source]
        error: kube::Error,
    },
}

/// An error with its causes in one line. A cause that the text already contains is left out.
pub(in crate::cluster) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        next = error.source();
    }
    text
}

impl Access {
    /// The configuration that kubectl would use: the given one, else `KUBECONFIG` or `~/.kube/config`, else the pod's service
    /// account.
    pub async fn config(&self) -> Result<Config, AccessError> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = if let Some(path) = &self.kubeconfig {
            let wrong = |error| AccessError::File(path.clone(), error);
            let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
            Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(wrong)?
        } else if self.context.is_some() {
            Config::from_kubeconfig(&options).await.map_err(AccessError::Kubeconfig)?
        } else {
            match Config::from_kubeconfig(&options).await {
                Ok(config) => config,
                Err(kubeconfig) => service_account(kubeconfig)?,
            }
        };
        // The callers report a broken connection and retry. Retries in the client would hide it.
        config.default_retry = false;
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(READ_TIMEOUT);
        let agent = concat!("netpol-trace/", env!("CARGO_PKG_VERSION"));
        config.headers.push((USER_AGENT, HeaderValue::from_static(agent)));
        Ok(config)
    }

    pub async fn connect(&self) -> Result<Client, AccessError> {
        Client::try_from(self.config().await?).map_err(AccessError::Client)
    }

    /// A name for messages: the context, or the server's URL.
    pub async fn name(&self) -> String {
        match (&self.context, self.config().await) {
            (Some(context), _) => format!("context {context}"),
            (None, Ok(config)) => config.cluster_url.to_string(),
            (None, Err(_)) => "the cluster".to_owned(),
        }
    }
}

/// The service account of a pod that has no kubeconfig. A kubeconfig that exists and is broken is the error.
fn service_account(kubeconfig: KubeconfigError) -> Result<Config, AccessError> {
    let named = std::env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty());
    let absent = match &kubeconfig {
        KubeconfigError::ReadConfig(error, _) => error.kind() == std::io::ErrorKind::NotFound,
        error => matches!(error, KubeconfigError::FindPath),
    };
    if named || !absent {
        return Err(AccessError::Kubeconfig(kubeconfig));
    }
    Config::incluster().map_err(|error| match error {
        InClusterError::ReadEnvironmentVariable(_) => AccessError::None,
        error => AccessError::InCluster(error),
    })
}

/// The client that all watches share. Clones share it.
#[derive(Debug, Clone)]
pub(in crate::cluster) struct ApiConnection {
    access: Access,
    state: Arc<Mutex<Option<Current>>>,
}

#[derive(Clone)]
pub(in crate::cluster) struct Current {
    pub client: Client,
    generation: u64,
    /// The server knows streaming lists, or refuses them with an error.
    pub streaming: bool,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "client {}", self.generation)
    }
}

impl ApiConnection {
    pub fn new(access: Access) -> ApiConnection {
        ApiConnection { access, state: Arc::new(Mutex::new(None)) }
    }

    /// The current client, or a new one.
    pub async fn current(&self) -> Result<Current, AccessError> {
        let mut state = self.state.lock().await;
        if let Some(current) = &*state {
            return Ok(current.clone());
        }
        let config = self.access.config().await?;
        let url = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(AccessError::Client)?;
        // Older servers ignore the option: they would stream without marking the end of the list.
        let streaming = match client.apiserver_version().await {
            Ok(version) => knows_streaming(&version.major, &version.minor),
            Err(kube::Error::Api(_)) => false,
            Err(error) => return Err(AccessError::Unreachable { server: url, error }),
        };
        let current = Current { client, generation: next_generation(), streaming };
        *state = Some(current.clone());
        Ok(current)
    }

    /// Drops a client that no longer works. The next one is made from the files as they are then.
    pub async fn renew(&self, failed: &Current) {
        let mut state = self.state.lock().await;
        if state.as_ref().is_some_and(|current| current.generation == failed.generation) {
            *state = None;
        }
    }
}

fn next_generation() -> u64 {
    static GENERATION: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    GENERATION.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// Kubernetes 1.27 introduced the option.
fn knows_streaming(major: &str, minor: &str) -> bool {
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0);
    (number(major), number(minor)) >= (1, 27)
}

#[cfg(test)]
mod tests {
    use super::knows_streaming;

    #[test]
    fn versions_are_read_with_what_vendors_add() {
        assert!(knows_streaming("1", "27") && knows_streaming("1", "36+") && knows_streaming("2", "0"));
        assert!(!knows_streaming("1", "26") && !knows_streaming("1", "9+") && !knows_streaming("", ""));
    }
}
