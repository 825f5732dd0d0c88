//! `netpol-trace tail`: show recorded drops.

use std::io::{self, BufWriter, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use jiff::{SignedDuration, Timestamp};

use super::cluster::ClusterArgs;
use super::input::USAGE_OR_INPUT;
use crate::cluster::access_review::READER;
use crate::cluster::agents::AgentsError;
use crate::tail::client::TailError;
use crate::tail::client::agents::{self, AgentsRequest};
use crate::tail::client::files;
use crate::tail::closing;
use crate::tail::render::Rendering;
use crate::tail::render::paint::Paint;
use crate::tail::render::text::{Printer, Style};
use crate::tail::select::SelectionArgs;
use crate::tail::stream::Tail;
use crate::text::{counted, escape};

/// Show recorded drops, a line each: what was dropped, by which policy, and what to change.
///
/// A pod's drops are those from it and to it, whichever node recorded them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The last line, on stderr, says how many drops were found, and where.

Exit codes: 0 shown, also if there was nothing to show; 1 no agent answered, or the API server did not; 2 wrong arguments, or a file that
cannot be read to its end or is not a log (what was read is shown); 3 shown, but some agents did not answer.

Examples:
  netpol-trace tail --pod qa-test/frontend-7d9c8bf9d-x2lkp --since 10m     drops from or to a pod
  netpol-trace tail -n staging -l app=db -f                                and those to come
  netpol-trace tail -n staging --service-account                           without access to the agents' logs
  netpol-trace tail drops.jsonl --pod qa-test/frontend-7d9c8bf9d-x2lkp     from a file of the agent's records
  netpol-trace tail drops.jsonl --summary --since 1h                       the top pairs, policies and fixes
  netpol-trace tail 'drops.jsonl*' -n staging                              from rotated and compressed files too
  kubectl logs ds/netpol-trace -n netpol-trace --all-pods --prefix=false | netpol-trace tail - -n staging
  netpol-trace tail drops.jsonl --cause disagrees -o json | jq .verdict")]
pub struct TailArgs {
    /// Logs of agents: files of JSON lines (also gzip or zstd), quoted patterns, the folder of an agent's --history-dir, or - for
    /// standard input. Without FILE, tail asks the agents of the kubeconfig's cluster
    #[arg(value_name = "FILE", conflicts_with_all = ["kubeconfig", "context", "all_nodes", "service_account"])]
    files: Vec<PathBuf>,
    /// Only drops from or to this pod: NAMESPACE/NAME, or NAME or pod/NAME with -n; repeatable
    #[arg(long, value_name = "NS/NAME", conflicts_with_all = ["all_namespaces", "selector"])]
    pod: Vec<String>,
    /// Only drops from or to pods of this namespace
    #[arg(short, long, value_name = "NS", conflicts_with = "all_namespaces")]
    namespace: Option<String>,
    /// Drops of all namespaces: the default with FILE
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only drops from or to pods with these labels, as in kubectl's -l: app=web,tier!=cache
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Only drops with this cause: policy, disagrees, enforcer_unavailable, service_without_endpoints,
    /// connection_unknown, unknown, …, or unanswered; repeatable
    #[arg(long, value_name = "CAUSE")]
    cause: Vec<String>,
    /// Only records from this long ago or later: 30s, 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = ago)]
    since: Option<SignedDuration>,
    /// Wait for new records until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// text: a line each, cut to the terminal; wide: everything that is known, not cut; json: the records
    #[arg(short, long, value_enum, default_value = "text")]
    output: TailOutput,
    /// Show the pairs, policies and hints with most packets, not the records
    #[arg(long, conflicts_with = "output")]
    summary: bool,
    /// Colours: always, never, or auto: on a terminal, unless NO_COLOR is set
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    color: ColorWhen,
    #[command(flatten)]
    api: ClusterArgs,
    /// The namespace in which the agents run
    #[arg(long, value_name = "NS", default_value = "netpol-trace", help_heading = "Which cluster")]
    agents_namespace: String,
    /// Ask every node's agent, 20 at a time. Without it, if there are more than 50 agents and --pod is given, tail asks those on the
    /// nodes of the pods and of their peers
    #[arg(long, help_heading = "Which cluster")]
    all_nodes: bool,
    /// Without access to the agents' logs: read your namespace's drops as this service account of the namespace. Without NAME:
    /// netpol-trace-reader, which the developer role allows
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = READER, help_heading = "Which cluster", conflicts_with = "all_namespaces")]
    service_account: Option<String>,
    /// The port of the agents' --tail-listen, for --service-account
    #[arg(long, value_name = "PORT", default_value = "9478", help_heading = "Which cluster")]
    tail_port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum TailOutput {
    Text,
    Wide,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ColorWhen {
    Auto,
    Always,
    Never,
}

/// The exit code if no agent answered.
const NO_ANSWER: u8 = 1;

fn ago(text: &str) -> Result<SignedDuration, String> {
    let wrong = || format!("{text:?} is not a time such as 30s, 10m or 2h");
    let span: SignedDuration = text.parse().map_err(|_| wrong())?;
    if span.is_negative() { Err(wrong()) } else { Ok(span) }
}

pub fn run(args: &TailArgs) -> anyhow::Result<ExitCode> {
    match show(args) {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(TailError::Output(error)) => Err(error.into()),
        Err(error) => {
            eprintln!("netpol-trace tail: {}", escape(&error.to_string()));
            Ok(ExitCode::from(match error {
                TailError::NoAgent(..) => NO_ANSWER,
                TailError::Agents(error) if !matches!(error, AgentsError::Access(_)) => NO_ANSWER,
                _ => USAGE_OR_INPUT,
            }))
        }
    }
}

/// Shows the records, and the closing notes. Returns the exit code.
fn show(args: &TailArgs) -> Result<u8, TailError> {
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let began = Timestamp::now();
    let (tail, source, code) = if args.files.is_empty() {
        let (tail, responses) = agents::show(&args.agents_request(), args.rendering(), &mut out)?;
        (tail, format!("; {responses}"), responses.exit_code())
    } else {
        let selection = args.selection().resolve(None).map_err(TailError::Usage)?;
        let mut tail = Tail::new(selection, args.rendering());
        let read = files::show(&args.files, args.follow, &mut tail, &mut out)?;
        let records = counted(tail.counts.records, "record");
        let records = match (tail.counts.records, read.broken) {
            (0, _) => format!("{records} read, so this says nothing about drops"),
            (_, true) => format!("{records} read; the rest could not be read"),
            (_, false) => format!("{records} read"),
        };
        (tail, format!(" in {} ({records})", read.names), if read.broken { USAGE_OR_INPUT } else { 0 })
    };
    drop(out);
    closing::notes(&tail, args.files.is_empty());
    closing::line(&tail, args.since, args.follow, began, &source);
    Ok(code)
}

impl TailArgs {
    fn selection(&self) -> SelectionArgs {
        SelectionArgs {
            pods: self.pod.clone(),
            namespace: self.namespace.clone(),
            all_namespaces: self.all_namespaces,
            labels: self.selector.clone(),
            causes: self.cause.clone(),
            since: self.since,
            every_status: self.output != TailOutput::Text,
        }
    }

    fn agents_request(&self) -> AgentsRequest {
        AgentsRequest {
            access: self.api.access(),
            agents_namespace: self.agents_namespace.clone(),
            selection: self.selection(),
            follow: self.follow,
            all_nodes: self.all_nodes,
            service_account: self.service_account.clone(),
            tail_port: self.tail_port,
        }
    }

    fn rendering(&self) -> Rendering {
        let terminal = io::stdout().is_terminal();
        let paint = Paint(match self.color {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        });
        let columns = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
        let style = Style { width: columns.filter(|_| terminal), wide: self.output == TailOutput::Wide, paint };
        match (self.summary, self.output) {
            (true, _) => Rendering::Summary(Box::default(), style),
            (_, TailOutput::Json) => Rendering::Json,
            _ => Rendering::Text(Printer::new(style)),
        }
    }
}
