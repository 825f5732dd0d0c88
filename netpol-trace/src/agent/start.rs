//! What the agent opens at its start: outputs, hooks and the run's id.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};

use super::{AgentConfig, HistoryConfig, HookName, reader, status};
use crate::kernel;
use crate::kernel::tc::{TcHook, TcMode};
use crate::model::{HookMode, HookState};
use crate::sink::fan_out::FanOut;
use crate::sink::history::{self, HistorySink};
use crate::sink::spec::OutputSpec;
use crate::sink::{RecordIds, Sink};

/// The hooks that could be attached, and the state of all.
pub struct Hooks {
    pub drops: Option<reader::DropInput>,
    pub tc: Option<TcHook>,
    pub states: Vec<HookState>,
}

/// Loads and attaches the hooks. Both at once: half of the time goes to the kernel's verifier.
pub fn open_hooks(config: &AgentConfig) -> anyhow::Result<Hooks> {
    let chosen = config.hooks.as_deref();
    let (mut states, mut tc_states) = (Vec::new(), Vec::new());
    let (drops, tc) = std::thread::scope(|scope| {
        let tc = scope.spawn(|| open_tc(chosen, &mut tc_states));
        let drops = wants(chosen, HookName::KfreeSkb).then(|| open_drops(config, &mut states));
        let tc = tc.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        anyhow::Ok((drops.transpose()?, tc?))
    })?;
    states.append(&mut tc_states);
    Ok(Hooks { drops, tc, states })
}

/// Returns true if a hook is requested; without `--hooks` every hook is.
fn wants(hooks: Option<&[HookName]>, hook: HookName) -> bool {
    hooks.is_none_or(|hooks| hooks.contains(&hook))
}

/// Opens every sink. The first one is the primary sink.
pub fn open_output(config: &AgentConfig, run: &str) -> anyhow::Result<FanOut> {
    let mut output = FanOut::new(RecordIds::new(run.to_owned(), config.cluster.clone(), config.node.clone()));
    let specs = if config.outputs.is_empty() { &[OutputSpec::STDOUT] } else { config.outputs.as_slice() };
    for (at, spec) in specs.iter().enumerate() {
        let (spec, default) = (spec.clone(), config.format);
        let (access, node) = (config.access.clone(), config.node.clone());
        let (name, format) = (spec.destination.to_string(), spec.format_name(default));
        let open = move || spec.open(default, &access, node.as_deref());
        match at {
            0 => output.add(open()?)?,
            _ => output.add_secondary(name, format, Box::new(open))?,
        }
    }
    if let Some(HistoryConfig { folder, readers, bytes }) = config.history.clone() {
        let run = run.to_owned();
        let open = move || {
            let opened = HistorySink::open(&folder, readers, &run, bytes).context("--history-dir")?;
            Ok(Box::new(opened) as Box<dyn Sink>)
        };
        output.add_secondary(history::NAME.to_owned(), history::FORMAT.as_str(), Box::new(open))?;
    }
    Ok(output)
}

/// Loads and attaches the kfree_skb hook.
fn open_drops(config: &AgentConfig, states: &mut Vec<HookState>) -> anyhow::Result<reader::DropInput> {
    let window: Duration = config.aggregation_window;
    let (mut attached, names, symbols_error) = kernel::open(&kernel::KernelOptions {
        all_drops: config.all_drops,
        ring_bytes: config.ring_bytes,
        aggregate: !window.is_zero(),
        survive_restart: config.survive_restart,
        pin_folder: config.pin_folder.clone(),
        ..kernel::KernelOptions::default()
    })?;
    if let Some(error) = &symbols_error {
        tracing::warn!("{error}; drops are recorded by reason only, without location and mechanism");
    }
    if attached.locations_left_out > 0 {
        tracing::warn!(ranges = attached.locations_left_out, "code ranges without room in the programs' table");
    }
    let ring = attached.take_ring().ok_or_else(|| anyhow!("the ring buffer is already taken"))?;
    let aggregator = attached.take_aggregator().ok_or_else(|| anyhow!("the counts are already taken"))?;
    let counters = attached.take_counters().ok_or_else(|| anyhow!("the counters are already taken"))?;
    states.push(status::drop_hook(&attached, symbols_error.as_ref()));
    states.push(attached.rejects().state());
    Ok(reader::DropInput { ring, aggregator, window, names, attached, counters: Arc::new(counters) })
}

/// Loads and attaches the tc hook. If it cannot be attached and another hook is requested too, its state has the reason.
fn open_tc(chosen: Option<&[HookName]>, states: &mut Vec<HookState>) -> anyhow::Result<Option<TcHook>> {
    if !wants(chosen, HookName::Tc) {
        return Ok(None);
    }
    let mode = TcMode::of_this_kernel();
    if chosen.is_none() && mode == TcMode::Clsact {
        let why = "off by default before Linux 6.6, where tc filters outlive a killed agent: --hooks kfree_skb,tc";
        tracing::info!("tc hook {why}");
        states.push(HookState::new("tc", HookMode::Off, Some(why.to_owned())));
        return Ok(None);
    }
    match kernel::tc::open(mode) {
        Ok(opened) => Ok(Some(opened)),
        Err(error) if wants(chosen, HookName::KfreeSkb) => {
            tracing::warn!("no tc hook: {error}; records lack DNS names, and connections without an answer go unseen");
            states.push(HookState::new("tc", HookMode::Refused, Some(error.to_string())));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Makes the run's id: 64 random bits as 16 hexadecimal digits. Ids of records begin with it, and stores use them as keys. Among a million
/// runs two have the same id with a probability of 1 in 37 million.
pub fn run_id() -> anyhow::Result<String> {
    let random = getrandom::u64().context("the kernel returned no random bytes for the id of the run")?;
    Ok(format!("{random:016x}"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    /// With 32 bits, one of ten attempts with 30,000 runs had two of the same id.
    #[test]
    fn runs_have_different_ids() {
        let ids: HashSet<String> = (0..300_000).map(|_| super::run_id().unwrap()).collect();
        assert_eq!(ids.len(), 300_000);
        assert!(ids.iter().all(|id| id.len() == 16 && id.bytes().all(|digit| digit.is_ascii_hexdigit())));
    }
}
