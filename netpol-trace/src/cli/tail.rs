//! `netpol-trace tail`: what was dropped, for a person to read.

mod cluster;
mod input;
mod live;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use jiff::{SignedDuration, Timestamp};

use super::cluster::ClusterArgs;
use crate::cluster::access_review::READER;
use crate::cluster::agents::AgentsError;
use crate::tail::paint::Paint;
use crate::tail::select::{self, Wanted};
use crate::tail::stream::{Form, Tail};
use crate::tail::text::{Printer, Style};
use crate::text::escape;

/// Show recorded drops: what happened, whose policy, and what to do, a line each.
///
/// A pod's drops are those in which it is either end, whichever node recorded them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 shown, also when there was nothing to show; 2 wrong usage or input that can't be read.

Examples:
  netpol-trace tail --pod qa-test/frontend-7d9c8bf9d-x2lkp --since 10m     what was dropped from or to a pod
  netpol-trace tail -n staging -l app=db -f                                and what is still to come
  netpol-trace tail -n staging --service-account                           without access to the agents' logs
  netpol-trace tail drops.jsonl --pod qa-test/frontend-7d9c8bf9d-x2lkp     a file of the agent's records
  netpol-trace tail drops.jsonl --summary --since 1h                       the top pairs, policies and fixes
  kubectl logs ds/netpol-trace -n netpol-trace --all-pods --prefix=false | netpol-trace tail - -n staging
  netpol-trace tail drops.jsonl --cause disagrees -o json | jq .verdict")]
pub struct Args {
    /// Records of agents, JSON lines; the folder of an agent's --history-dir; or - for standard input. Without it, the agents of
    /// the kubeconfig's cluster are asked
    #[arg(value_name = "FILE", conflicts_with_all = ["kubeconfig", "context", "all_nodes", "service_account"])]
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
    #[command(flatten)]
    api: ClusterArgs,
    /// The namespace in which the agents run
    #[arg(long, value_name = "NS", default_value = "netpol-trace", help_heading = "Which cluster")]
    agents_namespace: String,
    /// Ask every node's agent, 20 at a time, also when there are more than 50: otherwise those of the pods' nodes and of their
    /// peers' are asked
    #[arg(long, help_heading = "Which cluster")]
    all_nodes: bool,
    /// For who may not read the agents' logs: see your namespace's drops as this service account of it, without NAME as
    /// netpol-trace-reader, which the developer role allows
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = READER, help_heading = "Which cluster", conflicts_with = "all_namespaces")]
    service_account: Option<String>,
    /// The port of the agents' --tail-listen, with --service-account
    #[arg(long, value_name = "PORT", default_value = "9478", help_heading = "Which cluster")]
    tail_port: u16,
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
    #[error(transparent)]
    Agents(#[from] AgentsError),
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
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let tail = |namespace: Option<&str>| -> Result<(Tail, String), Error> {
        let wanted = wanted(args, namespace)?;
        let waits_for = wanted.describe();
        Ok((Tail::new(wanted, form(args)), waits_for))
    };
    let tail = match &args.file {
        None => cluster::run(args, &mut out, tail)?,
        Some(path) => {
            let (mut tail, waits_for) = tail(None)?;
            match path.as_os_str() == "-" {
                true => live::run(&mut tail, &mut out, &waits_for, live::Source::Stdin)?,
                false if args.follow => live::run(&mut tail, &mut out, &waits_for, live::Source::Path(path.clone()))?,
                false => input::whole(path, &mut tail, &mut out)?,
            }
            tail
        }
    };
    drop(out);
    notes(&tail);
    Ok(())
}

/// `namespace`: of the kubeconfig's context, where a cluster is asked.
fn wanted(args: &Args, namespace: Option<&str>) -> Result<Wanted, Error> {
    let namespace = args.namespace.as_deref().or(namespace);
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
        namespace: namespace.filter(|_| !args.all_namespaces).map(str::to_owned),
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
        (true, _) => Form::Summary(Box::default(), style),
        (_, Output::Json) => Form::Json,
        _ => Form::Text(Printer::new(style)),
    }
}

/// Says on stderr what of the input was not shown, and why there was nothing.
fn notes(tail: &Tail) {
    let tally = tail.tally;
    if tally.not_records > 0 {
        eprintln!("note: {} lines are no records; the first is line {}", tally.not_records, tally.first_not_record);
    }
    let (repeated, twins) = tail.repeated();
    if repeated > 0 {
        eprintln!("note: {repeated} records came more than once and are shown once");
    }
    if twins > 0 {
        eprintln!("note: {twins} records are of what another agent's record shows, and are left out");
    }
    if tally.shown == 0 && tally.lines > 0 {
        match tally.newest {
            Some(second) => {
                let second = escape(&String::from_utf8_lossy(&second)).into_owned();
                eprintln!("note: nothing to show; the newest record that was looked at is of {second}Z");
            }
            None => eprintln!("note: nothing to show in {} lines", tally.lines),
        }
    }
    let _ = io::stderr().flush();
}
