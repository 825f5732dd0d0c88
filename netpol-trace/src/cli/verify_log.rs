//! `netpol-trace verify-log`: does this log account for every packet?

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::input::USAGE_OR_INPUT;
use crate::audit::{Answer, Audit};
use crate::recorded;
use crate::text::escape;

/// Does this log account for every packet?
///
/// Checks that no record is missing, that the packets in the records are those that the agent's statuses count, that what was
/// lost is declared, and that nothing lies between a run and the next one without being said. Native records only.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Rotated files can be given in any order: they are read in the order of their first records.

Exit codes: 0 every packet is in a record or in a declared loss with its count, 3 the same but for declared time in which
nobody counted (between a crash and the next start, or at the end of a run that has not stopped), 1 something is missing
that the log does not declare, 2 wrong usage or a file that can't be read.

Examples:
  netpol-trace verify-log drops.jsonl
  netpol-trace verify-log /var/log/netpol-trace/*.jsonl -o json | jq .answer
  kubectl logs -n netpol-trace ds/netpol-trace --all-pods --prefix=false | netpol-trace verify-log -")]
pub struct Args {
    /// Logs of the agent, JSON lines, or - for standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut audit = Audit::default();
    if let Err((path, error)) = read_all(&args.files, &mut audit) {
        let path = escape(&path.display().to_string()).into_owned();
        eprintln!("netpol-trace verify-log: {path}: {error}");
        return Ok(ExitCode::from(USAGE_OR_INPUT));
    }
    let report = audit.report();
    let printed = match args.output {
        Output::Text => report.text(),
        Output::Json => serde_json::to_string_pretty(&report)? + "\n",
    };
    let mut out = io::stdout().lock();
    out.write_all(printed.as_bytes())?;
    out.flush()?;
    Ok(ExitCode::from(match report.answer {
        Answer::Complete => 0,
        Answer::Incomplete => 1,
        Answer::CompleteButForGaps => 3,
    }))
}

fn read_all(files: &[PathBuf], audit: &mut Audit) -> Result<(), (PathBuf, io::Error)> {
    let mut inputs = Vec::new();
    for path in files {
        let failed = |error| (path.clone(), error);
        let mut input: Box<dyn BufRead> = match path.as_os_str() == "-" {
            true => Box::new(io::stdin().lock()),
            false => Box::new(BufReader::with_capacity(1 << 16, File::open(path).map_err(failed)?)),
        };
        let begins = recorded::first_time(&mut input).map_err(failed)?;
        inputs.push((begins, path.as_path(), input));
    }
    // A shell lists log.1 after log, though its records are older.
    inputs.sort_by_key(|(begins, ..)| *begins);
    for (_, path, input) in inputs {
        read(path, input, audit).map_err(|error| (path.to_owned(), error))?;
    }
    Ok(())
}

fn read(path: &Path, input: impl BufRead, audit: &mut Audit) -> io::Result<()> {
    let name = if path.as_os_str() == "-" { "standard input".into() } else { path.display().to_string() };
    recorded::each(input, |number, record| match record {
        Ok(record) => audit.record(&record),
        Err(error) => audit.broken(&format!("{name}:{number}"), &error),
    })
}
