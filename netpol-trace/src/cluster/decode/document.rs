//! One document of a file to the objects in it: lists are unfolded, kinds dispatched, unknown fields noticed.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::super::yaml::{self, Node, Path, Step, Value};
use super::meta::DEFAULT_NAMESPACE;
use super::{Checked, Workload, quoted};
use crate::model::Str;
use crate::model::cluster::{Object, OtherPolicy};

/// One object with where it was.
#[derive(Debug)]
pub struct Decoded<'a> {
    pub object: Object,
    /// The object's own tree; lines of its fields come from here.
    pub node: &'a Node,
    /// Whether `metadata.namespace` was absent, and "default" assumed.
    pub namespace_defaulted: bool,
}

/// What can be wrong with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// No apiVersion, no kind, or ones that the API doesn't have.
    Kind,
    /// A value of another type than the field's.
    Type,
    /// A field that the API doesn't have: the API server drops it, or refuses the object.
    UnknownField,
    /// A value that the API server's validation refuses.
    Invalid,
}

/// One thing wrong with one object.
#[derive(Debug)]
pub struct Fault {
    pub kind: FaultKind,
    pub line: u32,
    pub field: Path,
    /// `kind namespace/name` as far as known.
    pub object: String,
    /// Namespace and name, where the object has a name.
    pub named: Option<(String, String)>,
    /// Where the name is.
    pub name_line: u32,
    pub message: String,
    /// What an unknown field holds, as YAML in one line, shortened.
    pub value: Option<String>,
    /// The object could not be used.
    pub fatal: bool,
}

/// What came out of a document.
#[derive(Debug, Default)]
pub struct Output<'a> {
    pub objects: Vec<Decoded<'a>>,
    pub faults: Vec<Fault>,
    /// Objects of kinds that are not read, by kind.
    pub skipped: BTreeMap<String, u64>,
}

/// The most kinds counted apart; strangers can invent kinds.
const MAX_SKIPPED_KINDS: usize = 200;
/// The most problems reported of one object.
const MAX_FAULTS: usize = 20;

/// Decodes `root` into `output`. `kind` is what items of a typed list are when they don't say.
pub fn document<'a>(root: &'a Node, output: &mut Output<'a>) {
    object(root, None, output);
}

fn object<'a>(node: &'a Node, inherited: Option<(&str, &str)>, output: &mut Output<'a>) {
    let text = |name| node.get(name).and_then(Node::as_str).filter(|text| !text.is_empty());
    let (version, kind) = match (text("apiVersion"), text("kind"), inherited) {
        (Some(version), Some(kind), _) => (version, kind),
        (None, None, Some(inherited)) => inherited,
        (version, kind, _) => {
            let missing = match (&node.value, version, kind) {
                (Value::Mapping(_), None, None) => "no apiVersion and no kind: not a Kubernetes object",
                (Value::Mapping(_), None, _) => "no apiVersion",
                (Value::Mapping(_), ..) => "no kind",
                _ => "not a mapping: not a Kubernetes object",
            };
            output.faults.push(Fault {
                kind: FaultKind::Kind,
                line: node.line,
                field: Path::default(),
                object: kind.unwrap_or_default().chars().take(80).collect(),
                named: None,
                name_line: node.line,
                message: missing.to_owned(),
                value: None,
                fatal: true,
            });
            return;
        }
    };
    if let (Some(item), Some(Value::Sequence(items))) = (kind.strip_suffix("List"), node.get("items").map(|n| &n.value))
    {
        let inherited = (!item.is_empty()).then_some((version, item));
        for node in items {
            object(node, inherited, output);
        }
        return;
    }
    One { node, version, kind, output }.decode();
}

struct One<'o, 'a> {
    node: &'a Node,
    version: &'o str,
    kind: &'o str,
    output: &'o mut Output<'a>,
}

