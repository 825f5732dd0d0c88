//! `netpol-trace lint`: the usual mistakes, with their place and what to do.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};

use super::cluster::ClusterArgs;
use super::input;
use crate::cluster::location::ProblemKind;
use crate::policy::lint;
use crate::policy::lint::{Severity, catalogue};

/// Find the usual mistakes in NetworkPolicies: what is wrong, where, and what to write instead.
///
/// Reads policies together with namespaces, pods, workloads and services. The more of the cluster is in the input, the more mistakes it finds.
/// It does not report a selector as wrong if the pods or namespaces that it is for are not in the input.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netpol-trace lint policies/                       a folder: *.yaml, *.yml, *.json, all below it
  helm template shop ./chart | netpol-trace lint -  a rendered chart, workloads included
  netpol-trace lint --context prod                  what a cluster has now
  netpol-trace lint --context prod policies/        what it would have with these applied
  netpol-trace lint --severity info --fail-on error deploy/
  netpol-trace lint -o sarif deploy/ > lint.sarif   for code scanning
  netpol-trace lint --list                          all mistakes that it finds

Exit codes: 0 no finding at or above --fail-on, 1 findings, 2 wrong arguments or a file that cannot be read.")]
pub struct LintArgs {
    /// Files or folders; - is standard input. Without any, the kubeconfig's current context is read. With --context too, the files replace
    /// objects of that cluster.
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,

    #[command(flatten)]
    cluster: ClusterArgs,

    /// How to write the findings.
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: LintFormat,

    /// Exit with 1 for findings of this severity and above.
    #[arg(long, value_enum, default_value = "warning", value_name = "SEVERITY")]
    fail_on: LintLevel,

    /// Show findings of this severity and above.
    #[arg(long, value_enum, default_value = "warning", value_name = "SEVERITY")]
    severity: LintLevel,

    /// Leave out a kind of finding; repeatable.
    #[arg(long, value_name = "ID", value_delimiter = ',', value_parser = ids())]
    disable: Vec<String>,

    /// Print all kinds of findings, with what is wrong and what to do.
    #[arg(long)]
    list: bool,
}

fn ids() -> PossibleValuesParser {
    PossibleValuesParser::new(catalogue::LINTS.iter().map(|lint| lint.id))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LintFormat {
    Text,
    Json,
    Sarif,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LintLevel {
    Error,
    Warning,
    Info,
}

impl From<LintLevel> for Severity {
    fn from(level: LintLevel) -> Severity {
        match level {
            LintLevel::Error => Severity::Error,
            LintLevel::Warning => Severity::Warning,
            LintLevel::Info => Severity::Info,
        }
    }
}

pub fn run(args: LintArgs) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    if args.list {
        for known in catalogue::LINTS {
            writeln!(
                out,
                "{:<18} {:<8} {}\n    {}\n    fix: {}\n",
                known.id,
                known.severity.as_str(),
                known.title,
                known.what,
                known.fix
            )?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let loaded = match input::load(&args.paths, &args.cluster) {
        Ok(loaded) => loaded,
        Err(error) => return input::finish("lint", Err(error.into())),
    };
    let findings = lint::lint(&loaded, &args.disable);
    let unreadable: Vec<_> = loaded.problems.iter().filter(|p| p.kind == ProblemKind::Unreadable).collect();
    // If nothing could be read, there is no report.
    if loaded.files > 0 || unreadable.is_empty() {
        let least = args.severity.into();
        let report = match args.output {
            LintFormat::Text => lint::text(&findings, &loaded, least),
            LintFormat::Json => lint::json(&findings, &loaded, least)? + "\n",
            LintFormat::Sarif => lint::sarif(&findings, least)? + "\n",
        };
        out.write_all(report.as_bytes())?;
        out.flush()?;
    }
    if !unreadable.is_empty() {
        for problem in unreadable {
            eprintln!("netpol-trace: {problem}");
        }
        return Ok(ExitCode::from(2));
    }
    let fail_on = Severity::from(args.fail_on);
    Ok(ExitCode::from(u8::from(findings.iter().any(|finding| finding.severity >= fail_on))))
}
