//! `netpol-trace verify-log`: checks whether a log accounts for every packet.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use super::input::{TextOrJson, USAGE_OR_INPUT};
use crate::audit::{Audit, Completeness};
use crate::recorded;
use crate::recorded::input::{self, LogError};
use crate::recorded::unpack::Unreadable;
use crate::text::escape;

/// Check whether a log accounts for every packet.
///
/// Checks that no record is missing, that the packets in the records are those that the agent's status records count, that losses are
/// declared, and that the time between two runs is declared. Reads native records only.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Rotated files can be given in any order: they are read in the order of their first records.

Exit codes: 0 every packet is in a record or in a declared loss with its count; 1 something is missing that the log does not declare, or
there is no record; 2 wrong arguments, or a file that cannot be read to its end or is not a log; 3 as 0, except for declared time in which
nobody counted (between a crash and the next start, or at the end of a run that has not stopped).

Examples:
  netpol-trace verify-log drops.jsonl
  netpol-trace verify-log '/var/log/netpol-trace/drops.jsonl*' -o json | jq .answer
  kubectl logs -n netpol-trace ds/netpol-trace --all-pods --prefix=false | netpol-trace verify-log -")]
pub struct VerifyLogArgs {
    /// Logs of the agent: files of JSON lines (also gzip or zstd), quoted patterns, the folder of an agent's --history-dir, or - for
    /// standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[arg(short, long, value_enum, default_value = "text")]
    output: TextOrJson,
}

pub fn run(args: &VerifyLogArgs) -> anyhow::Result<ExitCode> {
    let mut audit = Audit::default();
    let broken = match read_all(&args.files, &mut audit) {
        Ok(broken) => broken,
        Err(error) => {
            report(&error);
            return Ok(ExitCode::from(USAGE_OR_INPUT));
        }
    };
    let report = audit.report();
    let printed = match args.output {
        TextOrJson::Text => report.text(),
        TextOrJson::Json => serde_json::to_string_pretty(&report)? + "\n",
    };
    let mut out = io::stdout().lock();
    out.write_all(printed.as_bytes())?;
    out.flush()?;
    Ok(ExitCode::from(match report.answer {
        _ if broken => USAGE_OR_INPUT,
        Completeness::Complete => 0,
        Completeness::Incomplete => 1,
        Completeness::CompleteButForGaps => 3,
    }))
}

fn report(error: &LogError) {
    eprintln!("netpol-trace verify-log: {}", escape(&error.to_string()));
}

/// Reads all logs. Returns true if one could not be read to its end, or is not a log.
fn read_all(files: &[PathBuf], audit: &mut Audit) -> Result<bool, LogError> {
    let mut broken = false;
    for mut input in input::in_order_of_time(files)? {
        let problem = match input.open() {
            Ok(None) => continue,
            Ok(Some(reader)) => {
                let (counts, result) = recorded::each(reader, |number, record| {
                    let place = format_args!("{}:{number}", input.name);
                    match record {
                        Ok(record) => audit.record(&place, &record),
                        Err(line) => audit.broken(&place, &line),
                    }
                });
                let failed = result.err().map(|error| input.unreadable(Unreadable::from_read(error)));
                failed.or_else(|| counts.problem(&input))
            }
            Err(problem) => Some(problem),
        };
        if let Some(problem) = problem {
            report(&problem);
            audit.unread(problem.to_string());
            broken = true;
        }
    }
    Ok(broken)
}
