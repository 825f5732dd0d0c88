//! Decides which records to show. Searches the bytes of a line first: most lines of a large log need not be parsed.

mod labels;

pub use labels::{matches, selector};

use jiff::{SignedDuration, Timestamp};
use memchr::memmem::Finder;

use crate::model::Cause;
use crate::model::cluster::Selector;
use crate::record::read::{EndpointView, PodRefView, RecordView, START};
use crate::text::{counted, escape};

/// A selection as it is typed on the command line.
#[derive(Debug, Clone, Default)]
pub struct SelectionArgs {
    pub pods: Vec<String>,
    pub namespace: Option<String>,
    pub all_namespaces: bool,
    pub labels: Option<String>,
    pub causes: Vec<String>,
    pub since: Option<SignedDuration>,
    pub every_status: bool,
}

impl SelectionArgs {
    /// Checks the arguments. Without a namespace, `context_namespace` is taken: the one of the kubeconfig's context.
    pub fn resolve(&self, context_namespace: Option<&str>) -> Result<Selection, String> {
        let own = self.namespace.as_deref().map(namespace).transpose()?;
        let namespace = own.or(context_namespace);
        // `unanswered` is a kind of record, which `--cause` takes as well.
        let causes: Vec<&str> = Cause::ALL.iter().map(|cause| cause.as_str()).chain(["unanswered"]).collect();
        for cause in &self.causes {
            if !causes.contains(&cause.as_str()) {
                return Err(format!("--cause {}: expected one of {}", escape(cause), causes.join(", ")));
            }
        }
        let since = self.since.map(|since| Timestamp::now().checked_sub(since)).transpose();
        Ok(Selection {
            pods: self.pods.iter().map(|text| pod(text, namespace)).collect::<Result<_, _>>()?,
            namespace: namespace.filter(|_| !self.all_namespaces).map(str::to_owned),
            labels: self.labels.as_deref().map(selector).transpose()?,
            causes: self.causes.clone(),
            since: since.map_err(|error| format!("--since: {error}"))?,
            every_status: self.every_status,
        })
    }
}

/// Which records to show. Empty means all.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// `(namespace, name)` of pods; a record matches if one of them is its source or its destination.
    pub pods: Vec<(String, String)>,
    pub namespace: Option<String>,
    pub labels: Option<Selector>,
    pub causes: Vec<String>,
    pub since: Option<Timestamp>,
    /// Show the status of each minute too, not only starts and stops.
    pub every_status: bool,
}

/// Parses a pod's name as it is typed: `NS/NAME` or `NS/pod/NAME`, and with a namespace `NAME`, `pod/NAME` or `pod NAME`, as for kubectl.
/// For a namespace called `pod`, use `-n pod`.
pub fn pod(text: &str, namespace: Option<&str>) -> Result<(String, String), String> {
    let wrong = |why: &str| {
        let why = if why.is_empty() { "expected NAMESPACE/NAME, or NAME together with -n NAMESPACE" } else { why };
        format!("--pod {}: {why}", escape(text))
    };
    let parts: Vec<&str> = text.split(['/', ' ']).filter(|part| !part.is_empty()).collect();
    let (namespace, name) = match *parts.as_slice() {
        [kind] if is_pod_kind(kind) => return Err(wrong("the pod's name is missing: --pod NAME, or --pod pod/NAME")),
        [name] => (namespace, name),
        [kind, name] if is_pod_kind(kind) => (namespace, name),
        [kind, _] if is_other_kind(kind) => {
            return Err(wrong(&only_pods(namespace, &format!("; for a namespace called {kind}, use -n {kind}"))));
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
            "it is not a pattern: select several pods by label, -l KEY=VALUE"
        } else {
            ""
        }));
    }
    Ok((namespace.to_owned(), name.to_owned()))
}

