//! The one lenient reader of records: `tail`, `suggest`, `replay` and `verify-log` read by it.
//!
//! A view borrows from the line. Agents of other versions write records too, so unknown fields and values are no error; an empty text and a
//! missing part mean absent. The types by which an agent writes are in [`crate::record`].

mod of_drop;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Visitor};

use crate::model::Totals;

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

/// One record, borrowed from its line.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
pub struct RecordView<'a> {
    pub schema: TextView<'a>,
    #[serde(default)]
    pub id: TextView<'a>,
    #[serde(default)]
    pub run: TextView<'a>,
    #[serde(default)]
    pub seq: Option<u64>,
    #[serde(default)]
    pub fingerprint: TextView<'a>,
    pub time: Timestamp,
    #[serde(default)]
    pub last_time: Option<Timestamp>,
    #[serde(default)]
    pub cluster: TextView<'a>,
    #[serde(default)]
    pub node: TextView<'a>,
    pub kind: TextView<'a>,
    #[serde(default)]
    pub count: Option<u64>,

    #[serde(default)]
    pub cause: TextView<'a>,
    #[serde(default)]
    pub direction: TextView<'a>,
    #[serde(default)]
    pub action: TextView<'a>,
    #[serde(default)]
    pub source: Option<EndpointView<'a>>,
    #[serde(default)]
    pub destination: Option<EndpointView<'a>>,
    #[serde(default)]
    pub network: NetworkView<'a>,
    #[serde(default)]
    pub reply: bool,
    #[serde(default)]
    pub spoofed: bool,
    #[serde(default)]
    pub kernel: KernelView<'a>,
    #[serde(default)]
    pub verdict: Option<VerdictView<'a>>,
    #[serde(default)]
    pub hint: Option<HintView<'a>>,
    #[serde(default)]
    pub enrichment: TextView<'a>,
    #[serde(default)]
    pub waited_seconds: u64,
    #[serde(default)]
    pub delivered: bool,

    #[serde(default)]
    pub stage: TextView<'a>,
    #[serde(default)]
    pub reason: TextView<'a>,
    #[serde(default)]
    pub of: TextView<'a>,
    #[serde(default)]
    pub sink: TextView<'a>,
    #[serde(default)]
    pub estimate: bool,

    #[serde(default)]
    pub phase: TextView<'a>,
    #[serde(default)]
    pub version: TextView<'a>,
    /// `None` also where they are not as this version has them.
    #[serde(default, deserialize_with = "lenient")]
    pub totals: Option<Totals>,
    #[serde(default)]
    pub hooks: Vec<StateView<'a>>,
    #[serde(default)]
    pub sources: Vec<StateView<'a>>,

    #[serde(default)]
    pub change: TextView<'a>,
    #[serde(default)]
    pub namespace: TextView<'a>,
    #[serde(default)]
    pub policy: TextView<'a>,
    #[serde(default)]
    pub generation_before: Option<i64>,
    #[serde(default)]
    pub generation: Option<i64>,
    #[serde(default)]
    pub rules_removed: Vec<RuleTextView<'a>>,
    #[serde(default)]
    pub rules_added: Vec<RuleTextView<'a>>,
    #[serde(default)]
    pub fields: Vec<FieldChangeView<'a>>,
    #[serde(default)]
    pub newly_isolates: Vec<IsolationView<'a>>,
    #[serde(default)]
    pub no_longer_isolates: Vec<IsolationView<'a>>,
}

/// A rule that a policy change added or removed, in words.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct RuleTextView<'a> {
    pub rule: TextView<'a>,
    pub allows: TextView<'a>,
}

#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct FieldChangeView<'a> {
    pub field: TextView<'a>,
    pub before: Option<TextView<'a>>,
    pub after: Option<TextView<'a>>,
}

/// Pods that a policy change isolates, or stops isolating.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct IsolationView<'a> {
    pub direction: TextView<'a>,
    pub pods: u64,
    pub workloads: Vec<TextView<'a>>,
}

#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct EndpointView<'a> {
    pub kind: TextView<'a>,
    pub ip: TextView<'a>,
    pub port: Option<u16>,
    pub pod: Option<PodRefView<'a>>,
    pub node: TextView<'a>,
    pub service: Option<ObjectRefView<'a>>,
    pub names: Vec<TextView<'a>>,
}

