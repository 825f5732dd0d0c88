//! One document of a file to the objects in it. Lists are unfolded, and unknown fields are noticed.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::super::kinds::workload::{self, WORKLOADS};
use super::super::kinds::{KINDS, OTHER_POLICIES, Object};
use super::super::resource::KindInfo;
use super::super::yaml::{self, Path, Step, Value, YamlNode};
use super::meta::DEFAULT_NAMESPACE;
use super::{Checked, quoted};
use crate::model::Str;
use crate::model::cluster::OtherPolicy;

/// An object, and its part of the document.
#[derive(Debug)]
pub struct DocumentObject<'a> {
    pub object: Object,
    /// Has the lines of the object's fields.
    pub node: &'a YamlNode,
    /// The file has no `metadata.namespace`, so `default` is assumed.
    pub namespace_defaulted: bool,
}

/// What can be wrong with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// apiVersion or kind is missing, or the API does not have them.
    Kind,
    /// A value of another type than the field's.
    Type,
    /// A field that the API does not have: the API server drops it, or refuses the object.
    UnknownField,
    /// A value that the API server's validation refuses.
    Invalid,
}

/// A fault of one object.
#[derive(Debug)]
pub struct Fault {
    pub kind: FaultKind,
    pub line: u32,
    pub field: Path,
    /// `kind namespace/name`, as far as the object has them.
    pub object: String,
    /// The name of the object's kind, if that is a policy's.
    pub policy_kind: Option<&'static str>,
    /// Namespace and name, where the object has a name.
    pub named: Option<(String, String)>,
    /// The line of the name.
    pub name_line: u32,
    pub message: String,
    /// What an unknown field holds, as YAML in one line, shortened.
    pub value: Option<String>,
    /// The object cannot be used.
    pub fatal: bool,
}

/// The objects of a document, and what is wrong with it.
#[derive(Debug, Default)]
pub struct DecodedDocument<'a> {
    pub objects: Vec<DocumentObject<'a>>,
    pub faults: Vec<Fault>,
    /// Objects of kinds that are not read, by kind.
    pub skipped: BTreeMap<String, u64>,
}

/// Kinds that are counted by name. The input is untrusted and may name any number of kinds.
const MAX_SKIPPED_KINDS: usize = 200;
/// Unknown fields that are reported of one object.
const MAX_FAULTS: usize = 20;

/// Decodes the objects of `root` into `output`.
pub fn document<'a>(root: &'a YamlNode, output: &mut DecodedDocument<'a>) {
    object(root, None, output);
}

/// `inherited`: apiVersion and kind of a typed list, for items that have none.
fn object<'a>(node: &'a YamlNode, inherited: Option<(&str, &str)>, output: &mut DecodedDocument<'a>) {
    let text = |name| node.get(name).and_then(YamlNode::as_str).filter(|text| !text.is_empty());
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
                policy_kind: None,
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
    ObjectReader { node, version, kind, policy_kind: None, output }.read();
}

/// Reads one object of a document.
pub(in crate::cluster) struct ObjectReader<'o, 'a> {
    node: &'a YamlNode,
    version: &'o str,
    kind: &'o str,
    policy_kind: Option<&'static str>,
    output: &'o mut DecodedDocument<'a>,
}

