//! `netpol-trace agent`: record drops on this node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::cluster::ClusterArgs;
use crate::agent::source::From;
use crate::agent::{self, Config};
use crate::cluster::api::{Options, Peers};
use crate::record::encode::Format;
use crate::sink::target::Target;

/// Record drops on this node, one JSON object a line on stdout; own logs go to stderr.
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

Exit codes: 0 stopped by a signal, by --duration or by the end of its reader; 1 drops can't be recorded; 2 bad arguments.")]
pub struct AgentArgs {
    /// File or folder with pods, namespaces, policies, services, endpoint slices and nodes (YAML or JSON, what `kubectl get -A
    /// -o yaml` writes), instead of the API server; may be given more than once. Re-read when it changes.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["kubeconfig", "context", "peers"])]
    manifests: Vec<PathBuf>,

    #[command(flatten)]
    api: ClusterArgs,

    /// Whether pods of other nodes are watched, or looked up when they first appear in a drop: one watch of all pods on each
    /// node is more than the API server of a large cluster should carry.
    #[arg(long, value_enum, default_value = "auto", value_name = "HOW")]
    peers: Peers,

    /// This node's name in the cluster.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,

    /// The cluster's name, written into every record.
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<String>,

    /// Record drops that have another cause than policy too: closed ports, no route, conntrack INVALID, host firewalls.
    #[arg(long)]
    all_drops: bool,

    /// Where records go: stdout, a file (PATH or file:PATH, appended to) or otlp:URL (OTLP over HTTP). Options follow after
    /// commas: format=NAME; for files max-size=64MiB, max-age=24h, keep=5 (how many older ones, PATH.1 being the newest); for
    /// OTLP token-file=PATH. May be given more than once; the first one is what the books are about. [default: stdout]
    #[arg(long, value_name = "TARGET")]
    output: Vec<Target>,

    /// The encoding of records where --output names none: native, ecs (Elastic), ocsf or otel (a line of OTLP's JSON each).
    #[arg(long, value_name = "FORMAT", default_value = "native")]
    format: Format,

    /// Serve /metrics (Prometheus), /healthz and /readyz here, such as 127.0.0.1:9477. [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,

    /// Answer /metrics only to who sends the token in this file (Authorization: Bearer). Read again for each request.
    #[arg(long, value_name = "PATH", requires = "listen")]
    metrics_token_file: Option<PathBuf>,

    /// Stop after this time: 30s, 5m, 1h.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,

    /// Ring buffer between kernel and agent, in KiB: a power of two from 64.
    #[arg(long, value_name = "KIB", default_value = "4096", value_parser = ring_kib)]
    ring_kib: u32,

    /// What to watch, separated by commas: dropped packets (kfree_skb), connections at the pods' interfaces (tc). [default:
    /// both; before Linux 6.6 kfree_skb only, since tc filters there outlive a killed agent]
    #[arg(long, value_name = "HOOK", value_delimiter = ',')]
    hooks: Option<Vec<agent::HookName>>,

    /// Show the eBPF programs' own messages in the log.
    #[arg(long)]
    program_logs: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 30s, 5m or 1h");
    let span: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(span).map_err(|_| wrong())
}

fn ring_kib(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(kib) if kib.is_power_of_two() && (64..=1024 * 1024).contains(&kib) => Ok(kib),
        _ => Err("must be a power of two from 64 to 1048576".into()),
    }
}

pub fn run(args: AgentArgs) -> anyhow::Result<ExitCode> {
    let (access, node) = (args.api.access(), args.node_name.clone());
    if args.peers == Peers::Lookup && node.is_none() {
        anyhow::bail!("--peers=lookup needs to know which pods are this node's: give --node-name, or set NODE_NAME");
    }
    let config = Config {
        source: match args.manifests.is_empty() {
            true => From::Api(Options { access, peers: args.peers, node }),
            false => From::Manifests(args.manifests),
        },
        node: args.node_name,
        cluster: args.cluster_name,
        all_drops: args.all_drops,
        outputs: args.output,
        format: args.format,
        listen: args.listen,
        metrics_token: args.metrics_token_file,
        duration: args.duration,
        ring_bytes: args.ring_kib * 1024,
        program_logs: args.program_logs,
        hooks: args.hooks,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(agent::run(config))?;
    Ok(ExitCode::SUCCESS)
}
