//! `netpol-trace replay`: evaluates recorded drops with edited policies.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::input::{self, ClusterInput, Cni, InputError, TextOrJson, is_stdin};
use crate::cluster::Index;
use crate::model::{Verdict, VerdictResult};
use crate::policy;
use crate::policy::CniOptions;
use crate::recorded::connections::RecordedConnection;
use crate::text::{counted, escape};

/// Evaluate edited policies for recorded drops: which would pass now, which would still be dropped, and why.
///
/// Records hold only drops, so replay cannot tell whether the edit breaks a connection that passes today.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Pods and namespaces that are not in the manifests are taken from the records, with the labels that they had.

Exit codes: 0 every recorded drop would pass now, or the records have no drop by policy; 1 some would still be dropped; 2 wrong arguments,
input with errors, or a log that has no record or cannot be read to its end (what was read counts); 3 none would be dropped, but some are
undetermined.

Examples:
  netpol-trace replay drops.jsonl --manifests cluster.yaml --manifests edited/
  netpol-trace replay 'drops.jsonl*' --manifests edited/                 rotated and compressed logs too")]
pub struct ReplayArgs {
    /// Records of the agent: files of JSON lines (also gzip or zstd), quoted patterns, the folder of an agent's --history-dir, or -
    /// for standard input
    #[arg(value_name = "RECORDS", required = true)]
    records: Vec<PathBuf>,
    #[command(flatten)]
    source: ClusterInput,
    #[arg(short, long, value_enum, default_value = "text")]
    output: TextOrJson,
    #[command(flatten)]
    cni: Cni,
}

pub fn run(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    input::finish("replay", work(args))
}

fn work(args: &ReplayArgs) -> Result<ExitCode, InputError> {
    if args.records.iter().any(|path| is_stdin(path)) && args.source.is_stdin() {
        return Err(InputError::TwoInputs("RECORDS and --manifests"));
    }
    let mut index = args.source.load()?;
    let recorded = input::records(&args.records)?;
    let (nothing, broken, log) = (recorded.nothing_to("evaluate"), recorded.broken, recorded.log);
    for object in log.missing_objects(&index) {
        index.upsert(object);
    }
    let replay = Replay::of(&index, &args.cni.options(), &log.connections);
    input::print(&match args.output {
        TextOrJson::Text => nothing.map_or_else(|| replay.text(), |nothing| escape(&nothing).into_owned() + "\n"),
        TextOrJson::Json => input::json(&replay)?,
    })?;
    if broken {
        return Ok(ExitCode::from(input::USAGE_OR_INPUT));
    }
    Ok(ExitCode::from(match (replay.still_dropped, replay.undetermined) {
        (0, 0) => 0,
        (0, _) => 3,
        _ => 1,
    }))
}

#[derive(Debug, Serialize)]
struct Replay {
    /// Recorded connections that the edited policies allow.
    would_pass: usize,
    still_dropped: usize,
    undetermined: usize,
    not_evaluated: &'static str,
    connections: Vec<ReplayedConnection>,
}

#[derive(Debug, Serialize)]
struct ReplayedConnection {
    connection: String,
    /// Packets recorded.
    packets: u64,
    verdict: Verdict,
    /// In one line.
    why: String,
}

const NOT_EVALUATED: &str = "Connections that passed are not in the records, so this does not show whether the edited policies break one of them.";

impl Replay {
    fn of(index: &Index, options: &CniOptions, recorded: &[RecordedConnection]) -> Replay {
        let mut connections: Vec<ReplayedConnection> =
            recorded.iter().map(|recorded| replayed(index, options, recorded)).collect();
        // Connections that would still be dropped come first.
        connections.sort_by_key(|c| match c.verdict.result {
            VerdictResult::Denied => 0,
            VerdictResult::Undetermined => 1,
            VerdictResult::Allowed => 2,
        });
        let count = |result| connections.iter().filter(|c| c.verdict.result == result).count();
        Replay {
            would_pass: count(VerdictResult::Allowed),
            still_dropped: count(VerdictResult::Denied),
            undetermined: count(VerdictResult::Undetermined),
            not_evaluated: NOT_EVALUATED,
            connections,
        }
    }

    fn text(&self) -> String {
        let Replay { would_pass, still_dropped, undetermined, connections, .. } = self;
        let mut text = format!(
            "{would_pass} of {} would pass, {still_dropped} still {}, {undetermined} are undetermined.\n",
            counted(connections.len() as u64, "recorded connection"),
            if *still_dropped == 1 { "drops" } else { "drop" }
        );
        for replayed in connections {
            let word = match replayed.verdict.result {
                VerdictResult::Denied => "still drops",
                VerdictResult::Undetermined => "undetermined",
                VerdictResult::Allowed => "would pass",
            };
            let ReplayedConnection { connection, packets, why, .. } = replayed;
            text += &format!(
                "  {word:<12}  {} ({} recorded)\n                {}\n",
                escape(connection),
                counted(*packets, "packet"),
                escape(why)
            );
        }
        text + NOT_EVALUATED + "\n"
    }
}

fn replayed(index: &Index, options: &CniOptions, recorded: &RecordedConnection) -> ReplayedConnection {
    let verdict = policy::verdict_of(index, &recorded.connection(index), options);
    let why = policy::summary(&verdict);
    ReplayedConnection { connection: recorded.title(), packets: recorded.packets, verdict, why }
}
