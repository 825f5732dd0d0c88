//! `netpol-trace explain`: whether the policies allow a connection, and why.

mod queries;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::endpoints::{self, ConnectionArgs, ResolvedConnection};
use super::input::{self, ClusterInput, Cni, InputError, TextOrJson, is_stdin};
use crate::cluster::Index;
use crate::model::cluster::Direction;
use crate::model::{Hint, ServiceRef, Verdict, VerdictResult};
use crate::policy;
use crate::policy::{ClientRequest, CniOptions, RuleCheck};

/// Evaluate the policies for a connection: which isolate the two pods, which rule allows it, and otherwise what each rule misses.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Endpoints: NS/POD, NS/deploy/NAME (also sts, ds, rs, job, cronjob) or an IP address. --to also takes NS/svc/NAME, which stands for the pods
behind the service, on the ports to which the service forwards.

Exit codes: 0 allowed, 1 denied (for a service: to at least one of its pods), 2 wrong arguments or input with errors, 3 undetermined. With
--queries: 0, or 2 if the input cannot be used.

Examples:
  netpol-trace explain --manifests cluster.yaml --from staging/api-7d9 --to staging/svc/db-svc --port 3306
  kubectl get -A -o yaml pods,namespaces,networkpolicies,services,endpointslices,nodes |
    netpol-trace explain --manifests - --from qa-test/deploy/frontend --to 93.184.216.34 --port 443/TCP")]
pub struct ExplainArgs {
    #[command(flatten)]
    source: ClusterInput,
    /// The opener of the connection
    #[arg(long, required_unless_present = "queries", value_name = "NS/POD|NS/KIND/NAME|IP")]
    from: Option<String>,
    /// The destination of the connection
    #[arg(long, required_unless_present = "queries", value_name = "NS/POD|NS/svc/NAME|IP")]
    to: Option<String>,
    /// 5432/TCP, 53/UDP, 80 (TCP), a port's name, or icmp. For a service: the service's port, not needed if there is only one
    #[arg(long, conflicts_with = "queries")]
    port: Option<String>,
    /// JSON lines {"id":…,"from":{"pod":"ns/name"}|{"ip":"…"},"to":{…},"protocol":"TCP","port":80} from a file or -;
    /// the results are JSON lines in the same order
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "to", "output"])]
    queries: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value = "text")]
    output: TextOrJson,
    #[command(flatten)]
    cni: Cni,
}

pub fn run(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    input::finish("explain", explain(args))
}

fn explain(args: &ExplainArgs) -> Result<ExitCode, InputError> {
    if args.queries.as_deref().is_some_and(is_stdin) && args.source.is_stdin() {
        return Err(InputError::TwoInputs("--manifests - and --queries -"));
    }
    let index = args.source.load()?;
    let options = args.cni.options();
    if let Some(path) = &args.queries {
        return queries::run(&index, &options, path);
    }
    let question = ConnectionArgs {
        from: args.from.as_deref().unwrap_or_default(),
        to: args.to.as_deref().unwrap_or_default(),
        port: args.port.as_deref(),
    };
    let explained = answer(&index, &options, &question)?;
    input::print(&match args.output {
        TextOrJson::Text => text::page(&explained),
        TextOrJson::Json => input::json(&explained)?,
    })?;
    Ok(ExitCode::from(match explained.result {
        VerdictResult::Allowed => 0,
        VerdictResult::Denied => 1,
        VerdictResult::Undetermined => 3,
    }))
}

/// The result, with one entry for each pod that the connection can reach.
#[derive(Debug, Serialize)]
struct Explained {
    from: String,
    to: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<ServiceRef>,
    /// Denied if one entry is, else undetermined if one is.
    result: VerdictResult,
    /// Why there is no entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    answers: Vec<ExplainedConnection>,
}

#[derive(Debug, Serialize)]
struct ExplainedConnection {
    /// The pod or address that sends.
    from: String,
    to: String,
    /// `3306/TCP`, as policy sees it.
    port: String,
    /// How many of the service's backends have this result.
    #[serde(skip_serializing_if = "is_one")]
    backends: usize,
    verdict: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<Hint>,
    egress: Vec<PolicyCheck>,
    ingress: Vec<PolicyCheck>,
    /// Whether each endpoint is a pod. Policies isolate pods only.
    #[serde(skip)]
    pods: [bool; 2],
    /// How the endpoints were resolved, where that is not plain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    resolved: Vec<String>,
}

/// A policy that isolates the pod, rule by rule.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct PolicyCheck {
    policy: String,
    rules: Vec<RuleCheck>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(count: &usize) -> bool {
    *count == 1
}

fn answer(index: &Index, options: &CniOptions, question: &ConnectionArgs<'_>) -> Result<Explained, InputError> {
    let resolved = endpoints::resolve(index, question)?;
    let mut answers: Vec<ExplainedConnection> = Vec::new();
    for case in &resolved.cases {
        let next = one_answer(index, options, case, resolved.service.as_ref());
        // Replicas have the same result.
        match answers.iter_mut().find(|a| same_but_for_the_pod(a, &next)) {
            Some(same) => same.backends += 1,
            None => answers.push(next),
        }
    }
    let any = |result| answers.iter().any(|a| a.verdict.result == result);
    let result = if any(VerdictResult::Denied) {
        VerdictResult::Denied
    } else if any(VerdictResult::Undetermined) || answers.is_empty() {
        VerdictResult::Undetermined
    } else {
        VerdictResult::Allowed
    };
    // Entries with the overall result come first.
    answers.sort_by_key(|a| a.verdict.result != result);
    let why = resolved.why_none.filter(|_| answers.is_empty());
    Ok(Explained { from: resolved.from, to: resolved.to, service: resolved.service, result, why, answers })
}

fn same_but_for_the_pod(a: &ExplainedConnection, b: &ExplainedConnection) -> bool {
    a.port == b.port && a.verdict == b.verdict && (&a.egress, &a.ingress) == (&b.egress, &b.ingress)
}

fn one_answer(
    index: &Index,
    options: &CniOptions,
    case: &ResolvedConnection<'_>,
    service: Option<&ServiceRef>,
) -> ExplainedConnection {
    let connection = &case.connection;
    let evaluation = policy::evaluate(index, connection, options);
    let checks = |direction: Direction| {
        let policies = evaluation.side(direction).isolated_by;
        let check = |policy: &std::sync::Arc<crate::model::cluster::Policy>| PolicyCheck {
            policy: format!("{}/{}", policy.namespace, policy.name),
            rules: policy::check_rules(index, connection, options, direction, policy),
        };
        policies.iter().map(check).collect()
    };
    let request = ClientRequest { service, original: case.original.as_ref(), source_port: None };
    ExplainedConnection {
        from: case.from.clone(),
        to: case.to.clone(),
        port: case.port.clone(),
        backends: 1,
        verdict: policy::verdict_of(index, connection, options),
        hint: policy::hint(index, connection, options, request),
        egress: checks(Direction::Egress),
        ingress: checks(Direction::Ingress),
        pods: [&connection.source, &connection.destination]
            .map(|end| matches!(end.identity, policy::PolicyIdentity::Pod(_))),
        resolved: case.resolved.clone(),
    }
}
