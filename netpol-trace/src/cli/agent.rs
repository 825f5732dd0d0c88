//! `netpol-trace agent`: record drops on this node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches};

use super::cluster::ClusterArgs;
use crate::agent::source::SourceConfig;
use crate::agent::{self, AgentConfig};
use crate::cluster::access_review::Reviewer;
use crate::cluster::api::{ApiOptions, PeerDiscovery};
use crate::config::{Live, flags};
use crate::http::{MetricsGuard, TokenFile};
use crate::kernel::pins;
use crate::record::format::Format;
use crate::sink::spec::{self, OutputSpec};
use crate::storage::Readers;

/// Record packets that this node drops, one JSON object a line. The agent's own log goes to stderr.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netpol-trace agent --node-name worker-7              the cluster's objects from the API server: in a pod by its service
                                                       account, elsewhere by the kubeconfig
  netpol-trace agent --manifests ./cluster/            the cluster's objects from files, records on stdout
  kubectl get pods,ns,netpol,svc,endpointslices,nodes -A -o yaml > cluster.yaml
  netpol-trace agent --manifests cluster.yaml --node-name worker-7 | jq 'select(.kind == \"drop\")'
  netpol-trace agent --manifests cluster.yaml --all-drops --duration 30s --output drops.jsonl
  netpol-trace agent --manifests cluster.yaml --output stdout --output file:/var/log/drops.jsonl,format=ecs,max-size=64MiB \\
    --output otlp:http://collector.observability:4318 --listen 127.0.0.1:9477

Exit codes: 0 stopped by a signal, by --duration or because its reader closed the pipe; 1 drops cannot be recorded; 2 wrong arguments.")]
pub struct AgentArgs {
    /// File or folder with pods, namespaces, policies, services, endpoint slices and nodes (YAML or JSON, what `kubectl get -A
    /// -o yaml` writes), instead of the API server; repeatable. The agent reads it again when it changes.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["kubeconfig", "context", "peers"])]
    manifests: Vec<PathBuf>,

    #[command(flatten)]
    api: ClusterArgs,

    /// How the agent learns pods of other nodes: watch all, or look each one up when it first appears in a drop. Watching loads the API
    /// server of a large cluster.
    #[arg(long, value_enum, default_value = "auto", value_name = "HOW")]
    peers: PeerDiscovery,

    /// This node's name in the cluster.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,

    /// The cluster's name, written into every record.
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<String>,

    /// Also record drops that no policy caused: closed ports, no route, conntrack INVALID, host firewalls.
    #[arg(long)]
    all_drops: bool,

    #[arg(long, value_name = "TARGET", help = spec::help())]
    output: Vec<OutputSpec>,

    /// Encoding of records, unless --output gives one: native, ecs (Elastic), ocsf or otel (OTLP JSON, one line for each record).
    #[arg(long, value_name = "FORMAT", default_value = "native")]
    format: Format,

    /// Serve /metrics (Prometheus), /healthz and /readyz here, such as 127.0.0.1:9477. [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,

    /// Answer /metrics only for clients that send the token in this file (Authorization: Bearer). The file is read for each request.
    #[arg(long, value_name = "PATH", requires = "listen")]
    metrics_token_file: Option<PathBuf>,

    /// Answer /metrics only for clients whose token (Authorization: Bearer) the API server knows and whose owner may get /metrics by RBAC
    /// (nonResourceURLs). The token's audience is the API server or netpol-trace.
    #[arg(long, requires = "listen", conflicts_with = "metrics_token_file")]
    metrics_rbac: bool,

    /// Keep the newest records in this folder for `netpol-trace tail`, also over restarts. [default: no history]
    #[arg(long, value_name = "PATH")]
    history_dir: Option<PathBuf>,

    /// Size limit of --history-dir, in MiB.
    #[arg(long, value_name = "MIB", default_value = "64", requires = "history_dir", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    history_mib: u64,

    /// Number of a group that may read the records in --history-dir: the folder has mode 0750 and the files 0640. Without it, only the
    /// agent's user may read them (0700 and 0600).
    #[arg(long, value_name = "GID", requires = "history_dir", value_parser = spec::group)]
    history_group: Option<u32>,

    /// Serve the history to `netpol-trace tail --service-account` at this address, such as 127.0.0.1:9478. Each client needs a token that the
    /// API server knows, and gets only the drops its owner may see. [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT", requires = "history_dir")]
    tail_listen: Option<SocketAddr>,

    /// The agents' own namespace: users who may read its pods' logs may see every record over --tail-listen too.
    #[arg(long, value_name = "NS", env = "POD_NAMESPACE", default_value = "netpol-trace", hide = true)]
    agents_namespace: String,

    /// Stop after this time: 30s, 5m, 1h.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,

    /// Ring buffer between kernel and agent, in KiB: a power of two from 64.
    #[arg(long, value_name = "KIB", default_value = "2048", value_parser = ring_kib, hide = true)]
    ring_kib: u32,

    /// How long the kernel counts repeated packets of a flow before the agent writes one record for them. The first packet has its own record
    /// at once. 0s: one record for each packet.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = window)]
    aggregation_window: Duration,

    /// Limit of drop records a second, averaged over ten seconds. Drops above it are aggregated by workload, with exact counts
    /// (aggregated_by). 0: no limit.
    #[arg(long, value_name = "COUNT", default_value = "500")]
    max_records_per_second: u32,

