//! Which records are wanted. Most lines of a large log are not: they are told by their octets, before they are parsed.

mod labels;

pub use labels::{matches, selector};

use jiff::Timestamp;
use memchr::memmem::Finder;

use crate::model::cluster::Selector;
use crate::record::read::{EndpointView, PodRefView, RecordView, START};
use crate::text::{counted, escape};

/// What `tail` was asked for. Empty means all.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// `(namespace, name)`: the pod is either end.
    pub pods: Vec<(String, String)>,
    pub namespace: Option<String>,
    pub labels: Option<Selector>,
    pub causes: Vec<String>,
    pub since: Option<Timestamp>,
    /// Statuses each minute too.
    pub chatty: bool,
}

/// A pod's name as it is typed: `NS/NAME` or `NS/pod/NAME`, and in the given namespace `NAME`, `pod/NAME` or `pod NAME`, as kubectl
/// takes it. A namespace called `pod` is reached by `-n pod`.
pub fn pod(text: &str, namespace: Option<&str>) -> Result<(String, String), String> {
    let wrong = |why: &str| {
        let tip = if why.is_empty() { "" } else { "; " };
        format!("--pod {}: want NAMESPACE/NAME, or NAME together with -n NAMESPACE{tip}{why}", escape(text))
    };
    let parts: Vec<&str> = text.split(['/', ' ']).filter(|part| !part.is_empty()).collect();
    let (namespace, name) = match *parts.as_slice() {
        [kind] if is_pod_kind(kind) => return Err(wrong("the pod's name is missing: --pod NAME, or --pod pod/NAME")),
        [name] => (namespace, name),
        [kind, name] if is_pod_kind(kind) => (namespace, name),
        [kind, _] if is_other_kind(kind) => {
            return Err(wrong(&only_pods(namespace, &format!("; a namespace called {kind} is reached by -n {kind}"))));
        }
        [namespace, kind, name] if is_pod_kind(kind) => (Some(namespace), name),
        [namespace, name] => (Some(namespace), name),
        [namespace, _, _] => return Err(wrong(&only_pods(Some(namespace), ""))),
        _ => return Err(wrong("")),
    };
    let namespace = namespace.ok_or_else(|| wrong(""))?;
    if !is_name(namespace) || !is_name(name) {
        let pattern = name.bytes().any(|byte| b"*?[".contains(&byte));
        return Err(wrong(if pattern {
            "patterns are not understood: select several pods by label, -l KEY=VALUE"
        } else {
            ""
        }));
    }
    Ok((namespace.to_owned(), name.to_owned()))
}

/// A namespace as it is typed.
pub fn namespace(text: &str) -> Result<&str, String> {
    let tip = match text.split_once('/') {
        _ if text.is_empty() => "it is empty; is a shell's variable not set?",
        Some((_, name)) if is_name(name) => "leave away what is before the name",
        _ => "a name has lower-case letters, digits and -",
    };
    if is_name(text) { Ok(text) } else { Err(format!("-n {}: want the name of one namespace: {tip}", escape(text))) }
}

/// What Kubernetes allows in names.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
}

fn only_pods(namespace: Option<&str>, more: &str) -> String {
    let namespace = escape(namespace.unwrap_or("NAMESPACE"));
    format!("only pods are looked for: select a workload's by label, -n {namespace} -l KEY=VALUE{more}")
}

/// As kubectl calls what is not a pod.
fn is_other_kind(text: &str) -> bool {
    const KINDS: &str =
        "deploy deployment rs replicaset sts statefulset ds daemonset job cj cronjob svc service ns namespace";
    let text = text.to_ascii_lowercase();
    KINDS.split(' ').any(|kind| text == kind || text.strip_suffix('s') == Some(kind))
}

/// As kubectl calls the kind.
fn is_pod_kind(text: &str) -> bool {
    ["pod", "pods", "po"].iter().any(|kind| kind.eq_ignore_ascii_case(text))
}

