//! Kubernetes Events about pods whose packets a policy dropped, where `kubectl describe pod` shows them: one for each pod and
//! what it could not reach, counted up, in the words that a reader of the pod's namespace may see.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::cluster::events::{EventError, ObjectRef, Occurrence, Writer};
use crate::model::{Action, Cause, PodRef};
use crate::record::describe;
use crate::record::describe::Brevity;
use crate::record::read::RecordView;
use crate::record::{Body, Drop, Record, restrict};
use crate::sink::queue::Patience;
use crate::sink::{Delivery, Sink, SinkError};

/// What an agent may write: an API server has thousands of them.
pub const INTERVAL: Duration = Duration::from_secs(5);
pub const BURST: u32 = 20;
/// An Event is counted up this often at most.
const COUNT_UP: Duration = Duration::from_secs(60);
/// What has not happened for so long begins anew when it does; what was refused is tried again.
const FORGET: Duration = Duration::from_secs(600);
/// Different things that are counted, and those of one pod.
const CASES: usize = 1000;
const CASES_OF_POD: usize = 10;
/// Octets of a note, of the API's 1,024.
const NOTE: usize = 1000;
/// One request.
const ATTEMPT: Duration = Duration::from_secs(5);
/// After a failure, doubling from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The encoding, as records name it.
pub const FORMAT: &str = "events.k8s.io/v1";

#[derive(Debug)]
pub struct Events {
    writer: Writer,
    cases: HashMap<u64, Case>,
    /// Records that came into no Event and are not yet declared.
    lost: u64,
    /// The API server can't be asked: not before then, and why.
    away: Option<(Instant, Duration, String)>,
}

/// One Event and what it stands for.
#[derive(Debug)]
struct Case {
    pod: ObjectRef,
    policy: Option<ObjectRef>,
    note: String,
    first: Timestamp,
    last: Timestamp,
    /// Packets, and those of them that the Event tells.
    count: u64,
    told: u64,
    /// Records since it was written.
    untold: u64,
    /// Once written.
    name: Option<String>,
    not_before: Instant,
    seen: Instant,
    refused: Option<Instant>,
}

impl Case {
    fn happening(&self) -> Occurrence<'_> {
        let Case { pod, policy, note, first, last, count, .. } = self;
        Occurrence { pod, policy: policy.as_ref(), note, first: *first, last: *last, count: *count }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.count > self.told && self.refused.is_none() && self.not_before <= now
    }

    fn is_over(&self, now: Instant) -> bool {
        let refused = self.refused.is_some_and(|at| now.duration_since(at) > FORGET);
        refused || self.count == self.told && now.duration_since(self.seen) > FORGET
    }
}

impl Events {
    pub fn new(writer: Writer) -> Events {
        Events { writer, cases: HashMap::new(), lost: 0, away: None }
    }

    fn add(&mut self, record: &Record, drop: &Drop, now: Instant) {
        let Some((pod, is_source)) = whose(drop) else { return };
        let mut key = key(pod, drop);
        if !self.cases.contains_key(&key) {
            if self.cases.len() >= CASES {
                self.lost += 1;
                return;
            }
            let of_pod = self.cases.values().filter(|case| case.pod.is(pod)).count();
            let (note, policy) = if of_pod < CASES_OF_POD {
                note(record, pod, is_source)
            } else {
                key = hash((&pod.namespace, &pod.name, "others"));
                let command = format!("kubectl netpol-trace tail --pod {}/{}", pod.namespace, pod.name);
                (format!("Further connections were denied by NetworkPolicy; each is shown by: {command}"), None)
            };
            self.cases.entry(key).or_insert_with(|| Case::new(pod, policy, note, record.time, now));
        }
        let Some(case) = self.cases.get_mut(&key) else { return };
        case.last = case.last.max(drop.last_time.unwrap_or(record.time));
        case.seen = now;
        if case.refused.is_some() {
            self.lost += 1;
        } else {
            case.count += drop.count;
            case.untold += 1;
        }
    }

    /// Writes what is due, new ones first; all that is left when the agent stops.
    fn write(&mut self, stops: bool, patience: Patience<'_>) {
        let now = Instant::now();
        if !stops && self.away.as_ref().is_some_and(|(until, ..)| now < *until) {
            return;
        }
        let due = self.cases.iter().filter(|(_, case)| case.is_due(now) || stops && case.count > case.told);
        let mut due: Vec<_> = due.map(|(key, case)| (case.name.is_some(), case.first, *key)).collect();
        due.sort();
        for (_, _, key) in due {
            let limit = patience.left(ATTEMPT);
            let Some(case) = self.cases.get_mut(&key).filter(|_| !limit.is_zero()) else { break };
            let written = match &case.name {
                None => self.writer.create(&case.happening(), limit).map(|name| case.name = Some(name)),
                Some(name) => self.writer.count(name, &case.happening(), limit),
            };
            match written {
                Ok(()) => {
                    (case.told, case.untold) = (case.count, 0);
                    case.not_before = now + COUNT_UP;
                }
                Err(EventError::NotYet) => break,
                Err(EventError::Gone) => {
                    // A new one, for what the old one did not tell.
                    case.count -= case.told;
                    (case.name, case.told, case.first) = (None, 0, case.last);
                }
                Err(EventError::Refused(why)) => {
                    let pod = format!("{}/{}", case.pod.namespace, case.pod.name);
                    tracing::warn!(pod, why, "no Event for this pod; tried again in 10 minutes");
                    case.refused = Some(now);
                    self.lost += std::mem::take(&mut case.untold);
                }
                Err(EventError::Away(why)) => {
                    let before = self.away.as_ref().map_or(PAUSE.0 / 2, |(_, pause, _)| *pause);
                    let pause = (before * 2).min(PAUSE.1);
                    self.away = Some((now + pause, pause, why));
                    break;
                }
            }
            self.away = None;
        }
        self.cases.retain(|_, case| !case.is_over(now));
        if stops {
            self.lost += self.cases.drain().map(|(_, case)| case.untold).sum::<u64>();
            if self.lost > 0 {
                tracing::error!(records = self.lost, "the agent stops before these records came into Events");
            }
        }
    }
}

impl Sink for Events {
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
                Body::Status(status) => stops |= status.phase == crate::model::Phase::Stopped,
                _ => {}
            }
        }
        self.write(stops, patience);
        let rejected = self.lost.min(records.len() as u64);
        self.lost -= rejected;
        // They wait in the table: none is lost by it yet.
        let error = self.away.as_ref().map(|(_, _, why)| SinkError::Refused {
            name: self.name(),
            reason: "unreachable",
            message: why.clone(),
        });
        Delivery { rejected, error, ..Delivery::all(records) }
    }
}

impl Case {
    fn new(pod: &PodRef, policy: Option<ObjectRef>, note: String, time: Timestamp, now: Instant) -> Case {
        let pod = ObjectRef { namespace: pod.namespace.clone(), name: pod.name.clone(), uid: pod.uid.clone() };
        Case {
            pod,
            policy,
            note,
            first: time,
            last: time,
            count: 0,
            told: 0,
            untold: 0,
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

/// The pod that misses something: the one that opened the connection, or the one that a stranger wanted to reach.
fn whose(drop: &Drop) -> Option<(&PodRef, bool)> {
    let source = drop.source.pod.as_deref().map(|pod| (pod, true));
    source.or_else(|| drop.destination.pod.as_deref().map(|pod| (pod, false)))
}

/// What makes one Event: the pod, what it could not reach, and by which policies.
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
