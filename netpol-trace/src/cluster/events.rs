//! Writes Kubernetes Events about pods whose packets were dropped, and counts repetitions as a series.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::runtime::Runtime;

use super::api::Access;
use super::budget::RequestBudget;

/// `reportingController` of every Event.
pub const CONTROLLER: &str = "netpol-trace.io/agent";
pub const REASON: &str = "NetworkPolicyDenied";
const ACTION: &str = "DroppedPacket";
/// The API accepts this many bytes of `reportingInstance`.
const INSTANCE: usize = 128;

/// An object that an Event names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRef {
    pub namespace: String,
    pub name: String,
    pub uid: Option<String>,
}

/// Drops of one pod's packets for one reason.
#[derive(Debug, Clone)]
pub struct Occurrence<'a> {
    pub pod: &'a ObjectRef,
    pub policy: Option<&'a ObjectRef>,
    /// At most 1,024 bytes.
    pub note: &'a str,
    pub first: Timestamp,
    pub last: Timestamp,
    pub count: u64,
}

/// Why an Event was not written.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The server no longer has the Event: it keeps Events for an hour.
    #[error("the Event is gone")]
    Gone,
    /// A retry would be refused too.
    #[error("the API server refuses Events: {0}")]
    Refused(String),
    #[error("the API server does not respond: {0}")]
    Away(String),
    /// The agent's budget of Events is used up.
    #[error("too many Events")]
    NotYet,
}

/// Writes Events within a budget, because many nodes share the API server.
pub struct Writer {
    access: Access,
    runtime: Runtime,
    client: Option<Client>,
    instance: String,
    budget: RequestBudget,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("instance", &self.instance).finish_non_exhaustive()
    }
}

impl Writer {
    /// `node` becomes `reportingInstance`. The budget is one request each `interval` after a burst of `burst`.
    ///
    /// # Errors
    /// The runtime could not be made. No request is sent yet.
    pub fn new(access: Access, node: Option<&str>, interval: Duration, burst: u32) -> std::io::Result<Writer> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let node = node.filter(|node| !node.is_empty()).unwrap_or("unknown");
        let instance = node.chars().take(INSTANCE).collect();
        Ok(Writer { access, runtime, client: None, instance, budget: RequestBudget::new(interval, burst) })
    }

    /// Writes the first Event of a kind and returns its name.
    pub fn create(&mut self, of: &Occurrence<'_>, limit: Duration) -> Result<String, EventError> {
        let event = event(of, &self.instance);
        let answer =
            self.ask(&of.pod.namespace, limit, async |events| events.create(&PostParams::default(), &event).await)?;
        Ok(answer.metadata.name.unwrap_or_default())
    }

    /// Updates the count of an Event.
    pub fn count(&mut self, name: &str, of: &Occurrence<'_>, limit: Duration) -> Result<(), EventError> {
        let patch = Patch::Merge(json!({ "series": series(of) }));
        let answer = self
            .ask(&of.pod.namespace, limit, async |events| events.patch(name, &PatchParams::default(), &patch).await);
        answer.map(drop)
    }

    fn ask<F>(&mut self, namespace: &str, limit: Duration, request: F) -> Result<Event, EventError>
    where
        F: AsyncFnOnce(Api<Event>) -> Result<Event, kube::Error>,
    {
        let Writer { access, runtime, client, budget, .. } = self;
        runtime.block_on(async {
            if !budget.take(Duration::ZERO).await {
                return Err(EventError::NotYet);
            }
            let asked = async {
                if client.is_none() {
                    *client = Some(access.connect().await.map_err(|error| EventError::Away(error.to_string()))?);
                }
                let Some(client) = client.clone() else { return Err(EventError::Away("no client".to_owned())) };
                request(Api::namespaced(client, namespace)).await.map_err(refused)
            };
            let late = |_| EventError::Away(format!("no response in {:.0?}", limit));
            tokio::time::timeout(limit, asked).await.unwrap_or_else(|elapsed| Err(late(elapsed)))
        })
    }
}

fn refused(error: kube::Error) -> EventError {
    match error {
        kube::Error::Api(status) if status.code == 404 && status.reason == "NotFound" => match &status.details {
            // The namespace is gone: a retry would fail too.
            Some(details) if details.kind == "namespaces" => EventError::Refused(status.message.clone()),
            _ => EventError::Gone,
        },
        kube::Error::Api(status) if matches!(status.code, 429 | 500..) => EventError::Away(status.message.clone()),
        kube::Error::Api(status) => EventError::Refused(status.message.clone()),
        error => EventError::Away(error.to_string()),
    }
}

fn event(of: &Occurrence<'_>, instance: &str) -> Event {
    let object = |api: &str, kind: &str, named: &ObjectRef| ObjectReference {
        api_version: Some(api.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: Some(named.namespace.clone()),
        name: Some(named.name.clone()),
        uid: named.uid.clone(),
        ..ObjectReference::default()
    };
    Event {
        metadata: ObjectMeta {
            namespace: Some(of.pod.namespace.clone()),
            // The server makes the name unique, and cuts what is too long.
            generate_name: Some(format!("{}.netpol-trace-", of.pod.name)),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(of.first)),
        series: series(of),
        type_: Some("Warning".to_owned()),
        reason: Some(REASON.to_owned()),
        action: Some(ACTION.to_owned()),
        regarding: Some(object("v1", "Pod", of.pod)),
        related: of.policy.map(|policy| object("networking.k8s.io/v1", "NetworkPolicy", policy)),
        note: Some(of.note.to_owned()),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        ..Event::default()
    }
}

/// An Event of two or more drops is a series.
fn series(of: &Occurrence<'_>) -> Option<EventSeries> {
    let count = i32::try_from(of.count).unwrap_or(i32::MAX);
    (count > 1).then_some(EventSeries { count, last_observed_time: MicroTime(of.last) })
}