impl Selection {
    /// Whether only some pods are looked for.
    pub fn names_ends(&self) -> bool {
        !self.pods.is_empty() || self.namespace.is_some() || self.labels.is_some()
    }

    pub fn wants(&self, record: &RecordView<'_>) -> bool {
        if self.since.is_some_and(|since| record.last_time.unwrap_or(record.time) < since) {
            return false;
        }
        match &*record.kind {
            "drop" | "unanswered" => self.wants_flow(record),
            // What was lost may be what is looked for.
            "loss" => true,
            "status" => self.causes.is_empty() && (self.chatty || &*record.phase != "running"),
            "policy_change" => self.causes.is_empty() && self.wants_policy(record),
            // Of a later version: better record than kept back.
            _ => self.causes.is_empty() && !self.names_ends(),
        }
    }

    fn wants_flow(&self, record: &RecordView<'_>) -> bool {
        let cause = if &*record.kind == "unanswered" { "unanswered" } else { &*record.cause };
        if !self.causes.is_empty() && !self.causes.iter().any(|wanted| wanted == cause) {
            return false;
        }
        !self.names_ends() || record.ends().any(|end| self.wants_end(end))
    }

    pub fn wants_end(&self, end: &EndpointView<'_>) -> bool {
        let Some(pod) = &end.pod else {
            // A service that nobody serves has no pod, but a namespace.
            let in_namespace = |ns: &String| end.service.as_ref().is_some_and(|s| *s.namespace == **ns);
            return self.pods.is_empty() && self.labels.is_none() && self.namespace.as_ref().is_some_and(in_namespace);
        };
        let named = |(ns, name): &(String, String)| *pod.namespace == **ns && *pod.name == **name;
        (self.pods.is_empty() || self.pods.iter().any(named))
            && (!self.pods.is_empty() || self.namespace.as_ref().is_none_or(|ns| *pod.namespace == **ns))
            && self.labels.as_ref().is_none_or(|selector| labels::matches(selector, |key| label(pod, key)))
    }

    /// A policy is of interest where one of the pods is.
    fn wants_policy(&self, record: &RecordView<'_>) -> bool {
        let pods = self.pods.iter().map(|(ns, _)| ns);
        let mut namespaces = pods.chain(&self.namespace).peekable();
        namespaces.peek().is_none() || namespaces.any(|ns| **ns == *record.namespace)
    }

    /// What is looked for, with its count if that is known: `drops`, `no drops`, `2 drops (5 packets)`.
    pub fn describe(&self, found: Option<&DropCounts>) -> String {
        let only_unanswered = !self.causes.is_empty() && self.causes.iter().all(|cause| cause == "unanswered");
        let mut what = match (found, only_unanswered) {
            (None, true) => "connections without an answer".to_owned(),
            (None, false) => "drops".to_owned(),
            (Some(found), true) => found.unanswered(),
            (Some(found), false) if found.unanswered > 0 => format!("{} and {}", found.drops(), found.unanswered()),
            (Some(found), false) => found.drops(),
        };
        if !self.causes.is_empty() && !only_unanswered {
            what += &format!(" with cause {}", self.causes.join(" or "));
        }
        what + &self.subject()
    }

    /// ` to or from staging/db-0`, ` to or from pods with app=db in namespace staging`; empty: of all pods.
    pub fn subject(&self) -> String {
        if !self.pods.is_empty() {
            let names: Vec<_> = self.pods.iter().take(3).map(|(ns, name)| format!("{ns}/{name}")).collect();
            let more = self.pods.len().saturating_sub(names.len());
            let more = if more > 0 { format!(" and {}", counted(more as u64, "more pod")) } else { String::new() };
            return format!(" to or from {}{more}", names.join(", "));
        }
        let labels = self.labels.as_ref().map(|labels| format!(" with {labels}"));
        let namespace = self.namespace.as_ref().map(|namespace| format!(" in namespace {namespace}"));
        match labels.or(namespace.as_ref().map(|_| String::new())) {
            Some(labels) => format!(" to or from pods{labels}{}", namespace.unwrap_or_default()),
            None => String::new(),
        }
    }
}

