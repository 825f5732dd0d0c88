//! What `explain`, `lint`, `suggest` and `replay` share: input, errors, output, and the options for what Kubernetes leaves to the CNI.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use super::cluster::ClusterArgs;
use super::endpoints;
use crate::cluster::Object;
use crate::cluster::location::Severity;
use crate::cluster::manifests::{self, Loaded};
use crate::cluster::{Index, api};
use crate::policy::CniOptions;
use crate::recorded;
use crate::recorded::connections::{Collector, RecordedConnections};
pub(super) use crate::recorded::input::is_stdin;
use crate::recorded::unpack::Unreadable;
use crate::text::{counted, escape, thousands};

/// Problems of the input that are reported; more are counted.
const PROBLEMS_SHOWN: usize = 50;

/// The exit code for wrong usage and unusable input.
pub(super) const USAGE_OR_INPUT: u8 = 2;

/// Why a subcommand has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputError {
    #[error("the manifests have errors (see above), so a result could be wrong")]
    Manifests,
    #[error("cannot read the cluster: {0}")]
    Cluster(#[from] api::ApiError),
    #[error(transparent)]
    Question(#[from] endpoints::EndpointError),
    #[error(transparent)]
    Records(#[from] recorded::input::LogError),
    #[error("{0} is empty: it has no record")]
    Empty(String),
    #[error("no record was read; see above")]
    NotRead,
    /// Queries that cannot be read: the option with its file, and the reason.
    #[error("{0}: {1}")]
    Read(String, io::Error),
    #[error("{0} cannot both be standard input")]
    TwoInputs(&'static str),
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// Returns the subcommand's exit code. Reports an error on stderr.
pub(super) fn finish(subcommand: &str, result: Result<ExitCode, InputError>) -> anyhow::Result<ExitCode> {
    match result {
        Ok(code) => Ok(code),
        Err(InputError::Output(error)) => Err(error.into()),
        Err(error) => {
            eprintln!("netpol-trace {subcommand}: {}", escape(&error.to_string()));
            Ok(ExitCode::from(USAGE_OR_INPUT))
        }
    }
}

/// How to write the result.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum TextOrJson {
    Text,
    Json,
}

pub(super) fn json(answer: &impl serde::Serialize) -> Result<String, InputError> {
    Ok(serde_json::to_string_pretty(answer).map_err(io::Error::from)? + "\n")
}

/// Writes the result to stdout.
pub(super) fn print(answer: &str) -> Result<(), InputError> {
    let mut out = io::stdout().lock();
    out.write_all(answer.as_bytes())?;
    Ok(out.flush()?)
}

/// Where the cluster's objects come from.
#[derive(Debug, clap::Args)]
pub(super) struct ClusterInput {
    /// File or folder of YAML or JSON manifests, or - for standard input; repeatable. If several define the same object, the last one is used.
    /// Without --manifests, the kubeconfig's current context is read. With --context too, the manifests replace objects of that cluster
    #[arg(long, value_name = "PATH")]
    manifests: Vec<PathBuf>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl ClusterInput {
    pub fn is_stdin(&self) -> bool {
        self.manifests.iter().any(|path| is_stdin(path))
    }

    /// Reads the objects. Reports problems on stderr, with their places.
    pub fn load(&self) -> Result<Index, InputError> {
        checked(load(&self.manifests, &self.cluster)?)
    }
}

/// Reads the cluster, the manifests, or both; objects in manifests replace those of the cluster.
pub(super) fn load(paths: &[PathBuf], cluster: &ClusterArgs) -> Result<Loaded, api::ApiError> {
    let live = if paths.is_empty() || cluster.given() { Some(api::load(&cluster.access())?) } else { None };
    Ok(match (live, paths) {
        (Some(live), []) => live,
        (Some(live), paths) => live.under(manifests::load(paths)),
        (None, paths) => manifests::load(paths),
    })
}

/// Reports the problems of the input on stderr. Input with errors gives no result.
fn checked(loaded: Loaded) -> Result<Index, InputError> {
    let to_report = || loaded.problems.iter().filter(|p| p.severity > Severity::Info);
    for problem in to_report().take(PROBLEMS_SHOWN) {
        eprintln!("{}: {problem}", problem.severity);
    }
    for located in loaded.objects.iter().filter(|located| located.namespace_defaulted) {
        if let Object::Policy(policy) = &located.object {
            let name = crate::text::escape(&policy.name);
            eprintln!(
                "warning: {}: NetworkPolicy {name} has no namespace, so it counts for \"default\"",
                located.place
            );
        }
    }
    match to_report().count().saturating_sub(PROBLEMS_SHOWN) {
        0 => {}
        more => eprintln!("and {more} more problems"),
    }
    if loaded.error().is_some() {
        return Err(InputError::Manifests);
    }
    if !loaded.objects.iter().any(|located| matches!(located.object, Object::Policy(_))) {
        eprintln!("warning: the input has no NetworkPolicy, so no pod is isolated");
    }
    Ok(Index::from_objects(loaded.objects.into_iter().map(|located| located.object)))
}

/// Options for what Kubernetes leaves to the CNI.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "What Kubernetes leaves to the CNI")]
pub(super) struct Cni {
    /// Whether an ipBlock matches pod addresses (Calico, kube-router: yes; Cilium: no)
    #[arg(long, value_enum, default_value = "yes", value_name = "ANSWER")]
    ipblock_matches_pods: YesNoUnknown,
    /// Whether policies isolate hostNetwork pods and select them by labels (no: they count as their node)
    #[arg(long, value_enum, default_value = "unknown", value_name = "ANSWER")]
    host_network_is_pod: YesNoUnknown,
    /// Whether traffic between a pod and its own node is always allowed
    #[arg(long, value_enum, default_value = "yes", value_name = "ANSWER")]
    own_node_allowed: YesNoUnknown,
    /// Whether ICMP and other protocols that policies cannot name pass isolated pods
    #[arg(long, value_enum, default_value = "unknown", value_name = "ANSWER")]
    other_protocols_pass: YesNoUnknown,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum YesNoUnknown {
    Yes,
    No,
    Unknown,
}

impl Cni {
    pub(super) fn options(&self) -> CniOptions {
        CniOptions {
            ipblock_matches_pods: self.ipblock_matches_pods.into(),
            host_network_is_pod: self.host_network_is_pod.into(),
            own_node_allowed: self.own_node_allowed.into(),
            other_protocols_pass: self.other_protocols_pass.into(),
        }
    }
}

impl From<YesNoUnknown> for Option<bool> {
    fn from(answer: YesNoUnknown) -> Option<bool> {
        match answer {
            YesNoUnknown::Yes => Some(true),
            YesNoUnknown::No => Some(false),
            YesNoUnknown::Unknown => None,
        }
    }
}

/// The drops that a subcommand read from its logs.
pub(super) struct RecordedDrops {
    pub log: RecordedConnections,
    /// `drops.jsonl`, `3 files`.
    names: String,
    /// A log could not be read to its end; what was read counts.
    pub broken: bool,
}

impl RecordedDrops {
    /// Returns a message if no drop by policy was recorded.
    pub fn nothing_to(&self, action: &str) -> Option<String> {
        let records = counted(self.log.records, "record");
        self.log
            .connections
            .is_empty()
            .then(|| format!("No drop by policy in {} ({records} read): nothing to {action}.", self.names))
    }
}

/// Reads recorded drops from files, patterns, folders or standard input.
pub(super) fn records(arguments: &[PathBuf]) -> Result<RecordedDrops, InputError> {
    let mut inputs = recorded::input::in_order_of_time(arguments)?;
    let mut collector = Collector::default();
    let mut broken = false;
    for input in &mut inputs {
        let problem = match input.open() {
            Ok(None) => continue,
            Ok(Some(reader)) => {
                let (counts, result) = collector.read(&input.name, reader);
                let failed = result.err().map(|error| input.unreadable(Unreadable::from_read(error)));
                failed.or_else(|| counts.problem(input))
            }
            Err(problem) => Some(problem),
        };
        if let Some(problem) = problem {
            eprintln!("error: {}", escape(&problem.to_string()));
            broken = true;
        }
    }
    let (log, names) = (collector.recorded, recorded::input::names(&inputs));
    if log.records == 0 {
        return Err(if broken { InputError::NotRead } else { InputError::Empty(names) });
    }
    report_unused(&log);
    Ok(RecordedDrops { log, names, broken })
}

/// Reports on stderr what of a log was not used.
fn report_unused(log: &RecordedConnections) {
    if let Some((place, what)) = &log.first_broken {
        let (lines, first) = match log.broken {
            1 => ("1 line is not a netpol-trace record and was skipped".to_owned(), "it"),
            many => (format!("{} lines are not netpol-trace records and were skipped", thousands(many)), "the first"),
        };
        eprintln!("warning: {lines}; {first} is {}: {}", escape(place), escape(what));
    }
    if log.other_causes > 0 {
        let (packets, were) =
            (counted(log.other_causes, "recorded packet"), if log.other_causes == 1 { "was" } else { "were" });
        eprintln!("note: {packets} {were} dropped for other reasons than policy");
    }
    if log.beyond > 0 {
        eprintln!(
            "warning: {} of connections beyond the first 100,000 are not evaluated",
            counted(log.beyond, "packet")
        );
    }
}