/// Checks a namespace as it is typed.
pub fn namespace(text: &str) -> Result<&str, String> {
    let tip = match text.split_once('/') {
        _ if text.is_empty() => "it is empty (is a shell variable not set?)",
        Some((_, name)) if is_name(name) => "remove what is before the slash",
        _ => "a name has lower-case letters, digits and - only",
    };
    if is_name(text) {
        Ok(text)
    } else {
        Err(format!("-n {}: expected the name of one namespace: {tip}", escape(text)))
    }
}

/// Returns true if Kubernetes allows the text as a name.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
}

fn only_pods(namespace: Option<&str>, more: &str) -> String {
    let namespace = escape(namespace.unwrap_or("NAMESPACE"));
    format!("only pods can be named; select the pods of a workload by label: -n {namespace} -l KEY=VALUE{more}")
}

/// Returns true for kubectl's names of kinds other than pods.
fn is_other_kind(text: &str) -> bool {
    const KINDS: &str =
        "deploy deployment rs replicaset sts statefulset ds daemonset job cj cronjob svc service ns namespace";
    let text = text.to_ascii_lowercase();
    KINDS.split(' ').any(|kind| text == kind || text.strip_suffix('s') == Some(kind))
}

/// Returns true for kubectl's names of the kind pod.
fn is_pod_kind(text: &str) -> bool {
    ["pod", "pods", "po"].iter().any(|kind| kind.eq_ignore_ascii_case(text))
}

impl Selection {
    /// Returns true if only some pods are selected.
    pub fn is_about_pods(&self) -> bool {
        !self.pods.is_empty() || self.namespace.is_some() || self.labels.is_some()
    }

    pub fn selects(&self, record: &RecordView<'_>) -> bool {
        if self.since.is_some_and(|since| record.last_time.unwrap_or(record.time) < since) {
            return false;
        }
        match &*record.kind {
            "drop" | "unanswered" => self.selects_flow(record),
            // The lost packets may be those of the selected pods.
            "loss" => true,
            "status" => self.causes.is_empty() && (self.every_status || &*record.phase != "running"),
            "policy_change" => self.causes.is_empty() && self.selects_policy(record),
            // A kind of a later version: shown rather than hidden.
            _ => self.causes.is_empty() && !self.is_about_pods(),
        }
    }

    fn selects_flow(&self, record: &RecordView<'_>) -> bool {
        let cause = if &*record.kind == "unanswered" { "unanswered" } else { &*record.cause };
        if !self.causes.is_empty() && !self.causes.iter().any(|selected| selected == cause) {
            return false;
        }
        !self.is_about_pods() || record.endpoints().any(|end| self.selects_endpoint(end))
    }

    fn selects_endpoint(&self, end: &EndpointView<'_>) -> bool {
        let Some(pod) = &end.pod else {
            // A service without endpoints has a namespace and no pod.
            let in_namespace = |ns: &String| end.service.as_ref().is_some_and(|s| *s.namespace == **ns);
            return self.pods.is_empty() && self.labels.is_none() && self.namespace.as_ref().is_some_and(in_namespace);
        };
        let named = |(ns, name): &(String, String)| *pod.namespace == **ns && *pod.name == **name;
        (self.pods.is_empty() || self.pods.iter().any(named))
            && (!self.pods.is_empty() || self.namespace.as_ref().is_none_or(|ns| *pod.namespace == **ns))
            && self.labels.as_ref().is_none_or(|selector| labels::matches(selector, |key| label(pod, key)))
    }

    /// Selects the policy changes in the namespaces of the selected pods.
    fn selects_policy(&self, record: &RecordView<'_>) -> bool {
        let pods = self.pods.iter().map(|(ns, _)| ns);
        let mut namespaces = pods.chain(&self.namespace).peekable();
        namespaces.peek().is_none() || namespaces.any(|ns| **ns == *record.namespace)
    }

