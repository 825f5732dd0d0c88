//! Finds the agents of a cluster and reads their records: from the logs of their pods, or from their `tail` listener through
//! the API server's port-forward.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::io::AsyncBufRead;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::{ApiResource, ListParams, LogParams, Object, PostParams};
use kube::{Api, Client};
use serde::Deserialize;

use super::access_review::{AUDIENCE, READER};
use super::api::{Access, AccessError, chain};

/// Response header of the tail listener: the time of the oldest record in its history.
pub const REACHES_BACK_TO: &str = "x-netpol-trace-reaches-back-to";
/// The label of the agents' pods.
pub const LABEL: &str = "app.kubernetes.io/name=netpol-trace";
const CONTAINER: &str = "agent";
const FORBIDDEN: u16 = 403;
const NOT_FOUND: u16 = 404;
/// Lifetime of a token. A longer session makes a new one.
const TOKEN_SECONDS: i64 = 600;
/// Pods of one list: enough to name a few, and to know on which nodes the pods of a namespace run.
pub const PODS: u32 = 500;
/// Timeout of one request to an agent or the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// One agent's pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    pub pod: String,
    pub node: String,
    pub running: bool,
    /// Its container's name: the only one, or `agent`.
    container: Option<String>,
}

#[cfg(test)]
impl Agent {
    pub(crate) fn for_test(pod: &str, node: &str) -> Agent {
        Agent { pod: pod.to_owned(), node: node.to_owned(), running: true, container: None }
    }
}

/// Why an agent or the API server returned no records.
#[derive(Debug, thiserror::Error)]
pub enum AgentsError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("{what}: {}", server_message(error))]
    Server { what: String, error: kube::Error },
    #[error(
        "list the agents' pods in namespace {namespace}: {why}. Reading the agents' logs, or the Role netpol-trace-reach there \
         for --service-account, includes that right"
    )]
    MayNotList { namespace: String, why: String },
    #[error("read the log of pod {pod}: {why}")]
    MayNotReadLog { pod: String, why: String },
    #[error(
        "there is no service account {account} in namespace {namespace}: {}",
        if account == READER {
            format!("an administrator makes it with `kubectl apply -n {namespace} -k deploy/kustomize/developer-namespace`, or by tail.namespaces of the chart")
        } else {
            format!("--service-account without a name uses {READER}")
        }
    )]
    NoAccount { namespace: String, account: String },
    #[error(
        "make a token for service account {namespace}/{account}: {why}. The ClusterRole netpol-trace-developer, bound to you in \
         namespace {namespace}, allows it for {READER} and no other account"
    )]
    MayNotAsk { namespace: String, account: String, why: String },
    #[error("no response in {} s", REQUEST_TIMEOUT.as_secs())]
    Late,
    #[error("{0}: the API server did not respond in {seconds} s", seconds = REQUEST_TIMEOUT.as_secs())]
    LateServer(String),
    #[error("{0}")]
    Refused(String),
}

/// The server's message, if it refused a request with this HTTP status.
fn refused(error: &AgentsError, code: u16) -> Option<String> {
    match error {
        AgentsError::Server { error, .. } => status(error, code),
        _ => None,
    }
}

/// The server's message, if the error is a response with this code.
fn status(error: &kube::Error, code: u16) -> Option<String> {
    match error {
        kube::Error::Api(status) if status.code == code => Some(status.message.clone()),
        _ => None,
    }
}

/// The server's own message, which names the missing right, without what the client adds.
fn server_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => chain(error),
    }
}

/// The agents of one namespace, through the API server.
#[derive(Clone)]
pub struct Agents {
    client: Client,
    namespace: String,
}

