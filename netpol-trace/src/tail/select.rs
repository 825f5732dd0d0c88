//! Which records are wanted. Most lines of a large log are not: they are told by their octets, before they are parsed.

mod labels;

use jiff::Timestamp;
pub use labels::selector;
use memchr::memmem::Finder;

use super::view::{End, Pod, Seen};
use crate::model::cluster::Selector;
use crate::text::escape;

/// What `tail` was asked for. Empty means all.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// `(namespace, name)`: the pod is either end.
    pub pods: Vec<(String, String)>,
    pub namespace: Option<String>,
    pub labels: Option<Selector>,
    pub causes: Vec<String>,
    pub since: Option<Timestamp>,
    /// Statuses each minute too.
    pub chatty: bool,
}

/// A pod's name as it is typed: `NS/NAME`, or `NAME` in the given namespace.
pub fn pod(text: &str, namespace: Option<&str>) -> Result<(String, String), String> {
    let wrong = || format!("--pod {}: want NAMESPACE/NAME, or NAME together with -n NAMESPACE", escape(text));
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (namespace, name),
        None => (namespace.ok_or_else(wrong)?, text),
    };
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
    };
    if !is_name(namespace) || !is_name(name) {
        return Err(wrong());
    }
    Ok((namespace.to_owned(), name.to_owned()))
}

impl Wanted {
    fn names_ends(&self) -> bool {
        !self.pods.is_empty() || self.namespace.is_some() || self.labels.is_some()
    }

    pub fn wants(&self, seen: &Seen<'_>) -> bool {
        if self.since.is_some_and(|since| seen.last_time.unwrap_or(seen.time) < since) {
            return false;
        }
        match &*seen.kind {
            "drop" | "unanswered" => self.wants_flow(seen),
            // What was lost may be what is looked for.
            "loss" => true,
            "status" => self.causes.is_empty() && (self.chatty || &*seen.phase != "running"),
            "policy_change" => self.causes.is_empty() && self.wants_policy(seen),
            // Of a later version: better seen than kept back.
            _ => self.causes.is_empty() && !self.names_ends(),
        }
    }

    fn wants_flow(&self, seen: &Seen<'_>) -> bool {
        let cause = if &*seen.kind == "unanswered" { "unanswered" } else { &*seen.cause };
        if !self.causes.is_empty() && !self.causes.iter().any(|wanted| wanted == cause) {
            return false;
        }
        !self.names_ends() || seen.ends().any(|end| self.wants_end(end))
    }

    fn wants_end(&self, end: &End<'_>) -> bool {
        let Some(pod) = &end.pod else {
            // A service that nobody serves has no pod, but a namespace.
            let in_namespace = |ns: &String| end.service.as_ref().is_some_and(|s| *s.namespace == **ns);
            return self.pods.is_empty() && self.labels.is_none() && self.namespace.as_ref().is_some_and(in_namespace);
        };
        let named = |(ns, name): &(String, String)| *pod.namespace == **ns && *pod.name == **name;
        (self.pods.is_empty() || self.pods.iter().any(named))
            && (!self.pods.is_empty() || self.namespace.as_ref().is_none_or(|ns| *pod.namespace == **ns))
            && self.labels.as_ref().is_none_or(|selector| labels::matches(selector, pod))
    }

    /// A policy is of interest where one of the pods is.
    fn wants_policy(&self, seen: &Seen<'_>) -> bool {
        let pods = self.pods.iter().map(|(ns, _)| ns);
        let mut namespaces = pods.chain(&self.namespace).peekable();
        namespaces.peek().is_none() || namespaces.any(|ns| **ns == *seen.namespace)
    }

    /// In a few words, for a line that says what is waited for.
    pub fn describe(&self) -> String {
        let mut what = if self.causes.is_empty() { "drops".to_owned() } else { self.causes.join(" and ") };
        if !self.pods.is_empty() {
            let names: Vec<_> = self.pods.iter().take(3).map(|(ns, name)| format!("{ns}/{name}")).collect();
            let more = self.pods.len().saturating_sub(names.len());
            what += &format!(" from or to {}", names.join(", "));
            if more > 0 {
                what += &format!(" and {more} more pods");
            }
        } else if let Some(namespace) = &self.namespace {
            what += &format!(" in namespace {namespace}");
        }
        if let Some(labels) = &self.labels {
            what += &format!(" of pods with {labels}");
        }
        what
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
    pub fn new(wanted: &Wanted) -> Prefilter {
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

/// How the agent begins a line.
const START: &[u8] = b"{\"schema\":\"netpol-trace/v1\",";

/// Whether a line looks like a record at all: the agent's own log lines and those of others don't.
pub fn looks_like_a_record(line: &[u8]) -> bool {
    let line = line.trim_ascii_start();
    line.first() == Some(&b'{') && (line.starts_with(START) || memchr::memmem::find(line, b"netpol-trace/v").is_some())
}

/// The pod's labels as the record has them.
fn label<'p>(pod: &'p Pod<'_>, key: &str) -> Option<&'p str> {
    pod.labels.iter().find(|(k, _)| ***k == *key).map(|(_, value)| &**value)
}

#[cfg(test)]
mod tests;