#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct PodRefView<'a> {
    pub namespace: TextView<'a>,
    pub name: TextView<'a>,
    pub uid: TextView<'a>,
    pub labels: BTreeMap<TextView<'a>, TextView<'a>>,
    pub owner: Option<OwnerView<'a>>,
    pub node: TextView<'a>,
}

#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct OwnerView<'a> {
    pub kind: TextView<'a>,
    pub name: TextView<'a>,
}

/// A policy or a service.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct ObjectRefView<'a> {
    pub namespace: TextView<'a>,
    pub name: TextView<'a>,
    pub port: Option<u16>,
    pub changed_ago_seconds: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct NetworkView<'a> {
    pub transport: TextView<'a>,
    pub tcp_flags: Vec<TextView<'a>>,
    pub length: u32,
}

#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct KernelView<'a> {
    pub reason: TextView<'a>,
    pub location: TextView<'a>,
    pub hook: TextView<'a>,
    pub mechanism: TextView<'a>,
    pub device: TextView<'a>,
}

#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct VerdictView<'a> {
    pub result: TextView<'a>,
    pub basis: TextView<'a>,
    pub egress: SideView<'a>,
    pub ingress: SideView<'a>,
}

#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct SideView<'a> {
    pub result: TextView<'a>,
    pub isolated_by: Vec<ObjectRefView<'a>>,
    pub allowed_by: Option<RuleView<'a>>,
    pub nearest: Option<RuleView<'a>>,
    pub why: TextView<'a>,
    pub changed: Vec<PolicyChangedView<'a>>,
}

/// A policy that changed shortly before or after the drop.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct PolicyChangedView<'a> {
    pub namespace: TextView<'a>,
    pub name: TextView<'a>,
    pub change: TextView<'a>,
    pub changed_ago_seconds: i64,
}

/// A rule that allows, or that came closest.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct RuleView<'a> {
    pub policy: TextView<'a>,
    pub rule: TextView<'a>,
    pub misses: Vec<MissView<'a>>,
}

#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct MissView<'a> {
    pub field: TextView<'a>,
    pub want: TextView<'a>,
    pub have: TextView<'a>,
}

#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct HintView<'a> {
    pub code: TextView<'a>,
    pub message: TextView<'a>,
}

/// The state of a hook or of a source.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct StateView<'a> {
    pub name: TextView<'a>,
    pub state: TextView<'a>,
    pub synced: Option<bool>,
    pub age_seconds: u64,
    pub error: Option<TextView<'a>>,
}

/// Reads a value of a strict type; `None` for one of another version's form.
fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(serde_json::from_value(serde_json::Value::deserialize(deserializer)?).ok())
}

/// Parses a line. Returns `None` if it is not a record of netpol-trace.
pub fn read(line: &[u8]) -> Option<RecordView<'_>> {
    // serde_json does not check for UTF-8 in fields that nobody reads, and `tail -o json` prints the whole line.
    let text = std::str::from_utf8(line).ok()?;
    let record: RecordView<'_> = serde_json::from_str(text).ok()?;
    record.schema.starts_with("netpol-trace/v").then_some(record)
}

impl RecordView<'_> {
    /// Returns the number of packets; of an `unanswered` record, of connections.
    pub fn packets(&self) -> u64 {
        self.count.unwrap_or(1)
    }

    /// Returns true if the record is about a connection, not about the agent or the policies.
    pub fn is_flow(&self) -> bool {
        matches!(&*self.kind, "drop" | "unanswered")
    }

    pub fn endpoints(&self) -> impl Iterator<Item = &EndpointView<'_>> {
        self.source.iter().chain(&self.destination)
    }
}

impl<'a> VerdictView<'a> {
    /// Returns the side that decided, with its direction: a side that denies, else one that is undetermined. The record's own direction
    /// comes first.
    pub fn deciding(&self, direction: &str) -> (&'static str, &SideView<'a>) {
        let (egress, ingress) = (("egress", &self.egress), ("ingress", &self.ingress));
        let order = if direction == "ingress" { [ingress, egress] } else { [egress, ingress] };
        let of = |result: &str| order.into_iter().find(|(_, side)| &*side.result == result);
        of("denied").or_else(|| of("undetermined")).unwrap_or(order[0])
    }
}

/// The bytes with which an agent begins each line.
pub const START: &[u8] = b"{\"schema\":\"netpol-trace/v1\",";

/// Returns true if an agent wrote the line as it is: such a line is taken for a record without being parsed.
pub fn begins_as_a_record(line: &[u8]) -> bool {
    line.starts_with(START)
}
