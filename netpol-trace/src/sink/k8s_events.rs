//! Writes Kubernetes Events about pods whose packets a policy dropped; `kubectl describe pod` shows them. There is one series of Events for
//! each pod and what it could not reach. Their text shows only what a reader of the pod's namespace may see.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::backoff::Backoff;
use crate::cluster::events::{EventError, ObjectRef, Occurrence, Writer};
use crate::model::{Action, Cause, LossReason, PodRef};
use crate::record::describe;
use crate::record::describe::Brevity;
use crate::record::read::RecordView;
use crate::record::{Body, Drop, Record, restrict};
use crate::sink::queue::Patience;
use crate::sink::{Delivery, Sink, SinkError};

/// The rate limit of an agent: an API server serves thousands of agents.
pub const INTERVAL: Duration = Duration::from_secs(5);
pub const BURST: u32 = 20;
/// The least time between two updates of an Event's count.
const COUNT_UP: Duration = Duration::from_secs(60);
/// A series without drops for this time ends. A series that the API server refused is tried again after it.
const FORGET: Duration = Duration::from_secs(600);
/// The most series, and the most of one pod.
const MAX_SERIES: usize = 1000;
const MAX_SERIES_OF_POD: usize = 10;
/// The most bytes of a note; the API allows 1,024.
const NOTE: usize = 1000;
/// The time limit of one request.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Between attempts to reach the API server.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

/// The name of the encoding in records.
pub const FORMAT: &str = "events.k8s.io/v1";

#[derive(Debug)]
pub struct EventsSink {
    writer: Writer,
    series: HashMap<u64, EventSeries>,
    /// Records that are in no Event and not yet declared as lost.
    lost: u64,
    /// The API server is unreachable: time of the next request, back-off and error.
    unreachable: Option<(Instant, Backoff, String)>,
}

/// One Event and the drops that it counts.
#[derive(Debug)]
struct EventSeries {
    pod: ObjectRef,
    policy: Option<ObjectRef>,
    note: String,
    first: Timestamp,
    last: Timestamp,
    /// Packets in all, and packets in the Event as it was last written.
    count: u64,
    reported: u64,
    /// Records since the Event was written.
    unreported: u64,
    /// The Event's name, once it was written.
    name: Option<String>,
    not_before: Instant,
    seen: Instant,
    refused: Option<Instant>,
}

impl EventSeries {
    fn occurrence(&self) -> Occurrence<'_> {
        let EventSeries { pod, policy, note, first, last, count, .. } = self;
        Occurrence { pod, policy: policy.as_ref(), note, first: *first, last: *last, count: *count }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.count > self.reported && self.refused.is_none() && self.not_before <= now
    }

    fn is_over(&self, now: Instant) -> bool {
        let refused = self.refused.is_some_and(|at| now.duration_since(at) > FORGET);
        refused || self.count == self.reported && now.duration_since(self.seen) > FORGET
    }
}

impl EventsSink {
    pub fn new(writer: Writer) -> EventsSink {
        EventsSink { writer, series: HashMap::new(), lost: 0, unreachable: None }
    }

    fn add(&mut self, record: &Record, drop: &Drop, now: Instant) {
        let Some((pod, is_source)) = affected_pod(drop) else { return };
        let mut key = key(pod, drop);
        if !self.series.contains_key(&key) {
            if self.series.len() >= MAX_SERIES {
                self.lost += 1;
                return;
            }
            let of_pod = self.series.values().filter(|series| series.pod.is(pod)).count();
            let (note, policy) = if of_pod < MAX_SERIES_OF_POD {
                note(record, pod, is_source)
            } else {
                key = hash((&pod.namespace, &pod.name, "others"));
                let command = format!("kubectl netpol-trace tail --pod {}/{}", pod.namespace, pod.name);
                (format!("Further connections were denied by NetworkPolicy; each is shown by: {command}"), None)
            };
            self.series.entry(key).or_insert_with(|| EventSeries::new(pod, policy, note, record.time, now));
        }
        let Some(series) = self.series.get_mut(&key) else { return };
        series.last = series.last.max(drop.last_time.unwrap_or(record.time));
        series.seen = now;
        if series.refused.is_some() {
            self.lost += 1;
        } else {
            series.count += drop.count;
            series.unreported += 1;
        }
    }

    /// Writes the Events that are due, new ones first. Writes all of them if the agent stops.
    fn write(&mut self, stops: bool, patience: Patience<'_>) {
        let now = Instant::now();
        if !stops && self.unreachable.as_ref().is_some_and(|(until, ..)| now < *until) {
            return;
        }
        let due =
            self.series.iter().filter(|(_, series)| series.is_due(now) || stops && series.count > series.reported);
        let mut due: Vec<_> = due.map(|(key, series)| (series.name.is_some(), series.first, *key)).collect();
        due.sort();
        for (_, _, key) in due {
            let limit = patience.left(ATTEMPT);
            let Some(series) = self.series.get_mut(&key).filter(|_| !limit.is_zero()) else { break };
            let written = match &series.name {
                None => self.writer.create(&series.occurrence(), limit).map(|name| series.name = Some(name)),
                Some(name) => self.writer.count(name, &series.occurrence(), limit),
            };
            match written {
                Ok(()) => {
                    (series.reported, series.unreported) = (series.count, 0);
                    series.not_before = now + COUNT_UP;
                }
                Err(EventError::NotYet) => break,
                Err(EventError::Gone) => {
                    // A new Event for the packets that the old one did not count.
                    series.count -= series.reported;
                    (series.name, series.reported, series.first) = (None, 0, series.last);
                }
                Err(EventError::Refused(why)) => {
                    let pod = format!("{}/{}", series.pod.namespace, series.pod.name);
                    tracing::warn!(
                        pod,
                        why,
                        "the API server refused an Event for this pod; the next attempt is in 10 minutes"
                    );
                    series.refused = Some(now);
                    self.lost += std::mem::take(&mut series.unreported);
                }
                Err(EventError::Away(why)) => {
                    let mut backoff = self.unreachable.take().map_or(BACKOFF, |(_, backoff, _)| backoff);
                    self.unreachable = Some((now + backoff.pause(), backoff, why));
                    break;
                }
            }
            self.unreachable = None;
        }
        self.series.retain(|_, series| !series.is_over(now));
        if stops {
            self.lost += self.series.drain().map(|(_, series)| series.unreported).sum::<u64>();
            if self.lost > 0 {
                tracing::error!(records = self.lost, "the agent stops before these records were written as Events");
            }
        }
    }
}

