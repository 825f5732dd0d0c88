//! `netpol-trace suggest`: the smallest policy change that allows a connection, or recorded drops.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::Value;

use super::endpoints::{self, ConnectionArgs};
use super::input::{self, ClusterInput, Cni, InputError, is_stdin};
use crate::cluster::Index;
use crate::cluster::Object;
use crate::model::cluster::Policy;
use crate::policy::suggest::{NoSuggestion, OpenedPair, SuggestedChange};
use crate::policy::{CniOptions, Connection, suggest};
use crate::text::escape;

/// Write the smallest NetworkPolicy change that allows a connection, or recorded drops: YAML for kubectl apply.
///
/// Adds rules and never changes one. Never isolates a pod that is not isolated now. Selects workloads by labels that stay the same over a rollout.
/// Lists what else each rule allows between the pods in the input.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 the printed policies allow every connection (or it was allowed before), or the records have no drop by policy; 1 no policy can
allow some connections; 2 wrong arguments, input with errors, or a log that has no record or cannot be read to its end (what was read
counts).

Examples:
  netpol-trace suggest --manifests cluster.yaml --from staging/api-7d9 --to staging/svc/db-svc --port 3306
  netpol-trace suggest --manifests cluster.yaml drops.jsonl > allow.yaml   for every recorded drop
  netpol-trace suggest --manifests cluster.yaml 'drops.jsonl*'             rotated and compressed logs too
  netpol-trace suggest --manifests cluster.yaml drops.jsonl | kubectl apply --dry-run=server -f -")]
pub struct SuggestArgs {
    /// Records of the agent: files of JSON lines (also gzip or zstd), quoted patterns, the folder of an agent's --history-dir, or -
    /// for standard input
    #[arg(value_name = "RECORDS", required_unless_present = "from", conflicts_with = "from")]
    records: Vec<PathBuf>,
    #[command(flatten)]
    source: ClusterInput,
    /// The opener of the connection
    #[arg(long, requires = "to", value_name = "NS/POD|NS/KIND/NAME|IP")]
    from: Option<String>,
    /// The destination of the connection
    #[arg(long, requires = "from", value_name = "NS/POD|NS/svc/NAME|IP")]
    to: Option<String>,
    /// 5432/TCP, 53/UDP, 80 (TCP) or a port's name; for a service: the service's port
    #[arg(long, requires = "from")]
    port: Option<String>,
    #[arg(short, long, value_enum, default_value = "yaml")]
    output: YamlOrJson,
    #[command(flatten)]
    cni: Cni,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum YamlOrJson {
    Yaml,
    Json,
}

pub fn run(args: &SuggestArgs) -> anyhow::Result<ExitCode> {
    input::finish("suggest", work(args))
}

fn work(args: &SuggestArgs) -> Result<ExitCode, InputError> {
    if args.records.iter().any(|path| is_stdin(path)) && args.source.is_stdin() {
        return Err(InputError::TwoInputs("RECORDS and --manifests"));
    }
    let mut index = args.source.load()?;
    let options = args.cni.options();
    let mut plan = Plan::default();
    let mut broken = false;
    match &*args.records {
        [] => {
            let question = ConnectionArgs {
                from: args.from.as_deref().unwrap_or_default(),
                to: args.to.as_deref().unwrap_or_default(),
                port: args.port.as_deref(),
            };
            let index = index;
            let resolved = endpoints::resolve(&index, &question)?;
            let mut now = index.clone();
            for case in &resolved.cases {
                let title = format!("{} -> {} {}", case.from, case.to, case.port);
                plan.add(&mut now, &case.connection, &options, title);
            }
            if let Some(why) = resolved.why_none.filter(|_| resolved.cases.is_empty()) {
                plan.not_suggested.push(NotSuggested { connection: resolved.to, why });
            }
        }
        files => {
            let recorded = input::records(files)?;
            (plan.nothing, broken) = (recorded.nothing_to("suggest"), recorded.broken);
            let log = recorded.log;
            for object in log.missing_objects(&index) {
                index.upsert(object);
            }
            let mut now = index.clone();
            for recorded in &log.connections {
                plan.add(&mut now, &recorded.connection(&index), &options, recorded.title());
            }
        }
    }
    input::print(&match args.output {
        YamlOrJson::Yaml => plan.yaml(),
        YamlOrJson::Json => input::json(&plan.report())?,
    })?;
    Ok(ExitCode::from(if broken { input::USAGE_OR_INPUT } else { u8::from(!plan.not_suggested.is_empty()) }))
}

/// The changes, one for each policy.
#[derive(Debug, Default)]
struct Plan {
    policies: BTreeMap<(String, String), Planned>,
    allowed_already: Vec<String>,
    not_suggested: Vec<NotSuggested>,
    /// Why no connection was evaluated.
    nothing: Option<String>,
}

#[derive(Debug)]
struct Planned {
    policy: Policy,
    created: bool,
    added: Vec<Added>,
}

/// One added rule.
#[derive(Debug, Serialize)]
struct Added {
    /// `ingress[1]`
    rule: String,
    /// The connection that it is for.
    connection: String,
    also_allows: Vec<OpenedPair>,
    #[serde(skip_serializing_if = "is_zero")]
    pairs_not_looked_at: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

#[derive(Debug, Serialize)]
struct NotSuggested {
    connection: String,
    why: String,
}

impl Plan {
    /// Adds the changes for one connection. `now` is the cluster with the changes so far.
    fn add(&mut self, now: &mut Index, connection: &Connection<'_>, options: &CniOptions, title: String) {
        let changes = suggest::suggest(now, &suggest::rebind(now, connection), options);
        match changes {
            Ok(changes) => {
                for change in changes {
                    now.upsert(Object::Policy(change.policy.clone()));
                    self.take(change, title.clone());
                }
            }
            Err(NoSuggestion::Allowed) => self.allowed_already.push(title),
            Err(nothing) => self.not_suggested.push(NotSuggested { connection: title, why: nothing.to_string() }),
        }
    }

