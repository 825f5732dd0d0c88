//! The content of /metrics and the probes. The worker publishes its state once a second, and a scrape reads that without waiting.

pub mod catalogue;
pub mod text;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use catalogue as c;
use foldhash::fast::RandomState;
use jiff::Timestamp;
use text::MetricsPage;

use crate::lock::IgnorePoison;
use crate::model::{Direction, LossReason, LossStage};
use crate::record::{Body, Drop, Status};

/// Limit of label sets of one metric. Further namespaces are counted under [`OTHER`].
const MAX_SERIES: usize = 10_000;
const OTHER: &str = "_other";
/// A worker that has published nothing for this long is stuck.
const STUCK: Duration = Duration::from_secs(30);

/// The agent's numbers, which sinks and the worker update and the listener reads.
#[derive(Debug)]
pub struct Metrics {
    started: Timestamp,
    state: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// By direction and cause, then by namespace.
    denied: BTreeMap<(&'static str, &'static str), HashMap<String, u64, RandomState>>,
    /// Number of series in `denied`.
    series: usize,
    unanswered: u64,
    policy_changes: u64,
    errors: BTreeMap<(&'static str, &'static str), u64>,
    published: Option<(Arc<Published>, Instant)>,
}

/// What the worker publishes.
#[derive(Debug)]
pub struct Published {
    /// The state, as in a status record of phase `running`.
    pub status: Status,
    /// Losses of this run.
    pub losses: Vec<((LossStage, LossReason), u64)>,
    pub queued: u64,
    pub queue_size: u64,
    pub ring_peak: u64,
    pub ring_size: u64,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics { started: Timestamp::now(), state: Mutex::default() }
    }
}

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.state.lock().ignore_poison()
    }

    /// Counts a record.
    pub fn count(&self, body: &Body) {
        match body {
            Body::Drop(drop) => {
                let mut state = self.lock();
                let (direction, cause) = (drop.direction.map_or("unknown", Direction::as_str), drop.cause.as_str());
                let Counts { denied, series, .. } = &mut *state;
                let namespaces = denied.entry((direction, cause)).or_default();
                let namespace = denying_namespace(drop);
                // Does not allocate for a namespace that is counted already.
                if let Some(count) = namespaces.get_mut(namespace) {
                    *count += drop.count;
                    return;
                }
                let namespace = if *series < MAX_SERIES { namespace } else { OTHER };
                *series += usize::from(*series < MAX_SERIES);
                *namespaces.entry(namespace.into()).or_default() += drop.count;
            }
            Body::Unanswered(unanswered) => self.lock().unanswered += unanswered.count,
            Body::PolicyChange(change) => self.lock().policy_changes += u64::from(change.policy.is_some()),
            Body::Loss(_) | Body::Status(_) => {}
        }
    }

    /// Counts an error by its stage and kind.
    pub fn error(&self, stage: &'static str, kind: &'static str) {
        *self.lock().errors.entry((stage, kind)).or_default() += 1;
    }

    pub fn publish(&self, published: Published) {
        self.lock().published = Some((Arc::new(published), Instant::now()));
    }

    fn published(&self) -> Option<(Arc<Published>, Duration)> {
        self.lock().published.as_ref().map(|(published, at)| (published.clone(), at.elapsed()))
    }

    /// Answers /healthz: whether the worker makes progress.
    ///
    /// # Errors
    /// The text says what is wrong.
    pub fn healthy(&self) -> Result<(), String> {
        match self.published() {
            Some((_, age)) if age > STUCK => Err(format!("the pipeline has been stuck for {} s", age.as_secs())),
            _ => Ok(()),
        }
    }

    /// Answers /readyz: whether the hooks are attached and each source is in sync or has an error. Returns a line for each output that
    /// fails; the agent is ready all the same, because the others work.
    ///
    /// # Errors
    /// The text says what is missing.
    pub fn ready(&self) -> Result<String, String> {
        self.healthy()?;
        let Some((published, _)) = self.published() else {
            return Err("not started yet: hooks or sources are missing".into());
        };
        let is_pending = |source: &&crate::model::SourceState| !source.synced && source.error.is_none();
        match published.status.sources.iter().find(is_pending) {
            Some(source) => Err(format!("source {} is not in sync yet", source.name)),
            None => {
                let failing = published.status.sinks.iter().filter(|sink| sink.error.is_some());
                Ok(failing.map(|sink| format!("output {} fails: see `sinks` of status records\n", sink.name)).collect())
            }
        }
    }

    /// Returns the page of /metrics.
    pub fn page(&self) -> String {
        let mut page = MetricsPage::default();
        page.family(&c::BUILD_INFO, [([env!("CARGO_PKG_VERSION")], 1)]);
        page.one(&c::START, u64::try_from(self.started.as_second()).unwrap_or_default());
        let published = {
            let state = self.lock();
            let denied = state.denied.iter().flat_map(|((direction, cause), namespaces)| {
                let mut namespaces: Vec<_> = namespaces.iter().collect();
                namespaces.sort_unstable();
                namespaces.into_iter().map(|(namespace, n)| ([*direction, *cause, namespace.as_str()], *n))
            });
            page.family(&c::DENIED, denied);
            page.one(&c::UNANSWERED, state.unanswered);
            page.one(&c::POLICY_CHANGES, state.policy_changes);
            page.family(&c::ERRORS, state.errors.iter().map(|((stage, kind), n)| ([*stage, *kind], *n)));
            state.published.as_ref().map(|(published, at)| (published.clone(), at.elapsed()))
        };
        if let Some((published, age)) = published {
            write_published(&mut page, &published, age);
        }
        page.finish()
    }
}