impl std::fmt::Debug for Agents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agents").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Agents {
    /// Returns the agents in `namespace`, and the namespace of the kubeconfig's context.
    pub async fn connect(access: &Access, namespace: &str) -> Result<(Agents, String), AgentsError> {
        let config = access.config().await?;
        // kubectl treats `namespace: ""` in a context as absent.
        let own = Some(config.default_namespace.clone()).filter(|own| !own.is_empty());
        let own = own.unwrap_or_else(|| "default".to_owned());
        let client = access.connect().await?;
        Ok((Agents { client, namespace: namespace.to_owned() }, own))
    }

    /// Pods, read down to the fields that are used.
    fn parts(&self, namespace: &str) -> Api<PodParts> {
        Api::namespaced_with(self.client.clone(), namespace, &ApiResource::erase::<Pod>(&()))
    }

    /// The agents' pods, for logs and port-forwards.
    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// All of them, by node.
    pub async fn list(&self) -> Result<Vec<Agent>, AgentsError> {
        let (pods, mut params) = (self.parts(&self.namespace), ListParams::default().labels(LABEL).limit(PODS));
        let mut agents: Vec<Agent> = Vec::new();
        // Page by page, so that each request is short however many agents there are.
        loop {
            let what = || format!("list the agents' pods in namespace {}", self.namespace);
            let page = with_timeout(pods.list(&params), what).await;
            let page = page.map_err(|error| match refused(&error, FORBIDDEN) {
                Some(why) => AgentsError::MayNotList { namespace: self.namespace.clone(), why },
                None => error,
            })?;
            let more = page.metadata.continue_.clone().filter(|more| !more.is_empty());
            agents.extend(page.into_iter().filter_map(agent));
            let Some(more) = more else { break };
            params = params.continue_token(&more);
        }
        agents.sort_by(|a, b| (&a.node, &a.pod).cmp(&(&b.node, &b.pod)));
        Ok(agents)
    }

    /// A pod by its name. `None` if it does not exist.
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<Option<RecordedPod>, AgentsError> {
        let what = || format!("get pod {namespace}/{name}");
        let pod = with_timeout(self.parts(namespace).get_opt(name), what).await?;
        Ok(pod.map(RecordedPod::from))
    }

    /// Pods of one namespace or of all, with these labels; at most [`PODS`], and whether there are more.
    pub async fn pods_with(
        &self,
        namespace: Option<&str>,
        labels: Option<&str>,
    ) -> Result<(Vec<RecordedPod>, bool), AgentsError> {
        let resource = ApiResource::erase::<Pod>(&());
        let pods: Api<PodParts> = match namespace {
            Some(namespace) => self.parts(namespace),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let params = ListParams { label_selector: labels.map(str::to_owned), ..ListParams::default() }.limit(PODS);
        let list = with_timeout(pods.list(&params), || "list pods".to_owned()).await?;
        let more = list.metadata.continue_.as_ref().is_some_and(|more| !more.is_empty());
        Ok((list.into_iter().map(RecordedPod::from).collect(), more))
    }

    pub async fn namespaces(&self) -> Result<Vec<String>, AgentsError> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let list = with_timeout(api.list_metadata(&ListParams::default()), || "list namespaces".to_owned()).await?;
        Ok(list.into_iter().filter_map(|namespace| namespace.metadata.name).collect())
    }

    /// The log of one agent: its records between its own log lines. `previous` reads the container before the last restart.
    pub async fn log(
        &self,
        agent: &Agent,
        since: Option<Timestamp>,
        follow: bool,
        previous: bool,
    ) -> Result<impl AsyncBufRead + Send + use<>, AgentsError> {
        let params = LogParams {
            container: agent.container.clone(),
            follow,
            previous,
            since_time: since,
            ..LogParams::default()
        };
        let asked = tokio::time::timeout(REQUEST_TIMEOUT, self.pods().log_stream(&agent.pod, &params)).await;
        let pod = format!("{}/{}", self.namespace, agent.pod);
        asked.map_err(|_| AgentsError::Late)?.map_err(|error| match status(&error, FORBIDDEN) {
            Some(why) => AgentsError::MayNotReadLog { pod, why },
            None => AgentsError::Server { what: format!("read the log of pod {pod}"), error },
        })
    }

    /// Makes a token of a service account that only agents accept.
    pub async fn token(&self, namespace: &str, account: &str) -> Result<String, AgentsError> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let spec = TokenRequestSpec {
            audiences: Some(vec![AUDIENCE.to_owned()]),
            expiration_seconds: Some(TOKEN_SECONDS),
            ..TokenRequestSpec::default()
        };
        let asked = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let what = || format!("make a token for service account {namespace}/{account}");
        let params = PostParams::default();
        let made = with_timeout(accounts.create_subresource("token", account, &params, &asked), what).await;
        let made: TokenRequest = made.map_err(|error| {
            let (namespace, account) = (namespace.to_owned(), account.to_owned());
            if let Some(why) = refused(&error, FORBIDDEN) {
                return AgentsError::MayNotAsk { namespace, account, why };
            }
            if refused(&error, NOT_FOUND).is_some() {
                return AgentsError::NoAccount { namespace, account };
            }
            error
        })?;
        made.status.and_then(|status| status.token).ok_or_else(|| AgentsError::Refused("no token was made".to_owned()))
    }

    /// Requests records from an agent's listener, through the API server.
    pub async fn records(
        &self,
        agent: &Agent,
        port: u16,
        token: &str,
        request: &RecordsRequest,
    ) -> Result<RecordsResponse, AgentsError> {
        let forwarded = tokio::time::timeout(REQUEST_TIMEOUT, self.pods().portforward(&agent.pod, &[port])).await;
        let what = || format!("port-forward to pod {}/{}", self.namespace, agent.pod);
        let mut forwarder =
            forwarded.map_err(|_| AgentsError::Late)?.map_err(|error| AgentsError::Server { what: what(), error })?;
        let stream = forwarder.take_stream(port).ok_or_else(|| AgentsError::Refused("no stream".to_owned()))?;
        let mut answer = request_records(stream, token, request).await?;
        answer.forwarder = Some(forwarder);
        Ok(answer)
    }
}

