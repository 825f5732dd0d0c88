//! Builds the status: the agent's state and its packet accounting, for status records, /metrics and the probes.

use jiff::Timestamp;
use netpol_trace_common::tc::FlowCounters;

use crate::cluster::source::SourceStatus;
use crate::inventory::{Inventory, coverage};
use crate::kernel::attach::Attached;
use crate::kernel::counters::CounterReading;
use crate::kernel::hook::AttachForm;
use crate::kernel::symbols::SymbolsError;
use crate::kernel::tc;
use crate::model::{ConnectionTotals, HistoryState, HookMode, HookState, RunPhase, SourceState, Totals};
use crate::pipeline::Pipeline;
use crate::record::Status;

/// The part of the status that does not change during a run.
#[derive(Debug)]
pub struct StartState {
    /// The hooks as they were attached.
    pub hooks: Vec<HookState>,
    pub previous_run: Option<String>,
}

/// The kernel programs' counters; `None` where they cannot be read.
#[derive(Debug)]
pub struct KernelReadings {
    pub drops: Option<CounterReading>,
    pub tc: Option<FlowCounters>,
}

impl StartState {
    pub fn status(&self, phase: RunPhase, pipeline: &Pipeline, kernel: KernelReadings, now: Timestamp) -> Status {
        let (kept, crowded_out) = pipeline.cluster().read().history();
        let mut hooks = self.hooks.clone();
        hooks.extend(pipeline.inventory().map(|inventory| rulesets(&inventory)));
        hooks.extend(pipeline.flows.iter().map(|flows| tc_hook(&flows.kernel().interfaces)));
        Status {
            phase,
            version: env!("CARGO_PKG_VERSION").into(),
            previous_run: self.previous_run.clone(),
            totals: Totals {
                kernel: kernel.drops.as_ref().map(|reading| reading.totals),
                agent: pipeline.accounting.totals(&pipeline.intake, pipeline.output.primary()),
            },
            causes: pipeline.output.not_lost(pipeline.accounting.causes.clone()),
            not_recorded: kernel.drops.map(|reading| reading.not_recorded).unwrap_or_default(),
            connections: kernel.tc.map(|counters| connections(&counters, pipeline)),
            hooks,
            config: pipeline.configured.file.as_ref().map(|file| file.state(now)),
            sources: pipeline.cluster().sources().iter().map(|source| source_state(source, now)).collect(),
            history: HistoryState { kept: kept as u64, crowded_out },
            sinks: pipeline.output.states(),
        }
    }
}

/// Whether each source is in sync, and its error. The worker writes a status when this changes.
pub type SourceSummary = Vec<(String, bool, Option<String>)>;

pub fn source_summary(pipeline: &Pipeline) -> SourceSummary {
    pipeline.cluster().sources().into_iter().map(|source| (source.name, source.synced, source.error)).collect()
}

fn source_state(source: &SourceStatus, now: Timestamp) -> SourceState {
    SourceState {
        name: source.name.clone(),
        synced: source.synced,
        age_seconds: u64::try_from(now.duration_since(source.loaded_at).as_secs()).unwrap_or(0),
        objects: source.objects.clone(),
        skipped: source.skipped.clone(),
        error: source.error.clone(),
        detail: source.detail.clone(),
    }
}

fn connections(counters: &FlowCounters, pipeline: &Pipeline) -> ConnectionTotals {
    let tally = pipeline.flows.as_ref().map(|flows| flows.tally).unwrap_or_default();
    ConnectionTotals {
        opened: counters.opened,
        reported: counters.reported,
        lost: counters.lost_ring + counters.lost_full + counters.lost_insert,
        unanswered: tally.unanswered,
        unanswered_unreported: tally.unanswered_unreported,
        unread: counters.unread,
    }
}

fn tc_hook(interfaces: &tc::Interfaces) -> HookState {
    HookState::new("tc", interfaces.mode().hook_mode(), Some(interfaces.describe()))
}

/// Returns the state of the kfree_skb hook.
pub fn drop_hook(attached: &Attached, symbols: Option<&SymbolsError>) -> HookState {
    let (mode, mut detail) = match attached.hook() {
        AttachForm::BtfTracepoint => (HookMode::BtfTracepoint, None),
        AttachForm::RawTracepoint(why) => (HookMode::RawTracepoint, Some(format!("BTF tracepoint refused: {why}"))),
    };
    if let Some(error) = symbols {
        detail = Some(format!("{}reasons only: {error}", detail.map(|d| d + "; ").unwrap_or_default()));
    }
    HookState::new("kfree_skb", mode, detail)
}

/// Returns which parts of the rulesets can be read, and which mechanisms drop packets that the agent cannot see.
fn rulesets(inventory: &Inventory) -> HookState {
    let unknown = inventory.unknown();
    let mode = if unknown.is_empty() { HookMode::Read } else { HookMode::PartlyRead };
    let mut limits = coverage::uncovered(inventory, crate::kernel::release());
    if !unknown.is_empty() {
        let unknown = unknown.join(", ");
        limits.push(format!("{unknown}: whose rule it was, and whether it drops or rejects, stays unknown there"));
    }
    HookState::new("rulesets", mode, (!limits.is_empty()).then(|| limits.join("; ")))
}
