//! `netpol-trace doctor`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;

use super::cluster::ClusterArgs;
use super::input::TextOrJson;
use crate::cluster::api::review::review;
use crate::doctor::facts::HookCheck;
use crate::doctor::{self, can_record, diagnose, gather, text};
use crate::inventory::Inventory;
use crate::kernel::probe::probe;
use crate::kernel::{self, programs};
use crate::text::escape;

/// Report what the agent can and cannot show on this node, and what to grant.
///
/// Changes nothing: loads the eBPF programs once and removes them. Run it with the agent's rights; as an ordinary user it lists what it could
/// not check.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  netpol-trace doctor                       as root, or with the agent's capabilities
  netpol-trace doctor -o json | jq '.[] | select(.status != \"ok\")'
  kubectl exec -n netpol-trace ds/netpol-trace -- /netpol-trace doctor

Exit codes: 0 drops can be recorded, 1 they cannot, 2 wrong arguments.")]
pub struct DoctorArgs {
    /// Text for people, or JSON: an array of {check, status: ok|warn|fail, found, meaning, remedy}
    #[arg(short, long, value_enum, default_value = "text")]
    output: TextOrJson,
    /// Remove what an agent left on this node, and print it: tc filters of a killed agent (before Linux 6.6), and the hook and counts of
    /// `agent --survive-restart`. Removes the filters of a running agent too.
    #[arg(long, conflicts_with = "output")]
    cleanup: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    if args.cleanup {
        return cleanup();
    }
    let hooks = probe().into_iter().map(|probe| HookCheck {
        name: probe.hook.to_owned(),
        result: probe.result,
        costs: probe.costs.map(str::to_owned),
    });
    let mut findings = diagnose(&gather(hooks.collect()), &Inventory::read(programs::linked));
    findings.extend(doctor::api(review(&args.cluster.access())));
    let printed = match args.output {
        TextOrJson::Text => text(&findings),
        TextOrJson::Json => serde_json::to_string_pretty(&findings)? + "\n",
    };
    match std::io::stdout().write_all(printed.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        done => done?,
    }
    Ok(if can_record(&findings) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cleanup() -> anyhow::Result<ExitCode> {
    let mut removed = kernel::tc::cleanup().context("cannot list the interfaces")?;
    removed.extend(kernel::pins::cleanup(kernel::pins::FOLDER.as_ref()).context("cannot remove the pins")?);
    let mut out = std::io::stdout().lock();
    match removed.as_slice() {
        [] => writeln!(out, "Found nothing of netpol-trace on this node's interfaces or among the pins.")?,
        removed => removed.iter().try_for_each(|what| writeln!(out, "removed {}", escape(what)))?,
    }
    Ok(ExitCode::SUCCESS)
}
