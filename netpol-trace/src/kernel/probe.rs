//! Probes which hooks this kernel accepts, for `doctor`.

use super::errors::KernelError;
use super::hook::AttachForm;
use super::open::open;
use super::options::KernelOptions;
use super::tc;

/// The result of loading, attaching and detaching one hook.
#[derive(Debug)]
pub struct HookProbe {
    pub hook: &'static str,
    pub result: Result<String, String>,
    /// What records lack without the hook. `None`: without it there are no records of drops.
    pub costs: Option<&'static str>,
}

/// Loads and attaches each hook, and detaches it again.
pub fn probe() -> Vec<HookProbe> {
    let mut probes = Vec::new();
    let drops = open(&KernelOptions { ring_bytes: 4096 * 16, ..KernelOptions::default() });
    let result = drops.as_ref().map_err(why).map(|(attached, ..)| match attached.hook() {
        AttachForm::BtfTracepoint => "as BTF tracepoint".to_owned(),
        AttachForm::RawTracepoint(why) => format!("as raw tracepoint (BTF tracepoint: {why})"),
    });
    probes.push(HookProbe { hook: "kfree_skb", result, costs: None });
    if let Ok((attached, ..)) = &drops {
        let rejects = attached.rejects();
        let costs = "where the kernel does not show a reject, the rules decide, and `action` is `unknown` where a rule that \
                     drops and a rule that rejects may match";
        let result = match rejects.describe() {
            Ok(what) if rejects.is_complete() => Ok(what.to_owned()),
            Ok(what) => Err(format!("partly: {what}")),
            Err(why) => Err(why),
        };
        probes.push(HookProbe { hook: "reject", result, costs: Some(costs) });
    }
    let mode = tc::TcMode::of_this_kernel();
    let how = match mode {
        tc::TcMode::Tcx => "by TCX",
        tc::TcMode::Clsact => "as clsact filter; off by default here: --hooks kfree_skb,tc",
    };
    let costs = "records lack DNS names and, without conntrack, the address that was asked for; connections without an \
                 answer go unseen";
    let result = tc::try_out(mode).map(|()| how.to_owned()).map_err(|error| error.to_string());
    probes.push(HookProbe { hook: "tc", result, costs: Some(costs) });
    probes
}

fn why(error: &KernelError) -> String {
    match error {
        // doctor has a finding of its own that says what to grant.
        KernelError::NotPermitted(why) | KernelError::LockedDown(why) => why.clone(),
        error => error.to_string(),
    }
}
