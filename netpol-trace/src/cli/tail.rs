//! `netpol-trace tail`: what was dropped, for a person to read.

mod closing;
mod cluster;
mod input;
mod live;

use std::io::{self, BufWriter, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use jiff::{SignedDuration, Timestamp};

use super::cluster::ClusterArgs;
use crate::cluster::access_review::READER;
use crate::cluster::agents::{self, AgentsError};
use crate::recorded;
use crate::recorded::input::is_stdin;
use crate::tail::paint::Paint;
use crate::tail::select::{self, Selection};
use crate::tail::stream::{Rendering, Tail};
use crate::tail::text::{Printer, Style};
use crate::text::{counted, escape};

/// Show recorded drops: what happened, whose policy, and what to do, a line each.
///
/// A pod's drops are those in which it is either end, whichever node recorded them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 shown, also when there was nothing to show; 1 no agent answered, or the API server did not; 2 wrong usage, or a file that can't be read to
its end or is not a log (what was read is shown); 3 shown, but some agents did not answer. The last line, on stderr, says how
many drops were found, and where.

Examples:
  netpol-trace tail --pod qa-test/frontend-7d9c8bf9d-x2lkp --since 10m     what was dropped from or to a pod
  netpol-trace tail -n staging -l app=db -f                                and what is still to come
  netpol-trace tail -n staging --service-account                           without access to the agents' logs
  netpol-trace tail drops.jsonl --pod qa-test/frontend-7d9c8bf9d-x2lkp     a file of the agent's records
  netpol-trace tail drops.jsonl --summary --since 1h                       the top pairs, policies and fixes
  netpol-trace tail 'drops.jsonl*' -n staging                              rotated and compressed files too
  kubectl logs ds/netpol-trace -n netpol-trace --all-pods --prefix=false | netpol-trace tail - -n staging
  netpol-trace tail drops.jsonl --cause disagrees -o json | jq .verdict")]
pub struct TailArgs {
    /// Records of agents: files of JSON lines (also gzip or zstd), quoted patterns, the folder of an agent's --history-dir, or - for
    /// standard input. Without it, the agents of the kubeconfig's cluster are asked
    #[arg(value_name = "FILE", conflicts_with_all = ["kubeconfig", "context", "all_nodes", "service_account"])]
    files: Vec<PathBuf>,
    /// Only this pod, as either end: NAMESPACE/NAME, or NAME or pod/NAME with -n; repeatable
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

/// The exit code when no agent answered, for whatever reason.
const NO_ANSWER: u8 = 1;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("no agent in namespace {0} (pods with {label}); --agents-namespace names another", label = agents::LABEL)]
    NoAgent(String),
    #[error(transparent)]
    Agents(#[from] AgentsError),
    #[error(transparent)]
    Input(#[from] recorded::input::LogError),
    #[error(transparent)]
    Sort(io::Error),
    #[error(transparent)]
    Output(#[from] io::Error),
}

fn ago(text: &str) -> Result<SignedDuration, String> {
    let wrong = || format!("{text:?} is not a time such as 30s, 10m or 2h");
    let span: SignedDuration = text.parse().map_err(|_| wrong())?;
    if span.is_negative() { Err(wrong()) } else { Ok(span) }
}

pub fn run(args: &TailArgs) -> anyhow::Result<ExitCode> {
    match work(args) {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(Error::Output(error)) => Err(error.into()),
        Err(error) => {
            eprintln!("netpol-trace tail: {}", escape(&error.to_string()));
            Ok(ExitCode::from(match error {
                Error::NoAgent(..) => NO_ANSWER,
                Error::Agents(error) if !matches!(error, AgentsError::Access(_)) => NO_ANSWER,
                _ => super::input::USAGE_OR_INPUT,
            }))
        }
    }
}

/// Shows what was asked for; the exit code.
fn work(args: &TailArgs) -> Result<u8, Error> {
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let began = Timestamp::now();
    let (tail, found_in, code) = if args.files.is_empty() {
        let (tail, answers) = cluster::run(args, &mut out)?;
        (tail, format!("; {answers}"), answers.exit_code())
    } else {
        let mut tail = Tail::new(wanted(args, None)?, form(args));
        let read = match args.follow || args.files.iter().any(|path| is_stdin(path)) {
            true => live::run(&mut tail, &mut out, &args.files, args.follow)?,
            false => input::whole(&args.files, &mut tail, &mut out)?,
        };
        let records = counted(tail.tally.records, "record");
        let records = match (tail.tally.records, read.broken) {
            (0, _) => format!("{records} read, so this is no answer"),
            (_, true) => format!("{records} read; the rest could not be read"),
            (_, false) => format!("{records} read"),
        };
        let found_in = format!(" in {} ({records})", read.names);
        (tail, found_in, if read.broken { super::input::USAGE_OR_INPUT } else { 0 })
    };
    drop(out);
    closing::notes(&tail, args.files.is_empty());
    closing::line(args, &tail, began, &found_in);
    Ok(code)
}

/// What was read of files.
struct Read {
    names: String,
    /// Something could not be read to its end, or is not a log.
    broken: bool,
}

/// `namespace`: of the kubeconfig's context, where a cluster is asked.
fn wanted(args: &TailArgs, namespace: Option<&str>) -> Result<Selection, Error> {
    let own = args.namespace.as_deref().map(select::namespace).transpose().map_err(Error::Usage)?;
    let namespace = own.or(namespace);
    let pods =
        args.pod.iter().map(|pod| select::pod(pod, namespace)).collect::<Result<_, _>>().map_err(Error::Usage)?;
    for cause in &args.cause {
        if !CAUSES.contains(&cause.as_str()) {
            return Err(Error::Usage(format!("--cause {}: want one of {}", escape(cause), CAUSES.join(", "))));
        }
    }
    let since = args.since.map(|since| Timestamp::now().checked_sub(since)).transpose();
    Ok(Selection {
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

fn form(args: &TailArgs) -> Rendering {
    let terminal = io::stdout().is_terminal();
    let paint = Paint(match args.color {
        When::Always => true,
        When::Never => false,
        When::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    });
    let columns = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    let style = Style { width: columns.filter(|_| terminal), wide: args.output == Output::Wide, paint };
    match (args.summary, args.output) {
        (true, _) => Rendering::Summary(Box::default(), style),
        (_, Output::Json) => Rendering::Json,
        _ => Rendering::Text(Printer::new(style)),
    }
}