impl<'a> ObjectReader<'_, 'a> {
    fn read(mut self) {
        let (version, name) = (self.version, self.kind);
        let is = |info: &KindInfo| info.api_version == version && info.name == name;
        if let Some(entry) = KINDS.iter().find(|entry| is(entry.info)) {
            self.policy_kind = entry.info.is_policy.then_some(entry.info.name);
            entry.resource.read(&mut self);
        } else if let Some(workload) = WORKLOADS.iter().find(|workload| is(&workload.info)) {
            (workload.read)(&mut self);
        } else {
            self.read_other();
        }
    }

    /// Reads a workload. `parts` are its metadata and its pod template, which is at `path`.
    pub(in crate::cluster) fn template<T: Deserialize<'a>>(
        &mut self,
        path: &str,
        parts: impl Fn(&T) -> (&ObjectMeta, Option<&core::PodTemplateSpec>),
    ) {
        let (kind, path) = (self.kind, Path::parse(path));
        self.typed(|object: &T| {
            let (metadata, template) = parts(object);
            let none = core::PodTemplateSpec::default();
            workload::decode(kind, metadata, template.unwrap_or(&none), &path).map(Object::Pod)
        });
    }

    /// An object of another kind: the name of a policy that is not evaluated is read, a misspelt kind is reported, and other
    /// kinds are counted.
    fn read_other(&mut self) {
        let group = self.version.split_once('/').map_or("", |(group, _)| group);
        let other_policy = OTHER_POLICIES.iter().any(|(g, kind, _)| (*g, *kind) == (group, self.kind));
        if other_policy {
            let meta = |name| self.node.get("metadata").and_then(|meta| meta.get(name)).and_then(YamlNode::as_str);
            let bounded = |text: &str| -> Str { text.chars().take(253).collect::<String>().into() };
            let object = OtherPolicy {
                group: group.into(),
                kind: self.kind.into(),
                namespace: meta("namespace").map(bounded),
                name: meta("name").map(bounded).unwrap_or_default(),
            };
            let object = Object::OtherPolicy(object);
            self.output.objects.push(DocumentObject { object, node: self.node, namespace_defaulted: false });
            return;
        }
        let mut infos = KINDS.iter().map(|entry| entry.info).chain(WORKLOADS.iter().map(|workload| &workload.info));
        // Only groups of Kubernetes itself: a kind `YamlNode` or `Service` of another project is not meant for this program.
        let home =
            matches!(group, "extensions" | "networking") || infos.clone().any(|info| info.group_version().0 == group);
        let meant = infos.find(|info| info.name.eq_ignore_ascii_case(self.kind));
        if home && let Some(KindInfo { api_version, name, is_policy, .. }) = meant {
            let message = format!(
                "apiVersion {} has no kind {}; write `apiVersion: {api_version}` and `kind: {name}`",
                quoted(self.version),
                quoted(self.kind)
            );
            self.policy_kind = (*is_policy && *name == self.kind).then_some(name);
            let field = if *name == self.kind { "apiVersion" } else { "kind" };
            self.fault(FaultKind::Kind, Path::default().field(field), message, true);
            return;
        }
        let mut name = self.kind.chars().take(80).collect::<String>();
        if !self.output.skipped.contains_key(&name) && self.output.skipped.len() >= MAX_SKIPPED_KINDS {
            name = "(other kinds)".to_owned();
        }
        *self.output.skipped.entry(name).or_default() += 1;
    }

    /// Reads the object as the API's type `T`, notices fields that `T` does not have, and converts it.
    pub(in crate::cluster) fn typed<T: Deserialize<'a>>(&mut self, convert: impl FnOnce(&T) -> Checked<Object>) {
        let node = self.node;
        let (decoded, unknown) = yaml::decode::<T>(node, MAX_FAULTS);
        for path in unknown {
            // A newer server's status is no mistake of the file's author, and an item of a list may have its own kind.
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
                    let namespace =
                        node.get("metadata").and_then(|meta| meta.get("namespace")).and_then(YamlNode::as_str);
                    let namespace_defaulted = namespace.is_none_or(str::is_empty);
                    self.output.objects.push(DocumentObject { object, node, namespace_defaulted });
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
        let meta = |name| self.node.get("metadata").and_then(|meta| meta.get(name)).and_then(YamlNode::as_str);
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
        let policy_kind = self.policy_kind;
        self.output.faults.push(Fault {
            kind,
            line,
            field,
            object,
            policy_kind,
            named,
            name_line,
            message,
            value,
            fatal,
        });
    }
}
