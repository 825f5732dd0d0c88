//! Which hooks this kernel lets us load, for `doctor`.

use super::{KernelError, Options, hook, tc};

/// The outcome of loading and attaching one hook, after which it is detached again.
#[derive(Debug)]
pub struct Probe {
    pub hook: &'static str,
    pub result: Result<String, String>,
    /// Without it drops are recorded all the same, with less said about them: this.
    pub costs: Option<&'static str>,
}

/// Tries each hook for real.
pub fn probe() -> Vec<Probe> {
    let mut probes = Vec::new();
    let drops = super::open(&Options { ring_bytes: 4096 * 16, ..Options::default() });
    let result = drops.as_ref().map_err(why).map(|(attached, ..)| match attached.hook() {
        hook::Hook::BtfTracepoint => "as BTF tracepoint".to_owned(),
        hook::Hook::RawTracepoint(why) => format!("as raw tracepoint (BTF tracepoint: {why})"),
    });
    probes.push(Probe { hook: "kfree_skb", result, costs: None });
    if let Ok((attached, ..)) = &drops {
        let rejects = attached.rejects();
        let costs =
            "whether a rule drops or rejects is told by the rules alone, and stays unknown where both are there";
        let result = match rejects.describe() {
            Ok(what) if rejects.is_complete() => Ok(what.to_owned()),
            Ok(what) => Err(format!("only in part: {what}")),
            Err(why) => Err(why),
        };
        probes.push(Probe { hook: "reject", result, costs: Some(costs) });
    }
    let mode = tc::Mode::of_this_kernel();
    let how = match mode {
        tc::Mode::Tcx => "by TCX",
        tc::Mode::Clsact => "as clsact filter; off by default here: --hooks kfree_skb,tc",
    };
    let costs = "records lack DNS names and, without conntrack, the address that was asked for; connections without an \
                 answer go unseen";
    let result = tc::try_out(mode).map(|()| how.to_owned()).map_err(|error| error.to_string());
    probes.push(Probe { hook: "tc", result, costs: Some(costs) });
    probes
}

fn why(error: &KernelError) -> String {
    match error {
        // Its message says what to grant, which is a finding of its own.
        KernelError::NotPermitted(why) | KernelError::LockedDown(why) => why.clone(),
        error => error.to_string(),
    }
}