fn write_published(page: &mut MetricsPage, published: &Published, age: Duration) {
    let Published { status, losses, .. } = published;
    page.family(&c::PACKETS, status.causes.iter().map(|(of, n)| ([of.as_str()], *n)));
    page.family(&c::LOST, losses.iter().map(|((stage, reason), n)| ([stage.as_str(), reason.as_str()], *n)));
    let (kernel, agent) = (status.totals.kernel, status.totals.agent);
    // Left out if they cannot be read: a counter that falls to zero would look like a restart.
    if let Some(kernel) = kernel {
        for (metric, value) in [
            (&c::SEEN, kernel.seen),
            (&c::MATCHED, kernel.matched),
            (&c::EMITTED, kernel.emitted),
            (&c::AGGREGATED, kernel.aggregated),
            (&c::KERNEL_LOST, kernel.lost),
            (&c::RECURSION, kernel.recursion_misses),
        ] {
            page.one(metric, value);
        }
    }
    page.family(&c::NOT_RECORDED, status.not_recorded.iter().map(|(reason, n)| ([reason], *n)));
    for (metric, value) in [
        (&c::READ, agent.read),
        (&c::WRITTEN, agent.written),
        (&c::FILTERED, agent.filtered),
        (&c::HELD, agent.held),
        (&c::AGENT_LOST, agent.lost),
        (&c::QUEUE, published.queued),
        (&c::QUEUE_SIZE, published.queue_size),
        (&c::RING_PEAK, published.ring_peak),
        (&c::RING_SIZE, published.ring_size),
    ] {
        page.one(metric, value);
    }
    let sinks = &status.sinks;
    page.family(&c::SINK_WRITTEN, sinks.iter().map(|sink| ([&sink.name], sink.written)));
    page.family(&c::SINK_LOST, sinks.iter().map(|sink| ([&sink.name], sink.lost)));
    page.family(&c::SINK_RECORDS, sinks.iter().map(|sink| ([&sink.name], sink.records)));
    page.family(&c::SINK_QUEUE, sinks.iter().map(|sink| ([&sink.name], sink.queued)));
    page.family(&c::SINK_QUEUE_SIZE, sinks.iter().map(|sink| ([&sink.name], crate::model::SINK_QUEUE_RECORDS as u64)));
    page.family(&c::SINK_FAILING, sinks.iter().map(|sink| ([&sink.name], u64::from(sink.error.is_some()))));
    if let Some(connections) = status.connections {
        page.one(&c::OPENED, connections.opened);
        page.one(&c::REPORTED, connections.reported);
        page.one(&c::CONNECTIONS_LOST, connections.lost);
    }
    let hooks = status.hooks.iter();
    page.family(&c::HOOK, hooks.map(|hook| ([&hook.name, &hook.state], u64::from(hook.is_active()))));
    if let Some(config) = &status.config {
        page.one(&c::CONFIG_OK, u64::from(config.error.is_none()));
        page.one(&c::CONFIG_AGE, config.age_seconds + age.as_secs());
        page.one(&c::CONFIG_PENDING, config.pending.len() as u64);
    }
    let sources = &status.sources;
    page.family(&c::SYNCED, sources.iter().map(|source| ([&source.name], u64::from(source.synced))));
    page.family(&c::AGE, sources.iter().map(|source| ([&source.name], source.age_seconds + age.as_secs())));
    let objects =
        sources.iter().flat_map(|source| source.objects.iter().map(move |(kind, n)| ([&source.name, kind], *n)));
    page.family(&c::OBJECTS, objects);
}