    /// Describes the selection, with its count if that is known: `drops`, `no drops`, `2 drops (5 packets)`.
    pub fn describe(&self, counts: Option<&DropCounts>) -> String {
        let only_unanswered = !self.causes.is_empty() && self.causes.iter().all(|cause| cause == "unanswered");
        let mut what = match (counts, only_unanswered) {
            (None, true) => "connections without an answer".to_owned(),
            (None, false) => "drops".to_owned(),
            (Some(counts), true) => counts.unanswered(),
            (Some(counts), false) if counts.unanswered > 0 => format!("{} and {}", counts.drops(), counts.unanswered()),
            (Some(counts), false) => counts.drops(),
        };
        if !self.causes.is_empty() && !only_unanswered {
            what += &format!(" with cause {}", self.causes.join(" or "));
        }
        what + &self.subject()
    }

    /// Describes the pods: ` to or from staging/db-0`, ` to or from pods with app=db in namespace staging`. Empty for all pods.
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

/// How many drops were shown.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct DropCounts {
    /// Drop records, and the packets in them.
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

/// Searches the bytes of a line for what every selected line has.
#[derive(Debug)]
pub struct Prefilter {
    /// Every line about a selected endpoint has one of these. Empty if all endpoints are selected.
    endpoints: Vec<Finder<'static>>,
    causes: Vec<Finder<'static>>,
    /// Kinds of records that are not about endpoints.
    other_kinds: Vec<Finder<'static>>,
    time: Finder<'static>,
    last_time: Finder<'static>,
    since: Option<[u8; SECOND]>,
}

/// Length of `2026-11-21T04:30:11`.
pub const SECOND: usize = 19;

impl Prefilter {
    pub fn new(selection: &Selection) -> Prefilter {
        let quoted = |text: &str| Finder::new(&format!("\"{text}\"")).into_owned();
        let endpoints = if !selection.pods.is_empty() {
            selection.pods.iter().map(|(_, name)| quoted(name)).collect()
        } else if let Some(value) = selection.labels.as_ref().and_then(labels::certain_value) {
            vec![quoted(&value)]
        } else {
            selection.namespace.iter().map(|namespace| quoted(namespace)).collect()
        };
        let second = |since: Timestamp| since.to_string().as_bytes().first_chunk::<SECOND>().copied();
        Prefilter {
            endpoints,
            causes: selection.causes.iter().map(|cause| quoted(cause)).collect(),
            other_kinds: ["loss", "status", "policy_change"].map(quoted).into(),
            time: Finder::new("\"time\":\"").into_owned(),
            // The last packet of a record may be newer than its first.
            last_time: Finder::new("\"last_time\":").into_owned(),
            since: selection.since.and_then(second),
        }
    }

    /// Returns false only for lines that the selection does not select.
    pub fn may_match(&self, line: &[u8]) -> bool {
        let has = |finders: &[Finder<'_>]| finders.iter().any(|finder| finder.find(line).is_some());
        if self.since.is_some_and(|since| self.is_before(line, since)) {
            return false;
        }
        let flow = (self.endpoints.is_empty() || has(&self.endpoints)) && (self.causes.is_empty() || has(&self.causes));
        flow || has(&self.other_kinds)
    }

    /// Returns the record's time, down to the second, if the line has the agent's order of fields and the selection has a time.
    pub fn second<'l>(&self, line: &'l [u8]) -> Option<&'l [u8; SECOND]> {
        self.since?;
        let time = self.time.find(line).filter(|_| line.starts_with(START))?;
        line.get(time + 8..)?.first_chunk::<SECOND>().filter(|time| time.first().is_some_and(u8::is_ascii_digit))
    }

    /// Returns true if a line in the agent's order of fields is older. A quote inside a text has a backslash before it, so the first
    /// `"time":"` is the record's.
    fn is_before(&self, line: &[u8], since: [u8; SECOND]) -> bool {
        if !line.starts_with(START) || self.last_time.find(line).is_some() {
            return false;
        }
        // Times in UTC with a year of four digits compare as text.
        self.second(line).is_some_and(|time| *time < since)
    }
}

/// Returns the value of the pod's label.
fn label<'p>(pod: &'p PodRefView<'_>, key: &str) -> Option<&'p str> {
    pod.labels.iter().find(|(k, _)| ***k == *key).map(|(_, value)| &**value)
}

#[cfg(test)]
mod tests;
