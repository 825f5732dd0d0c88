//! `netpol-trace tail`: what was dropped, for a person to read.

mod input;
mod live;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use jiff::{SignedDuration, Timestamp};

use crate::tail::paint::Paint;
use crate::tail::select::{self, Wanted};
use crate::tail::stream::{Form, Tail};
use crate::tail::summary::Summary;
use crate::tail::text::{Printer, Style};
use crate::text::escape;

/// Show recorded drops: what happened, whose policy, and what to do, a line each.
///
/// A pod's drops are those in which it is either end, whichever node recorded them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 shown, also when there was nothing to show; 2 wrong usage or input that can't be read.

Examples:
  netpol-trace tail drops.jsonl --pod qa-test/frontend-7d9c8bf9d-x2lkp     a file of the agent's records
  netpol-trace tail drops.jsonl --summary --since 1h                       the top pairs, policies and fixes
  netpol-trace tail drops.jsonl -f -n staging -l app=db                    and what is still to come
  kubectl logs ds/netpol-trace -n netpol-trace --all-pods --prefix=false | netpol-trace tail - -n staging
  netpol-trace tail drops.jsonl --cause disagrees -o json | jq .verdict")]
pub struct Args {
    /// Records of agents, JSON lines; the folder of an agent's --history-dir; or - for standard input
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Only this pod, as either end: NAMESPACE/NAME, or NAME with -n; repeatable
    #[arg(long, value_name = "NS/NAME", conflicts_with_all = ["all_namespaces", "selector"])]
    pod: Vec<String>,
    /// Only pods of this namespace, as either end
    #[arg(short, long, value_name = "NS", conflicts_with = "all_namespaces")]
    namespace: Option<String>,
    /// All namespaces: the default with FILE
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only pods with these labels, as kubectl's -l: app=web,tier!=cache
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Only drops with this cause: policy, disagrees, enforcer_unavailable, service_without_endpoints, unknown, …, or unanswered;
    /// repeatable
    #[arg(long, value_name = "CAUSE")]
    cause: Vec<String>,
    /// Only what happened this long ago or later: 30s, 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = ago)]
    since: Option<SignedDuration>,
    /// Go on with what comes, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// text: a line each, cut to the terminal; wide: all that is known, not cut; json: the records
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    /// Instead of the records: the pairs, policies and hints with most packets
    #[arg(long, conflicts_with = "output")]
    summary: bool,
    /// Colours: always, never, or auto: on a terminal, unless NO_COLOR is set
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    color: When,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Wide,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum When {
    Auto,
    Always,
    Never,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("{name}: {error}")]
    Input { name: String, error: io::Error },
    #[error(transparent)]
    Output(#[from] io::Error),
}

fn ago(text: &str) -> Result<SignedDuration, String> {
    let wrong = || format!("{text:?} is not a time such as 30s, 10m or 2h");
    let span: SignedDuration = text.parse().map_err(|_| wrong())?;
    if span.is_negative() { Err(wrong()) } else { Ok(span) }
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match work(args) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(Error::Output(error)) => Err(error.into()),
        Err(error) => {
            eprintln!("netpol-trace tail: {}", escape(&error.to_string()));
            Ok(ExitCode::from(super::input::USAGE_OR_INPUT))
        }
    }
}

fn work(args: &Args) -> Result<(), Error> {
    let wanted = wanted(args)?;
    let waits_for = wanted.describe();
    let since = wanted.since;
    let mut tail = Tail::new(wanted, form(args));
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    match &args.file {
        Some(path) if path.as_os_str() == "-" => live::run(&mut tail, &mut out, &waits_for, live::Source::Stdin)?,
        Some(path) if args.follow => live::run(&mut tail, &mut out, &waits_for, live::Source::Path(path.clone()))?,
        Some(path) => input::whole(path, &mut tail, &mut out)?,
        None => return Err(Error::Usage("which records? FILE, or - for standard input".to_owned())),
    }
    drop(out);
    notes(&tail, since);
    Ok(())
}

fn wanted(args: &Args) -> Result<Wanted, Error> {
    let namespace = args.namespace.as_deref();
    let pods =
        args.pod.iter().map(|pod| select::pod(pod, namespace)).collect::<Result<_, _>>().map_err(Error::Usage)?;
    for cause in &args.cause {
        if !CAUSES.contains(&cause.as_str()) {
            return Err(Error::Usage(format!("--cause {}: want one of {}", escape(cause), CAUSES.join(", "))));
        }
    }
    let since = args.since.map(|since| Timestamp::now().checked_sub(since)).transpose();
    Ok(Wanted {
        pods,
        namespace: args.namespace.clone(),
        labels: args.selector.as_deref().map(select::selector).transpose().map_err(Error::Usage)?,
        causes: args.cause.clone(),
        since: since.map_err(|error| Error::Usage(format!("--since: {error}")))?,
        chatty: args.output != Output::Text,
    })
}

/// As records write them.
const CAUSES: [&str; 10] = [
    "policy",
    "disagrees",
    "enforcer_unavailable",
    "service_without_endpoints",
    "unknown",
    "host_firewall",
    "pod_local",
    "conntrack_invalid",
    "not_policy",
    "unanswered",
];

fn form(args: &Args) -> Form {
    let terminal = io::stdout().is_terminal();
    let paint = Paint(match args.color {
        When::Always => true,
        When::Never => false,
        When::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    });
    let columns = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    let style = Style { width: columns.filter(|_| terminal), wide: args.output == Output::Wide, paint };
    match (args.summary, args.output) {
        (true, _) => Form::Summary(Box::new(Summary::default()), style),
        (_, Output::Json) => Form::Json,
        _ => Form::Text(Printer::new(style)),
    }
}

/// Says on stderr what of the input was not shown, and why there was nothing.
fn notes(tail: &Tail, since: Option<Timestamp>) {
    let tally = tail.tally;
    if tally.not_records > 0 {
        eprintln!("note: {} lines are no records; the first is line {}", tally.not_records, tally.first_not_record);
    }
    let (repeated, twins) = tail.repeated();
    if repeated > 0 {
        eprintln!("note: {repeated} records came more than once and are shown once");
    }
    if twins > 0 {
        eprintln!("note: {twins} packets were recorded by two agents and are shown once");
    }
    if tally.shown == 0 && tally.lines > 0 {
        let newest = tally.newest.filter(|newest| since.is_some_and(|since| *newest < since));
        match newest {
            Some(newest) => eprintln!("note: nothing to show; the newest record that was looked at is of {newest:.0}"),
            None => eprintln!("note: nothing to show in {} lines", tally.lines),
        }
    }
    let _ = io::stderr().flush();
}