/// Returns the namespace of the pod whose policy denied, or of either pod if the side is not known.
fn denying_namespace(drop: &Drop) -> &str {
    let end = match drop.direction {
        Some(Direction::Egress) => &drop.source,
        Some(Direction::Ingress) => &drop.destination,
        None if drop.destination.pod.is_some() => &drop.destination,
        None => &drop.source,
    };
    end.pod.as_ref().map(|pod| pod.namespace.as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ConfigState, HookMode, HookState};
    use crate::record::Record;

    fn status() -> Status {
        let mut records = include_str!("../../tests/golden/records.jsonl").lines();
        let status = records.find_map(|line| match serde_json::from_str::<Record>(line).unwrap().body {
            Body::Status(status) => Some(*status),
            _ => None,
        });
        status.expect("an example of a status")
    }

    fn page(status: Status) -> String {
        let metrics = Metrics::default();
        let losses = Vec::new();
        metrics.publish(Published { status, losses, queued: 0, queue_size: 1, ring_peak: 0, ring_size: 1 });
        metrics.page()
    }

    #[test]
    fn a_config_file_that_was_refused_shows() {
        let without = page(Status { config: None, ..status() });
        assert!(!without.contains("netpol_trace_config_"), "{without}");
        for (error, successful) in [(None, 1), (Some("config.yaml:2: unknown key".to_owned()), 0)] {
            let config =
                ConfigState { path: "config.yaml".into(), age_seconds: 7, error, pending: vec!["ring-kib".into()] };
            let page = page(Status { config: Some(config), ..status() });
            for line in [
                format!("netpol_trace_config_last_reload_successful {successful}\n"),
                "netpol_trace_config_age_seconds 7\n".to_owned(),
                "netpol_trace_config_pending_options 1\n".to_owned(),
            ] {
                assert!(page.contains(&line), "{page}");
            }
        }
    }

    #[test]
    fn a_refused_hook_differs_from_one_that_is_off() {
        let hook = |name, mode| HookState::new(name, mode, None);
        let hooks = vec![
            hook("kfree_skb", HookMode::BtfTracepoint),
            hook("tc", HookMode::Refused),
            hook("reject", HookMode::Off),
        ];
        let page = page(Status { hooks, ..status() });
        for line in [
            "{hook=\"kfree_skb\",state=\"btf_tracepoint\"} 1\n",
            "{hook=\"tc\",state=\"refused\"} 0\n",
            "{hook=\"reject\",state=\"off\"} 0\n",
        ] {
            assert!(page.contains(&format!("netpol_trace_hook_active{line}")), "{page}");
        }
    }
}
