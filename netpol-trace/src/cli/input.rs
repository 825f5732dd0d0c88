//! What the verbs that judge have in common: their input, its errors, how they answer, and the points that Kubernetes
//! leaves to the CNI.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::cluster::ClusterArgs;
use super::ends;
use crate::cluster::manifests::{self, Loaded};
use crate::cluster::place::Severity;
use crate::cluster::{Index, api};
use crate::model::cluster::Object;
use crate::policy::Options;
use crate::recorded::{self, Log};
use crate::text::escape;

/// Problems of the input that are printed; more are counted.
const PROBLEMS_SHOWN: usize = 50;

/// The exit code for wrong usage and unusable input.
pub(super) const USAGE_OR_INPUT: u8 = 2;

/// What went wrong before there was an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the input has errors, so an answer could be wrong; see above")]
    Manifests,
    #[error("the cluster can't be read: {0}")]
    Cluster(#[from] api::Trouble),
    #[error(transparent)]
    Question(#[from] ends::Error),
    /// Queries or records that can't be read; the name is the file's, or the option with it.
    #[error("{0}: {1}")]
    Read(String, io::Error),
    #[error("{0} can't both be standard input")]
    TwoInputs(&'static str),
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// The verb's exit code; an error is told on stderr.
pub(super) fn finish(verb: &str, result: Result<ExitCode, Error>) -> anyhow::Result<ExitCode> {
    match result {
        Ok(code) => Ok(code),
        // `| head` has seen enough.
        Err(Error::Output(error)) => Err(error.into()),
        Err(error) => {
            eprintln!("netpol-trace {verb}: {}", escape(&error.to_string()));
            Ok(ExitCode::from(USAGE_OR_INPUT))
        }
    }
}

/// Text for people, or JSON.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Output {
    Text,
    Json,
}

pub(super) fn json(answer: &impl serde::Serialize) -> Result<String, Error> {
    Ok(serde_json::to_string_pretty(answer).map_err(io::Error::from)? + "\n")
}

/// The answer, on stdout.
pub(super) fn print(answer: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(answer.as_bytes())?;
    Ok(out.flush()?)
}

/// Whether the path stands for standard input.
pub(super) fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Where the cluster's objects come from.
#[derive(Debug, clap::Args)]
pub(super) struct Source {
    /// File or folder of YAML or JSON manifests, or - for standard input; repeatable. Of objects with one name the last counts.
    /// Without it the cluster of the kubeconfig's current context is read; with --context too, manifests go over what is there
    #[arg(long, value_name = "PATH")]
    manifests: Vec<PathBuf>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl Source {
    pub fn is_stdin(&self) -> bool {
        self.manifests.iter().any(|path| is_stdin(path))
    }

    /// Reads it; its problems go to stderr with their places.
    pub fn load(&self) -> Result<Index, Error> {
        told(load(&self.manifests, &self.cluster)?)
    }
}

/// What the manifests hold, over what the cluster has, as far as each is asked for.
pub(super) fn load(paths: &[PathBuf], cluster: &ClusterArgs) -> Result<Loaded, api::Trouble> {
    let live = if paths.is_empty() || cluster.given() { Some(api::load(&cluster.access())?) } else { None };
    Ok(match (live, paths) {
        (Some(live), []) => live,
        (Some(live), paths) => live.under(manifests::load(paths)),
        (None, paths) => manifests::load(paths),
    })
}

/// The problems of the input go to stderr; one with errors gives no answer.
fn told(loaded: Loaded) -> Result<Index, Error> {
    let worth_saying = || loaded.problems.iter().filter(|p| p.severity > Severity::Info);
    for problem in worth_saying().take(PROBLEMS_SHOWN) {
        eprintln!("{}: {problem}", problem.severity);
    }
    for located in loaded.objects.iter().filter(|located| located.namespace_defaulted) {
        if let Object::Policy(policy) = &located.object {
            let name = crate::text::escape(&policy.name);
            eprintln!(
                "warning: {}: NetworkPolicy {name} names no namespace: taken for \"default\" only",
                located.place
            );
        }
    }
    match worth_saying().count().saturating_sub(PROBLEMS_SHOWN) {
        0 => {}
        more => eprintln!("and {more} more problems"),
    }
    if loaded.error().is_some() {
        return Err(Error::Manifests);
    }
    if !loaded.objects.iter().any(|located| matches!(located.object, Object::Policy(_))) {
        eprintln!("warning: the input has no NetworkPolicy: nothing is isolated");
    }
    Ok(Index::from_objects(loaded.objects.into_iter().map(|located| located.object)))
}

/// What Kubernetes leaves to the CNI.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "What Kubernetes leaves to the CNI")]
pub(super) struct Cni {
    /// ipBlock matches pod addresses (Calico, kube-router: yes; Cilium: no)
    #[arg(long, value_enum, default_value = "yes", value_name = "ANSWER")]
    ipblock_matches_pods: Answer,
    /// hostNetwork pods are subject to policy and selected by labels like others (no: they look like their node)
    #[arg(long, value_enum, default_value = "unknown", value_name = "ANSWER")]
    host_network_is_pod: Answer,
    /// A pod and its own node may always talk
    #[arg(long, value_enum, default_value = "yes", value_name = "ANSWER")]
    own_node_allowed: Answer,
    /// ICMP and other protocols that policies can't name pass isolated pods
    #[arg(long, value_enum, default_value = "unknown", value_name = "ANSWER")]
    other_protocols_pass: Answer,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Answer {
    Yes,
    No,
    Unknown,
}

impl Cni {
    pub(super) fn options(&self) -> Options {
        Options {
            ipblock_matches_pods: self.ipblock_matches_pods.into(),
            host_network_is_pod: self.host_network_is_pod.into(),
            own_node_allowed: self.own_node_allowed.into(),
            other_protocols_pass: self.other_protocols_pass.into(),
        }
    }
}

impl From<Answer> for Option<bool> {
    fn from(answer: Answer) -> Option<bool> {
        match answer {
            Answer::Yes => Some(true),
            Answer::No => Some(false),
            Answer::Unknown => None,
        }
    }
}

/// Reads recorded drops from a file, or from standard input for `-`.
pub(super) fn records(path: &Path) -> Result<Log, Error> {
    let log = match is_stdin(path) {
        true => recorded::read(io::stdin().lock()),
        false => File::open(path).and_then(|file| recorded::read(BufReader::new(file))),
    };
    let log = log.map_err(|error| Error::Read(path.display().to_string(), error))?;
    tell_of_log(&log);
    Ok(log)
}

/// Says on stderr what of a log was not used.
fn tell_of_log(log: &Log) {
    if let Some((line, what)) = &log.first_broken {
        eprintln!("warning: {} lines are no records; the first is line {line}: {}", log.broken, escape(what));
    }
    if log.other_causes > 0 {
        eprintln!("note: {} recorded packets were dropped for other reasons than policy", log.other_causes);
    }
    if log.beyond > 0 {
        eprintln!("warning: {} packets of more connections than are looked at", log.beyond);
    }
    if log.flows.is_empty() {
        eprintln!("note: the records hold no drop by policy");
    }
}