    fn take(&mut self, change: SuggestedChange, title: String) {
        let key = (change.policy.namespace.to_string(), change.policy.name.to_string());
        let added = Added {
            rule: format!("{}[{}]", change.direction, change.rule),
            connection: title,
            also_allows: change.side_effects.opened,
            pairs_not_looked_at: change.side_effects.not_looked_at,
        };
        let planned = self.policies.entry(key).or_insert_with(|| Planned {
            policy: change.policy.clone(),
            created: change.created,
            added: Vec::new(),
        });
        planned.policy = change.policy;
        planned.added.push(added);
    }

    fn yaml(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| {
            let _ = writeln!(text, "# {}", escape(&line));
        };
        if let Some(nothing) = &self.nothing {
            line(nothing.clone());
        }
        match (self.policies.len(), self.not_suggested.len()) {
            (0, 0) if self.allowed_already.is_empty() => {}
            (0, 0) => line("Nothing to change: the policies allow it already.".into()),
            (0, _) => {}
            (n, _) => line(format!("{n} {} to apply. Read what each allows, then kubectl apply -f.", policies(n))),
        }
        for not in &self.not_suggested {
            line(format!("NOT solved: {}: {}", not.connection, not.why));
        }
        const SHOWN: usize = 10;
        for title in self.allowed_already.iter().take(SHOWN) {
            line(format!("allowed already, or by the rules below: {title}"));
        }
        if let Some(more @ 1..) = self.allowed_already.len().checked_sub(SHOWN) {
            line(format!("and {more} more"));
        }
        for planned in self.policies.values() {
            text.push_str("---\n");
            planned.comment(&mut text);
            text.push_str(&suggest::yaml(&planned.policy));
        }
        text
    }

    fn report(&self) -> Value {
        let changes = self.policies.values().map(|planned| {
            serde_json::json!({
                "policy": suggest::json(&planned.policy),
                "created": planned.created,
                "added": planned.added,
            })
        });
        serde_json::json!({
            "changes": changes.collect::<Vec<_>>(),
            "allowed_already": self.allowed_already,
            "not_suggested": self.not_suggested,
            "nothing": self.nothing,
        })
    }
}

fn policies(count: usize) -> &'static str {
    if count == 1 { "policy" } else { "policies" }
}

impl Planned {
    /// Writes what to know before applying: new or changed, for which connection, and what else is allowed.
    fn comment(&self, text: &mut String) {
        let mut line = |line: String| {
            let _ = writeln!(text, "# {}", escape(&line));
        };
        let (namespace, name) = (&self.policy.namespace, &self.policy.name);
        line(match self.created {
            true => format!("{namespace}/{name} is new; its pods are isolated already."),
            false => format!("{namespace}/{name} as it is, with added rules."),
        });
        for added in &self.added {
            line(format!("{} allows {}", added.rule, added.connection));
            if added.also_allows.is_empty() {
                line("  and nothing else between the pods in the input".to_owned());
            }
            const SHOWN: usize = 8;
            for opened in added.also_allows.iter().take(SHOWN) {
                line(format!("  also {} -> {}", opened.from, opened.to));
            }
            if let Some(more @ 1..) = added.also_allows.len().checked_sub(SHOWN) {
                line(format!("  and {more} more pairs (-o json lists them)"));
            }
            if added.pairs_not_looked_at > 0 {
                line(format!("  {} more pairs were not checked: too many", added.pairs_not_looked_at));
            }
        }
    }
}
