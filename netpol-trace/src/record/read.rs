//! A record as its reader sees it: borrowed from the line, and lenient, since agents of other versions write it too.
//!
//! Unknown fields and values are no error; an empty text and a missing part mean absent. The types that agents write by
//! are in [`crate::record`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::de::{Deserialize, Deserializer, Visitor};

/// Text borrowed from the line where it has no escapes, also inside lists and maps.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TextView<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for TextView<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = TextView<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<TextView<'de>, E> {
                Ok(TextView(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<TextView<'de>, E> {
                Ok(TextView(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl std::ops::Deref for TextView<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TextView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One line.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct RecordView<'a> {
    #[serde(borrow)]
    pub schema: TextView<'a>,
    #[serde(borrow, default)]
    pub id: TextView<'a>,
    #[serde(borrow, default)]
    pub run: TextView<'a>,
    #[serde(borrow, default)]
    pub fingerprint: TextView<'a>,
    pub time: Timestamp,
    #[serde(default)]
    pub last_time: Option<Timestamp>,
    #[serde(borrow, default)]
    pub node: TextView<'a>,
    #[serde(borrow)]
    pub kind: TextView<'a>,
    #[serde(default)]
    pub count: Option<u64>,

    #[serde(borrow, default)]
    pub cause: TextView<'a>,
    #[serde(borrow, default)]
    pub direction: TextView<'a>,
    #[serde(borrow, default)]
    pub action: TextView<'a>,
    #[serde(borrow, default)]
    pub source: Option<EndpointView<'a>>,
    #[serde(borrow, default)]
    pub destination: Option<EndpointView<'a>>,
    #[serde(borrow, default)]
    pub network: NetworkView<'a>,
    #[serde(default)]
    pub reply: bool,
    #[serde(default)]
    pub spoofed: bool,
    #[serde(borrow, default)]
    pub kernel: KernelView<'a>,
    #[serde(borrow, default)]
    pub verdict: Option<VerdictView<'a>>,
    #[serde(borrow, default)]
    pub hint: Option<HintView<'a>>,
    #[serde(borrow, default)]
    pub enrichment: TextView<'a>,
    #[serde(default)]
    pub waited_seconds: u64,
    #[serde(default)]
    pub delivered: bool,

    #[serde(borrow, default)]
    pub stage: TextView<'a>,
    #[serde(borrow, default)]
    pub reason: TextView<'a>,
    #[serde(borrow, default)]
    pub of: TextView<'a>,
    #[serde(borrow, default)]
    pub sink: TextView<'a>,
    #[serde(default)]
    pub estimate: bool,

    #[serde(borrow, default)]
    pub phase: TextView<'a>,
    #[serde(borrow, default)]
    pub version: TextView<'a>,
    #[serde(borrow, default)]
    pub hooks: Vec<StateView<'a>>,
    #[serde(borrow, default)]
    pub sources: Vec<StateView<'a>>,

    #[serde(borrow, default)]
    pub change: TextView<'a>,
    #[serde(borrow, default)]
    pub namespace: TextView<'a>,
    #[serde(borrow, default)]
    pub policy: TextView<'a>,
    #[serde(default)]
    pub generation_before: Option<i64>,
    #[serde(default)]
    pub generation: Option<i64>,
    #[serde(borrow, default)]
    pub rules_removed: Vec<RuleTextView<'a>>,
    #[serde(borrow, default)]
    pub rules_added: Vec<RuleTextView<'a>>,
    #[serde(borrow, default)]
    pub fields: Vec<FieldChangeView<'a>>,
    #[serde(borrow, default)]
    pub newly_isolates: Vec<IsolationView<'a>>,
    #[serde(borrow, default)]
    pub no_longer_isolates: Vec<IsolationView<'a>>,
}

/// A rule that came or went, in words.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct RuleTextView<'a> {
    #[serde(borrow, default)]
    pub rule: TextView<'a>,
    #[serde(borrow, default)]
    pub allows: TextView<'a>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct FieldChangeView<'a> {
    #[serde(borrow, default)]
    pub field: TextView<'a>,
    #[serde(borrow, default)]
    pub before: Option<TextView<'a>>,
    #[serde(borrow, default)]
    pub after: Option<TextView<'a>>,
}

/// Pods that a change isolates, or no longer.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct IsolationView<'a> {
    #[serde(borrow, default)]
    pub direction: TextView<'a>,
    #[serde(default)]
    pub pods: u64,
    #[serde(borrow, default)]
    pub workloads: Vec<TextView<'a>>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct EndpointView<'a> {
    #[serde(borrow, default)]
    pub kind: TextView<'a>,
    #[serde(borrow, default)]
    pub ip: TextView<'a>,
    #[serde(default)]
    pub port: Option<u16>,
    #[serde(borrow, default)]
    pub pod: Option<PodRefView<'a>>,
    #[serde(borrow, default)]
    pub node: TextView<'a>,
    #[serde(borrow, default)]
    pub service: Option<ObjectRefView<'a>>,
    #[serde(borrow, default)]
    pub names: Vec<TextView<'a>>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct PodRefView<'a> {
    #[serde(borrow, default)]
    pub namespace: TextView<'a>,
    #[serde(borrow, default)]
    pub name: TextView<'a>,
    #[serde(borrow, default)]
    pub labels: BTreeMap<TextView<'a>, TextView<'a>>,
    #[serde(borrow, default)]
    pub owner: Option<OwnerView<'a>>,
    #[serde(borrow, default)]
    pub node: TextView<'a>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct OwnerView<'a> {
    #[serde(borrow, default)]
    pub kind: TextView<'a>,
    #[serde(borrow, default)]
    pub name: TextView<'a>,
}

/// A policy or a service.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct ObjectRefView<'a> {
    #[serde(borrow, default)]
    pub namespace: TextView<'a>,
    #[serde(borrow, default)]
    pub name: TextView<'a>,
    #[serde(default)]
    pub port: Option<u16>,
    #[serde(default)]
    pub changed_ago_seconds: Option<u64>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct NetworkView<'a> {
    #[serde(borrow, default)]
    pub transport: TextView<'a>,
    #[serde(borrow, default)]
    pub tcp_flags: Vec<TextView<'a>>,
    #[serde(default)]
    pub length: u32,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct KernelView<'a> {
    #[serde(borrow, default)]
    pub reason: TextView<'a>,
    #[serde(borrow, default)]
    pub location: TextView<'a>,
    #[serde(borrow, default)]
    pub hook: TextView<'a>,
    #[serde(borrow, default)]
    pub mechanism: TextView<'a>,
    #[serde(borrow, default)]
    pub device: TextView<'a>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct VerdictView<'a> {
    #[serde(borrow, default)]
    pub result: TextView<'a>,
    #[serde(borrow, default)]
    pub basis: TextView<'a>,
    #[serde(borrow, default)]
    pub egress: SideView<'a>,
    #[serde(borrow, default)]
    pub ingress: SideView<'a>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct SideView<'a> {
    #[serde(borrow, default)]
    pub result: TextView<'a>,
    #[serde(borrow, default)]
    pub isolated_by: Vec<ObjectRefView<'a>>,
    #[serde(borrow, default)]
    pub allowed_by: Option<RuleView<'a>>,
    #[serde(borrow, default)]
    pub nearest: Option<RuleView<'a>>,
    #[serde(borrow, default)]
    pub why: TextView<'a>,
    #[serde(borrow, default)]
    pub changed: Vec<PolicyChangedView<'a>>,
}

/// A policy that changed shortly before or after the drop.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct PolicyChangedView<'a> {
    #[serde(borrow, default)]
    pub namespace: TextView<'a>,
    #[serde(borrow, default)]
    pub name: TextView<'a>,
    #[serde(borrow, default)]
    pub change: TextView<'a>,
    #[serde(default)]
    pub changed_ago_seconds: i64,
}

/// A rule that allows, or that came closest.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct RuleView<'a> {
    #[serde(borrow, default)]
    pub policy: TextView<'a>,
    #[serde(borrow, default)]
    pub rule: TextView<'a>,
    #[serde(borrow, default)]
    pub misses: Vec<MissView<'a>>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct MissView<'a> {
    #[serde(borrow, default)]
    pub field: TextView<'a>,
    #[serde(borrow, default)]
    pub want: TextView<'a>,
    #[serde(borrow, default)]
    pub have: TextView<'a>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct HintView<'a> {
    #[serde(borrow, default)]
    pub code: TextView<'a>,
    #[serde(borrow, default)]
    pub message: TextView<'a>,
}

/// A hook or a source.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct StateView<'a> {
    #[serde(borrow, default)]
    pub name: TextView<'a>,
    #[serde(borrow, default)]
    pub state: TextView<'a>,
    #[serde(default)]
    pub synced: Option<bool>,
    #[serde(default)]
    pub age_seconds: u64,
    #[serde(borrow, default)]
    pub error: Option<TextView<'a>>,
}

/// The record in `line`; `None` when it is none of ours.
pub fn read(line: &[u8]) -> Option<RecordView<'_>> {
    // Fields that nobody reads are not checked by serde_json; a terminal would get them with `-o json`.
    let text = std::str::from_utf8(line).ok()?;
    let record: RecordView<'_> = serde_json::from_str(text).ok()?;
    record.schema.starts_with("netpol-trace/v").then_some(record)
}

impl RecordView<'_> {
    /// Packets, or connections of an `unanswered`.
    pub fn packets(&self) -> u64 {
        self.count.unwrap_or(1)
    }

    /// Whether it tells of a connection rather than of the agent or the policies.
    pub fn is_flow(&self) -> bool {
        matches!(&*self.kind, "drop" | "unanswered")
    }

    pub fn ends(&self) -> impl Iterator<Item = &EndpointView<'_>> {
        self.source.iter().chain(&self.destination)
    }
}

impl<'a> VerdictView<'a> {
    /// The side that decided, with its direction: the one that denies, the record's own direction first.
    pub fn deciding(&self, direction: &str) -> (&'static str, &SideView<'a>) {
        let (egress, ingress) = (("egress", &self.egress), ("ingress", &self.ingress));
        let order = if direction == "ingress" { [ingress, egress] } else { [egress, ingress] };
        let of = |result: &str| order.into_iter().find(|(_, side)| &*side.result == result);
        of("denied").or_else(|| of("undetermined")).unwrap_or(order[0])
    }
}

/// The bytes with which an agent begins a line.
pub const START: &[u8] = b"{\"schema\":\"netpol-trace/v1\",";

/// Returns true if a line is a record. Lines that begin as an agent writes them are not parsed.
pub fn looks_like_a_record(line: &[u8]) -> bool {
    line.starts_with(START) || line.trim_ascii_start().first() == Some(&b'{') && read(line).is_some()
}