    /// Pin counts, unread records and the kfree_skb hook under /sys/fs/bpf when the agent ends. The next agent of the same version and options
    /// takes them over. Any other agent removes them and declares the loss; `doctor --cleanup` removes them without declaring it.
    #[arg(long)]
    survive_restart: bool,

    /// The folder of --survive-restart, in a bpf file system.
    #[arg(long, value_name = "DIR", default_value = pins::FOLDER, hide = true)]
    pin_dir: PathBuf,

    /// Hooks to attach, separated by commas: kfree_skb (drops), tc (connections at the pods' interfaces). [default: both; before Linux 6.6
    /// kfree_skb only, because tc filters there outlive a killed agent]
    #[arg(long, value_name = "HOOK", value_delimiter = ',')]
    hooks: Option<Vec<agent::HookName>>,

    /// YAML file with any of these options by their long names, and with lists of what goes into records (include, exclude), which the agent
    /// reads again when the file changes. The command line and the environment take precedence. See docs/configuration.md.
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,

    /// Folder for the time of this run. The next run names this one and declares the time without an agent.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 30s, 5m or 1h");
    let span: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(span).map_err(|_| wrong())
}

fn window(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        window if window.is_zero() || (Duration::from_millis(100)..=Duration::from_secs(600)).contains(&window) => {
            Ok(window)
        }
        _ => Err("must be 0s, or from 100ms to 10m".into()),
    }
}

fn ring_kib(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(kib) if kib.is_power_of_two() && (64..=1024 * 1024).contains(&kib) => Ok(kib),
        _ => Err("must be a power of two from 64 to 1048576".into()),
    }
}

pub fn run(args: AgentArgs) -> anyhow::Result<ExitCode> {
    let (args, file) = match args.config.clone() {
        None => (args, Live::default()),
        Some(path) => match with_file(path)? {
            Ok(both) => both,
            Err(problem) => {
                eprintln!("{problem}");
                return Ok(ExitCode::from(2));
            }
        },
    };
    if let Some(place) = spec::duplicate_destination(&args.output) {
        eprintln!("--output {place} is given twice, and its lines would be written twice: remove one");
        return Ok(ExitCode::from(2));
    }
    let file = file.with_all_drops(args.all_drops);
    let (access, node) = (args.api.access(), args.node_name.clone());
    if args.peers == PeerDiscovery::Lookup && node.is_none() {
        anyhow::bail!("--peers=lookup needs the name of this node: give --node-name, or set NODE_NAME");
    }
    let reviewer = Reviewer::new(access.clone(), args.agents_namespace.clone(), "--tail-listen refuses all readers");
    let guard = match args.metrics_token_file {
        Some(path) => Some(MetricsGuard::TokenFile(TokenFile::in_file(path)?)),
        None if args.metrics_rbac => {
            let consequence = "/metrics refuses new clients";
            Some(MetricsGuard::review(Reviewer::new(access.clone(), args.agents_namespace, consequence)))
        }
        None => None,
    };
    if let (Some(address), None) = (args.listen.filter(|address| !address.ip().is_loopback()), &guard) {
        tracing::warn!(
            "--listen {address}: everybody who reaches this address can read /metrics; restrict it with --metrics-rbac or \
             --metrics-token-file"
        );
    }
    let config = AgentConfig {
        source: match args.manifests.is_empty() {
            true => SourceConfig::Api(ApiOptions { access, peers: args.peers, node }),
            false => SourceConfig::Manifests(args.manifests),
        },
        access: args.api.access(),
        node: args.node_name,
        cluster: args.cluster_name,
        all_drops: args.all_drops,
        outputs: args.output,
        format: args.format,
        listen: args.listen,
        metrics_guard: guard,
        history: args.history_dir.map(|folder| agent::HistoryConfig {
            folder,
            readers: Readers { group: args.history_group },
            bytes: args.history_mib << 20,
        }),
        tail: args.tail_listen.map(|address| (address, reviewer)),
        duration: args.duration,
        ring_bytes: args.ring_kib * 1024,
        aggregation_window: args.aggregation_window,
        pin_folder: args.pin_dir,
        survive_restart: args.survive_restart,
        max_records_per_second: args.max_records_per_second,
        hooks: args.hooks,
        state_dir: args.state_dir,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(agent::run(config, file))?;
    Ok(ExitCode::SUCCESS)
}

/// Reads the config file and joins it with the command line, which takes precedence. The inner error lists what is wrong in the file.
fn with_file(path: PathBuf) -> anyhow::Result<Result<(AgentArgs, Live), String>> {
    let command = command();
    let live = match Live::start(path, command.clone()) {
        Ok(live) => live,
        Err(problems) => return Ok(Err(problems.to_string())),
    };
    let whole = super::Cli::command();
    let given = whole.clone().get_matches();
    let below = given.subcommand_matches("agent").unwrap_or(&given);
    let more = live.file().map(|file| flags::not_overridden(file, &command, below)).unwrap_or_default();
    let joined = std::env::args_os().chain(more.into_iter().map(Into::into));
    let matches = match whole.try_get_matches_from(joined) {
        Ok(matches) => matches,
        // The command line alone is valid, so the error comes from the file or from both together.
        Err(error) => return Ok(Err(format!("--config: {error}"))),
    };
    let Some(("agent", matches)) = matches.subcommand() else { anyhow::bail!("--config is an option of `agent`") };
    let args = AgentArgs::from_arg_matches(matches)?;
    Ok(Ok((args, live)))
}

/// Returns the agent's options, which are those of the config file too.
pub(crate) fn command() -> clap::Command {
    AgentArgs::augment_args(clap::Command::new("agent"))
}