/// Waits for the response, at most [`REQUEST_TIMEOUT`].
async fn with_timeout<T>(
    asked: impl Future<Output = Result<T, kube::Error>>,
    what: impl FnOnce() -> String,
) -> Result<T, AgentsError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, asked).await {
        Ok(answered) => answered.map_err(|error| AgentsError::Server { what: what(), error }),
        Err(_) => Err(AgentsError::LateServer(what())),
    }
}

/// A pod whose packets agents record.
#[derive(Debug, Clone)]
pub struct RecordedPod {
    pub namespace: String,
    pub name: String,
    /// Where it runs, once it does.
    pub node: Option<String>,
    pub labels: BTreeMap<String, String>,
}

impl From<PodParts> for RecordedPod {
    fn from(pod: PodParts) -> RecordedPod {
        RecordedPod {
            namespace: pod.metadata.namespace.unwrap_or_default(),
            name: pod.metadata.name.unwrap_or_default(),
            node: pod.spec.node_name,
            labels: pod.metadata.labels.unwrap_or_default(),
        }
    }
}

/// A pod, down to the fields that are used.
type PodParts = Object<AgentPodSpec, AgentPodStatus>;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AgentPodSpec {
    node_name: Option<String>,
    #[serde(default)]
    containers: Vec<serde::de::IgnoredAny>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct AgentPodStatus {
    phase: Option<String>,
}

fn agent(pod: PodParts) -> Option<Agent> {
    let (spec, status) = (pod.spec, pod.status.unwrap_or_default());
    let several = spec.containers.len() > 1;
    Some(Agent {
        pod: pod.metadata.name?,
        node: spec.node_name.unwrap_or_default(),
        running: status.phase.as_deref() == Some("Running"),
        container: several.then(|| CONTAINER.to_owned()),
    })
}

/// A request to an agent's listener.
#[derive(Debug, Clone, Default)]
pub struct RecordsRequest {
    pub namespaces: Vec<String>,
    pub since: Option<Timestamp>,
    pub follow: bool,
}

/// The response of an agent's listener, read while it arrives.
pub struct RecordsResponse {
    body: hyper::body::Incoming,
    pub reaches_back_to: Option<Timestamp>,
    /// Owns the stream, so it lives as long as the response.
    forwarder: Option<kube::api::Portforwarder>,
    connection: tokio::task::JoinHandle<()>,
}

impl std::fmt::Debug for RecordsResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordsResponse").field("reaches_back_to", &self.reaches_back_to).finish_non_exhaustive()
    }
}

impl std::ops::Drop for RecordsResponse {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl RecordsResponse {
    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Vec<u8>, AgentsError>> {
        loop {
            return match self.body.frame().await? {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => Some(Ok(data.to_vec())),
                    Err(_) => continue,
                },
                Err(error) => Some(Err(AgentsError::Refused(error.to_string()))),
            };
        }
    }
}

/// Sends a request to a listener over any stream.
pub async fn request_records<S>(
    stream: S,
    token: &str,
    request: &RecordsRequest,
) -> Result<RecordsResponse, AgentsError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let refused = |error: &dyn std::fmt::Display| AgentsError::Refused(error.to_string());
    let shake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shake.map_err(|error| refused(&error))?;
    let connection = tokio::spawn(async move {
        let _ = connection.await;
    });
    let since = request.since.map(|since| format!("&since={since}")).unwrap_or_default();
    let uri = format!("/v1/records?follow={}&namespace={}{since}", request.follow, request.namespaces.join(","));
    let request = hyper::Request::get(uri)
        .header(hyper::header::HOST, "netpol-trace")
        .header(hyper::header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Empty::<Bytes>::new())
        .map_err(|error| refused(&error))?;
    let answered = tokio::time::timeout(REQUEST_TIMEOUT, sender.send_request(request)).await;
    let response = answered.map_err(|_| AgentsError::Late)?.map_err(|error| refused(&error))?;
    if !response.status().is_success() {
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), 4096).collect().await;
        let why = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()).unwrap_or_default();
        return Err(AgentsError::Refused(format!("{status}: {why}")));
    }
    let reaches = response.headers().get(REACHES_BACK_TO).and_then(|value| value.to_str().ok()?.parse().ok());
    // The connection ends with the body. Dropping the sender earlier does not end it.
    Ok(RecordsResponse { body: response.into_body(), reaches_back_to: reaches, forwarder: None, connection })
}