/// What was shown.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct DropCounts {
    /// Records of drops, and the packets in them.
    pub drops: u64,
    pub packets: u64,
    /// Connections without an answer.
    pub unanswered: u64,
}

impl DropCounts {
    fn drops(&self) -> String {
        match self.drops {
            0 => "no drops".to_owned(),
            drops if drops == self.packets => counted(drops, "drop"),
            drops => format!("{} ({})", counted(drops, "drop"), counted(self.packets, "packet")),
        }
    }

    fn unanswered(&self) -> String {
        match self.unanswered {
            0 => "no connections without an answer".to_owned(),
            count => format!("{} without an answer", counted(count, "connection")),
        }
    }
}

/// Tells by a line's octets that it can't be wanted.
#[derive(Debug)]
pub struct Prefilter {
    /// One of these is in every line about the ends that are wanted. Empty: any line.
    ends: Vec<Finder<'static>>,
    causes: Vec<Finder<'static>>,
    /// `kind`s that are not about ends.
    others: Vec<Finder<'static>>,
    time: Finder<'static>,
    last_time: Finder<'static>,
    since: Option<[u8; SECOND]>,
}

/// Octets of `2026-11-21T04:30:11`.
pub const SECOND: usize = 19;

impl Prefilter {
    pub fn new(wanted: &Selection) -> Prefilter {
        let quoted = |text: &str| Finder::new(&format!("\"{text}\"")).into_owned();
        let ends = if !wanted.pods.is_empty() {
            wanted.pods.iter().map(|(_, name)| quoted(name)).collect()
        } else if let Some(value) = wanted.labels.as_ref().and_then(labels::certain_value) {
            vec![quoted(&value)]
        } else {
            wanted.namespace.iter().map(|namespace| quoted(namespace)).collect()
        };
        let second = |since: Timestamp| since.to_string().as_bytes().first_chunk::<SECOND>().copied();
        Prefilter {
            ends,
            causes: wanted.causes.iter().map(|cause| quoted(cause)).collect(),
            others: ["loss", "status", "policy_change"].map(quoted).into(),
            time: Finder::new("\"time\":\"").into_owned(),
            // A folded record's last packet may be newer than its first.
            last_time: Finder::new("\"last_time\":").into_owned(),
            since: wanted.since.and_then(second),
        }
    }

    pub fn may_match(&self, line: &[u8]) -> bool {
        let has = |finders: &[Finder<'_>]| finders.iter().any(|finder| finder.find(line).is_some());
        if self.since.is_some_and(|since| self.is_before(line, since)) {
            return false;
        }
        let flow = (self.ends.is_empty() || has(&self.ends)) && (self.causes.is_empty() || has(&self.causes));
        flow || has(&self.others)
    }

    /// The second of a line in the agent's own order of fields, as text; where nothing is selected by time, nobody looks.
    pub fn second<'l>(&self, line: &'l [u8]) -> Option<&'l [u8; SECOND]> {
        self.since?;
        let time = self.time.find(line).filter(|_| line.starts_with(START))?;
        line.get(time + 8..)?.first_chunk::<SECOND>().filter(|time| time.first().is_some_and(u8::is_ascii_digit))
    }

    /// Whether a line in the agent's own order of fields is older. A quote inside a text has a backslash before it, so the
    /// first `"time":"` is the record's.
    fn is_before(&self, line: &[u8], since: [u8; SECOND]) -> bool {
        if !line.starts_with(START) || self.last_time.find(line).is_some() {
            return false;
        }
        // Digits of a year with four of them, in UTC, compare as text.
        self.second(line).is_some_and(|time| *time < since)
    }
}

/// The pod's labels as the record has them.
fn label<'p>(pod: &'p PodRefView<'_>, key: &str) -> Option<&'p str> {
    pod.labels.iter().find(|(k, _)| ***k == *key).map(|(_, value)| &**value)
}

#[cfg(test)]
mod tests;