impl Sink for EventsSink {
    fn name(&self) -> String {
        "events".to_owned()
    }

    fn format(&self) -> &'static str {
        FORMAT
    }

    fn deliver(&mut self, records: &[Arc<Record>], patience: Patience<'_>) -> Delivery {
        let (now, mut stops) = (Instant::now(), false);
        for record in records {
            match &record.body {
                Body::Drop(drop) if drop.cause == Cause::Policy => self.add(record, drop, now),
                Body::Status(status) => stops |= status.phase == crate::model::RunPhase::Stopped,
                _ => {}
            }
        }
        self.write(stops, patience);
        let rejected = self.lost.min(records.len() as u64);
        self.lost -= rejected;
        // The records stay in the table: none is lost yet.
        let error = self.unreachable.as_ref().map(|(_, _, why)| SinkError::Refused {
            name: self.name(),
            reason: LossReason::Unreachable,
            message: why.clone(),
        });
        Delivery { rejected, error, ..Delivery::all(records) }
    }
}

impl EventSeries {
    fn new(pod: &PodRef, policy: Option<ObjectRef>, note: String, time: Timestamp, now: Instant) -> EventSeries {
        let pod = ObjectRef { namespace: pod.namespace.clone(), name: pod.name.clone(), uid: pod.uid.clone() };
        EventSeries {
            pod,
            policy,
            note,
            first: time,
            last: time,
            count: 0,
            reported: 0,
            unreported: 0,
            name: None,
            not_before: now,
            seen: now,
            refused: None,
        }
    }
}

impl ObjectRef {
    fn is(&self, pod: &PodRef) -> bool {
        (&self.namespace, &self.name, &self.uid) == (&pod.namespace, &pod.name, &pod.uid)
    }
}

/// The pod of an Event: the source, or the destination if the source is no pod. Also returns whether it is the source.
fn affected_pod(drop: &Drop) -> Option<(&PodRef, bool)> {
    let source = drop.source.pod.as_deref().map(|pod| (pod, true));
    source.or_else(|| drop.destination.pod.as_deref().map(|pod| (pod, false)))
}

/// The key of a series: the pod, its peer and port, and the policies.
fn key(pod: &PodRef, drop: &Drop) -> u64 {
    let other = if drop.source.pod.as_deref() == Some(pod) { &drop.destination } else { &drop.source };
    let workload = other.pod.as_ref().map(|pod| {
        let name = pod.owner.as_ref().map_or(&pod.name, |owner| &owner.name);
        (&pod.namespace, name)
    });
    let address = workload.is_none().then_some(other.ip);
    let denying = drop.verdict.iter().flat_map(|verdict| [&verdict.egress, &verdict.ingress]);
    let policies: Vec<_> = denying.flat_map(|side| &side.isolated_by).map(|p| (&p.namespace, &p.name)).collect();
    let port = (&drop.network.transport, drop.destination.port);
    hash((&pod.namespace, &pod.name, &pod.uid, workload, address, policies, port, drop.direction, drop.action))
}

fn hash(what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// Describes the drop for a reader who may read the pod's namespace and no other. Returns the policy too, if it is one of that namespace.
fn note(record: &Record, pod: &PodRef, is_source: bool) -> (String, Option<ObjectRef>) {
    let shown = restrict::restricted(record.clone(), |namespace| namespace == pod.namespace);
    let Some(shown @ Record { body: Body::Drop(drop), .. }) = &shown else {
        return ("A connection was denied by NetworkPolicy".to_owned(), None);
    };
    let view = RecordView::of_drop(shown, drop);
    let (to, end) = if is_source { ("to", &view.destination) } else { ("from", &view.source) };
    let other = end.as_ref().map(describe::endpoint).unwrap_or_default();
    let what = if drop.action == Action::Reject { "rejected" } else { "dropped" };
    let why = describe::brief(&view, Brevity::Short);
    let mut note = format!("{} {to} {other} {what}: {why}", describe::port(&view));
    if let Some(hint) = &view.hint {
        note += &format!(". {}", describe::sentence(&hint.message));
    }
    let policy = view.verdict.as_ref().and_then(|verdict| {
        let policy = verdict.deciding(&view.direction).1.isolated_by.first()?;
        Some(ObjectRef { namespace: policy.namespace.to_string(), name: policy.name.to_string(), uid: None })
    });
    (cut(note), policy)
}

fn cut(mut note: String) -> String {
    if note.len() > NOTE {
        note.truncate(note.floor_char_boundary(NOTE - "…".len()));
        note.push('…');
    }
    note
}
