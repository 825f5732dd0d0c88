//! `netpol-trace replay`: recorded drops against edited policies.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::input::{self, ClusterInput, Cni, InputError, TextOrJson, is_stdin};
use crate::cluster::Index;
use crate::model::{Verdict, VerdictResult};
use crate::policy;
use crate::policy::Options;
use crate::recorded::connections::RecordedConnection;
use crate::text::{counted, escape};

/// Judge recorded drops by edited policies: which would now pass, which still drop, and why.
///
/// Records hold drops only: connections that passed are not in them, so whether the edit breaks one of those is not judged.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Pods and namespaces that the manifests lack are taken from the records, with the labels they had.

Exit codes: 0 every recorded drop would pass now, or the records hold no drop by policy; 1 some still drop; 3 none still
drops but some can't be told; 2 wrong usage, input with errors, or a log that holds no record or can't be read to its end
(what was read counts).

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
    let (nothing, broken, log) = (recorded.nothing_to("judge"), recorded.broken, recorded.log);
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
    /// Recorded connections by what the edited policies make of them.
    would_pass: usize,
    still_dropped: usize,
    undetermined: usize,
    not_judged: &'static str,
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

const NOT_JUDGED: &str =
    "Connections that passed are not in the records, so whether the edited policies break one of them was not judged.";

impl Replay {
    fn of(index: &Index, options: &Options, recorded: &[RecordedConnection]) -> Replay {
        let mut connections: Vec<ReplayedConnection> =
            recorded.iter().map(|recorded| replayed(index, options, recorded)).collect();
        // What still fails is what the reader came for.
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
            not_judged: NOT_JUDGED,
            connections,
        }
    }

    fn text(&self) -> String {
        let Replay { would_pass, still_dropped, undetermined, connections, .. } = self;
        let mut text = format!(
            "{would_pass} of {} would pass, {still_dropped} still {}, {undetermined} can't be told.\n",
            counted(connections.len() as u64, "recorded connection"),
            if *still_dropped == 1 { "drops" } else { "drop" }
        );
        for judged in connections {
            let word = match judged.verdict.result {
                VerdictResult::Denied => "still drops",
                VerdictResult::Undetermined => "can't tell ",
                VerdictResult::Allowed => "would pass ",
            };
            let ReplayedConnection { connection, packets, why, .. } = judged;
            text += &format!(
                "  {word}  {} ({} recorded)\n               {}\n",
                escape(connection),
                counted(*packets, "packet"),
                escape(why)
            );
        }
        text + NOT_JUDGED + "\n"
    }
}

fn replayed(index: &Index, options: &Options, recorded: &RecordedConnection) -> ReplayedConnection {
    let verdict = policy::verdict_of(index, &recorded.connection(index), options);
    let why = policy::summary(&verdict);
    ReplayedConnection { connection: recorded.title(), packets: recorded.packets, verdict, why }
}
