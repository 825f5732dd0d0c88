//! Names, labels and ports, with the checks of the API server.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::yaml::Path;
use super::{Violations, quoted};
use crate::model::Str;
use crate::model::cluster::{Labels, Protocol};

/// The namespace that `kubectl apply` uses without `-n`, for objects whose file has none.
pub(in crate::cluster) const DEFAULT_NAMESPACE: &str = "default";
/// The API server refuses objects above 1.5 MiB; this many labels would be near that.
const MAX_LABELS: usize = 10_000;

/// `metadata`, checked.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cluster) struct CheckedMetadata {
    pub namespace: Str,
    pub name: Str,
    pub uid: Option<Str>,
    pub labels: Labels,
}

impl CheckedMetadata {
    pub(in crate::cluster) fn read(meta: &ObjectMeta, violations: &mut Violations) -> CheckedMetadata {
        let path = Path::default().field("metadata");
        let name = meta.name.as_deref().unwrap_or_default();
        match (name, &meta.generate_name) {
            ("", Some(_)) => violations
                .add(&path, "generateName without name: the API server makes the name, so it is not known here"),
            ("", None) => violations.add(&path, "no name"),
            (name, _) => name_syntax(name, &path.field("name"), violations),
        }
        let namespace = meta.namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or(DEFAULT_NAMESPACE);
        namespace_syntax(namespace, &path.field("namespace"), violations);
        CheckedMetadata {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid(meta),
            labels: labels(meta.labels.as_ref(), &path.field("labels"), violations),
        }
    }
}

/// UIDs are opaque: only their length is bounded.
pub(in crate::cluster) fn uid(meta: &ObjectMeta) -> Option<Str> {
    meta.uid.as_deref().filter(|uid| !uid.is_empty() && uid.len() <= 128).map(Into::into)
}

/// A DNS subdomain, as most object names must be.
fn name_syntax(name: &str, path: &Path, violations: &mut Violations) {
    // RBAC's kinds allow more; the kinds read here do not.
    if name.len() > 253 || !name.split('.').all(dns_label) {
        violations.add(
            path,
            format!(
                "invalid object name {}: expected lower-case letters, digits, `-` and `.`, at most 253",
                quoted(name)
            ),
        );
    }
}

pub(in crate::cluster) fn namespace_syntax(name: &str, path: &Path, violations: &mut Violations) {
    if !is_namespace_name(name) {
        violations.add(
            path,
            format!("invalid namespace name {}: expected lower-case letters, digits and `-`, at most 63", quoted(name)),
        );
    }
}

/// Whether a namespace can have this name.
pub fn is_namespace_name(name: &str) -> bool {
    name.len() <= 63 && dns_label(name)
}

fn dns_label(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A map of labels, or of a selector's `matchLabels`.
pub(in crate::cluster) fn labels(
    map: Option<&BTreeMap<String, String>>,
    path: &Path,
    violations: &mut Violations,
) -> Labels {
    let Some(map) = map else { return Labels::default() };
    if map.len() > MAX_LABELS {
        violations.add(path, format!("{} labels: at most {MAX_LABELS} are supported", map.len()));
        return Labels::default();
    }
    for (key, value) in map {
        label_key(key, &path.field(key), violations);
        label_value(value, &path.field(key), violations);
    }
    map.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

pub(in crate::cluster) fn label_key(key: &str, path: &Path, violations: &mut Violations) {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let prefix_ok = prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(dns_label));
    if !prefix_ok || name.is_empty() || !qualified(name) {
        violations.add(
            path,
            format!(
                "invalid label key {}: expected [prefix/]name, the name at most 63 of A-Z a-z 0-9 - _ .",
                quoted(key)
            ),
        );
    }
}

pub(in crate::cluster) fn label_value(value: &str, path: &Path, violations: &mut Violations) {
    if !qualified(value) {
        let rule = "at most 63 of A-Z a-z 0-9 - _ ., starting and ending with a letter or digit";
        violations.add(path, format!("invalid label value {}: expected {rule}", quoted(value)));
    }
}

/// `(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?`, at most 63.
fn qualified(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && edge(bytes.first())
        && edge(bytes.last())
}

/// TCP where absent, as the API's default.
pub(in crate::cluster) fn protocol(name: Option<&str>, path: &Path, violations: &mut Violations) -> Protocol {
    match name {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(other) => {
            let fix = match other.to_ascii_uppercase().as_str() {
                upper @ ("TCP" | "UDP" | "SCTP") => format!("write {upper}"),
                "ICMP" | "ICMPV6" => "NetworkPolicy can't express ICMP, only TCP, UDP and SCTP".to_owned(),
                _ => "expected TCP, UDP or SCTP".to_owned(),
            };
            violations.add(&path.field("protocol"), format!("unknown protocol {}: {fix}", quoted(other)));
            Protocol::Tcp
        }
    }
}

/// 1 to 65535.
pub(in crate::cluster) fn port_number(number: i32, path: &Path, violations: &mut Violations) -> u16 {
    match u16::try_from(number) {
        Ok(port) if port > 0 => port,
        _ => {
            violations.add(path, format!("invalid port {number}: expected 1 to 65535"));
            0
        }
    }
}

/// An IANA service name: at most 15 of `a-z 0-9 -`, with a letter.
pub(in crate::cluster) fn port_name(name: &str, path: &Path, violations: &mut Violations) -> Str {
    let ok =
        name.len() <= 15 && dns_label(name) && name.bytes().any(|b| b.is_ascii_lowercase()) && !name.contains("--");
    if !ok {
        let number = name.parse::<u16>().map(|port| format!("; for the port number write {port} without quotes"));
        let fix = number.unwrap_or_default();
        violations.add(
            path,
            format!("invalid port name {}: expected at most 15 of a-z 0-9 -, with a letter{fix}", quoted(name)),
        );
    }
    name.into()
}

/// A port as a number or a name.
pub(in crate::cluster) enum Port {
    Number(u16),
    Name(Str),
}

pub(in crate::cluster) fn port(port: &IntOrString, path: &Path, violations: &mut Violations) -> Port {
    match port {
        IntOrString::Int(number) => Port::Number(port_number(*number, path, violations)),
        IntOrString::String(name) => Port::Name(port_name(name, path, violations)),
    }
}