impl<'o, 'a> One<'o, 'a> {
    fn decode(mut self) {
        match (self.version, self.kind) {
            ("v1", "Namespace") => self.typed(|o: &core::Namespace| super::namespace(o).map(Object::Namespace)),
            ("v1", "Node") => self.typed(|o: &core::Node| super::node(o).map(Object::Node)),
            ("v1", "Pod") => self.typed(|o: &core::Pod| super::pod(o).map(Object::Pod)),
            ("v1", "Service") => self.typed(|o: &core::Service| super::service(o).map(Object::Service)),
            ("networking.k8s.io/v1", "NetworkPolicy") => {
                self.typed(|o: &networking::NetworkPolicy| super::policy(o).map(Object::Policy));
            }
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                self.typed(|o: &discovery::EndpointSlice| super::endpoint_slice(o).map(Object::EndpointSlice));
            }
            ("apps/v1" | "batch/v1", _) if self.workload() => {}
            _ => self.other(),
        }
    }

    /// Decodes a kind that holds a pod template; `false` when it is none.
    fn workload(&mut self) -> bool {
        match (self.version, self.kind) {
            ("apps/v1", "Deployment") => self.template(|o: &apps::Deployment| (&o.metadata, Some(&o.spec.template))),
            ("apps/v1", "StatefulSet") => self.template(|o: &apps::StatefulSet| (&o.metadata, Some(&o.spec.template))),
            ("apps/v1", "DaemonSet") => self.template(|o: &apps::DaemonSet| (&o.metadata, Some(&o.spec.template))),
            ("apps/v1", "ReplicaSet") => self.template(|o: &apps::ReplicaSet| (&o.metadata, o.spec.template.as_ref())),
            ("batch/v1", "Job") => {
                self.template(|o: &batch::Job| (&o.metadata, o.spec.as_ref().map(|spec| &spec.template)));
            }
            ("batch/v1", "CronJob") => self.template(|o: &batch::CronJob| {
                (&o.metadata, o.spec.job_template.spec.as_ref().map(|spec| &spec.template))
            }),
            _ => return false,
        }
        true
    }

    fn template<T: Deserialize<'a>>(&mut self, parts: impl Fn(&T) -> (&ObjectMeta, Option<&core::PodTemplateSpec>)) {
        let kind = self.kind;
        let path = Path::parse(if kind == "CronJob" { "spec.jobTemplate.spec.template" } else { "spec.template" });
        self.typed(|object: &T| {
            let (meta, template) = parts(object);
            let none = core::PodTemplateSpec::default();
            let workload = Workload { kind, meta, template: template.unwrap_or(&none), path: &path };
            super::template(workload).map(Object::Pod)
        });
    }

    /// Kinds that are not decoded: policies of other APIs are noted, mistakes in a known kind's name are told, the rest
    /// is counted.
    fn other(&mut self) {
        let group = self.version.split_once('/').map_or("", |(group, _)| group);
        let other_policy = super::OTHER_POLICIES.iter().any(|(g, kind, _)| (*g, *kind) == (group, self.kind));
        if other_policy {
            let meta = |name| self.node.get("metadata").and_then(|meta| meta.get(name)).and_then(Node::as_str);
            let bounded = |text: &str| -> Str { text.chars().take(253).collect::<String>().into() };
            let object = OtherPolicy {
                group: group.into(),
                kind: self.kind.into(),
                namespace: meta("namespace").map(bounded),
                name: meta("name").map(bounded).unwrap_or_default(),
            };
            let object = Object::OtherPolicy(object);
            self.output.objects.push(Decoded { object, node: self.node, namespace_defaulted: false });
            return;
        }
        const KNOWN: [(&str, &str); 12] = [
            ("v1", "Namespace"),
            ("v1", "Node"),
            ("v1", "Pod"),
            ("v1", "Service"),
            ("networking.k8s.io/v1", "NetworkPolicy"),
            ("discovery.k8s.io/v1", "EndpointSlice"),
            ("apps/v1", "Deployment"),
            ("apps/v1", "StatefulSet"),
            ("apps/v1", "DaemonSet"),
            ("apps/v1", "ReplicaSet"),
            ("batch/v1", "Job"),
            ("batch/v1", "CronJob"),
        ];
        // Only groups of Kubernetes itself: another project's Node or Service is its own affair.
        let home = matches!(
            group,
            "" | "apps" | "batch" | "extensions" | "networking" | "networking.k8s.io" | "discovery.k8s.io"
        );
        let meant = KNOWN.iter().find(|(_, kind)| kind.eq_ignore_ascii_case(self.kind));
        if home && let Some((version, kind)) = meant {
            let message = format!(
                "apiVersion {} has no kind {}; write `apiVersion: {version}` and `kind: {kind}`",
                quoted(self.version),
                quoted(self.kind)
            );
            let field = if *kind == self.kind { "apiVersion" } else { "kind" };
            self.fault(FaultKind::Kind, Path::default().field(field), message, true);
            return;
        }
        let mut name = self.kind.chars().take(80).collect::<String>();
        if !self.output.skipped.contains_key(&name) && self.output.skipped.len() >= MAX_SKIPPED_KINDS {
            name = "(other kinds)".to_owned();
        }
        *self.output.skipped.entry(name).or_default() += 1;
    }

    fn typed<T: Deserialize<'a>>(&mut self, convert: impl FnOnce(&T) -> Checked<Object>) {
        let node = self.node;
        let (decoded, unknown) = yaml::decode::<T>(node, MAX_FAULTS);
        for path in unknown {
            // A newer server's status is no mistake of the file's author; and a list's item may bring its own kind.
            let first = path.0.first();
            let skip =
                ["status", "apiVersion", "kind"].iter().any(|name| first == Some(&Step::Field((*name).to_owned())));
            if !skip {
                let name = path.to_string();
                let message = format!("unknown field {}: the API server drops or refuses it", quoted(&name));
                self.fault(FaultKind::UnknownField, path, message, false);
            }
        }
        match decoded {
            Err((path, error)) => {
                let text_wanted = error.to_string().ends_with("expected text");
                let message = match node.at(&path).map(|node| &node.value) {
                    Some(Value::Bool { raw: Some(raw), value }) if text_wanted => {
                        format!("unquoted {raw} is the boolean {value} in YAML, and this must be text: write \"{raw}\"")
                    }
                    Some(Value::Number { raw: Some(raw), .. }) if text_wanted => {
                        format!("unquoted {raw} is a number in YAML, and this must be text: write \"{raw}\"")
                    }
                    _ => error.to_string(),
                };
                self.fault(FaultKind::Type, path, message, true);
            }
            Ok(decoded) => match convert(&decoded) {
                Ok(object) => {
                    let namespace = node.get("metadata").and_then(|meta| meta.get("namespace")).and_then(Node::as_str);
                    let namespace_defaulted = namespace.is_none_or(str::is_empty);
                    self.output.objects.push(Decoded { object, node, namespace_defaulted });
                }
                Err(violations) => {
                    for violation in violations {
                        self.fault(FaultKind::Invalid, violation.field, violation.message, true);
                    }
                }
            },
        }
    }

    fn fault(&mut self, kind: FaultKind, field: Path, message: String, fatal: bool) {
        let meta = |name| self.node.get("metadata").and_then(|meta| meta.get(name)).and_then(Node::as_str);
        let name = match (meta("namespace"), meta("name")) {
            (Some(namespace), Some(name)) => format!("{} {namespace}/{name}", self.kind),
            (None, Some(name)) => format!("{} {name}", self.kind),
            _ => self.kind.to_owned(),
        };
        let object = name.chars().take(400).collect();
        let bounded = |text: &str| text.chars().take(253).collect::<String>();
        let namespace = meta("namespace").unwrap_or(DEFAULT_NAMESPACE);
        let named = meta("name").map(|name| (bounded(namespace), bounded(name)));
        let name_line = self.node.line_of(&Path::parse("metadata.name"));
        let line = self.node.line_of(&field);
        let unknown = (kind == FaultKind::UnknownField).then(|| self.node.at(&field)).flatten();
        let value = unknown.map(|node| node.flow(200));
        self.output.faults.push(Fault { kind, line, field, object, named, name_line, message, value, fatal });
    }
}
