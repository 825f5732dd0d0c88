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
pub struct Str<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Str<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Str<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Str<'de>, E> {
                Ok(Str(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Str<'de>, E> {
                Ok(Str(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl std::ops::Deref for Str<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Str<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One line.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Seen<'a> {
    #[serde(borrow)]
    pub schema: Str<'a>,
    #[serde(borrow, default)]
    pub id: Str<'a>,
    #[serde(borrow, default)]
    pub run: Str<'a>,
    #[serde(borrow, default)]
    pub fingerprint: Str<'a>,
    pub time: Timestamp,
    #[serde(default)]
    pub last_time: Option<Timestamp>,
    #[serde(borrow, default)]
    pub node: Str<'a>,
    #[serde(borrow)]
    pub kind: Str<'a>,
    #[serde(default)]
    pub count: Option<u64>,

    #[serde(borrow, default)]
    pub cause: Str<'a>,
    #[serde(borrow, default)]
    pub direction: Str<'a>,
    #[serde(borrow, default)]
    pub action: Str<'a>,
    #[serde(borrow, default)]
    pub source: Option<End<'a>>,
    #[serde(borrow, default)]
    pub destination: Option<End<'a>>,
    #[serde(borrow, default)]
    pub network: Network<'a>,
    #[serde(default)]
    pub reply: bool,
    #[serde(default)]
    pub spoofed: bool,
    #[serde(borrow, default)]
    pub kernel: Kernel<'a>,
    #[serde(borrow, default)]
    pub verdict: Option<Verdict<'a>>,
    #[serde(borrow, default)]
    pub hint: Option<Hint<'a>>,
    #[serde(borrow, default)]
    pub enrichment: Str<'a>,
    #[serde(default)]
    pub waited_seconds: u64,
    #[serde(default)]
    pub delivered: bool,

    #[serde(borrow, default)]
    pub stage: Str<'a>,
    #[serde(borrow, default)]
    pub reason: Str<'a>,
    #[serde(borrow, default)]
    pub of: Str<'a>,
    #[serde(borrow, default)]
    pub sink: Str<'a>,
    #[serde(default)]
    pub estimate: bool,

    #[serde(borrow, default)]
    pub phase: Str<'a>,
    #[serde(borrow, default)]
    pub version: Str<'a>,
    #[serde(borrow, default)]
    pub hooks: Vec<State<'a>>,
    #[serde(borrow, default)]
    pub sources: Vec<State<'a>>,

    #[serde(borrow, default)]
    pub change: Str<'a>,
    #[serde(borrow, default)]
    pub namespace: Str<'a>,
    #[serde(borrow, default)]
    pub policy: Str<'a>,
    #[serde(default)]
    pub generation_before: Option<i64>,
    #[serde(default)]
    pub generation: Option<i64>,
    #[serde(borrow, default)]
    pub rules_removed: Vec<RuleText<'a>>,
    #[serde(borrow, default)]
    pub rules_added: Vec<RuleText<'a>>,
    #[serde(borrow, default)]
    pub fields: Vec<Field<'a>>,
    #[serde(borrow, default)]
    pub newly_isolates: Vec<Isolation<'a>>,
    #[serde(borrow, default)]
    pub no_longer_isolates: Vec<Isolation<'a>>,
}

/// A rule that came or went, in words.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct RuleText<'a> {
    #[serde(borrow, default)]
    pub rule: Str<'a>,
    #[serde(borrow, default)]
    pub allows: Str<'a>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct Field<'a> {
    #[serde(borrow, default)]
    pub field: Str<'a>,
    #[serde(borrow, default)]
    pub before: Option<Str<'a>>,
    #[serde(borrow, default)]
    pub after: Option<Str<'a>>,
}

/// Pods that a change isolates, or no longer.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct Isolation<'a> {
    #[serde(borrow, default)]
    pub direction: Str<'a>,
    #[serde(default)]
    pub pods: u64,
    #[serde(borrow, default)]
    pub workloads: Vec<Str<'a>>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct End<'a> {
    #[serde(borrow, default)]
    pub kind: Str<'a>,
    #[serde(borrow, default)]
    pub ip: Str<'a>,
    #[serde(default)]
    pub port: Option<u16>,
    #[serde(borrow, default)]
    pub pod: Option<Pod<'a>>,
    #[serde(borrow, default)]
    pub node: Str<'a>,
    #[serde(borrow, default)]
    pub service: Option<Named<'a>>,
    #[serde(borrow, default)]
    pub names: Vec<Str<'a>>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct Pod<'a> {
    #[serde(borrow, default)]
    pub namespace: Str<'a>,
    #[serde(borrow, default)]
    pub name: Str<'a>,
    #[serde(borrow, default)]
    pub labels: BTreeMap<Str<'a>, Str<'a>>,
    #[serde(borrow, default)]
    pub owner: Option<Owner<'a>>,
    #[serde(borrow, default)]
    pub node: Str<'a>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct Owner<'a> {
    #[serde(borrow, default)]
    pub kind: Str<'a>,
    #[serde(borrow, default)]
    pub name: Str<'a>,
}

/// A policy or a service.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct Named<'a> {
    #[serde(borrow, default)]
    pub namespace: Str<'a>,
    #[serde(borrow, default)]
    pub name: Str<'a>,
    #[serde(default)]
    pub port: Option<u16>,
    #[serde(default)]
    pub changed_ago_seconds: Option<u64>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct Network<'a> {
    #[serde(borrow, default)]
    pub transport: Str<'a>,
    #[serde(borrow, default)]
    pub tcp_flags: Vec<Str<'a>>,
    #[serde(default)]
    pub length: u32,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct Kernel<'a> {
    #[serde(borrow, default)]
    pub reason: Str<'a>,
    #[serde(borrow, default)]
    pub location: Str<'a>,
    #[serde(borrow, default)]
    pub hook: Str<'a>,
    #[serde(borrow, default)]
    pub mechanism: Str<'a>,
    #[serde(borrow, default)]
    pub device: Str<'a>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct Verdict<'a> {
    #[serde(borrow, default)]
    pub result: Str<'a>,
    #[serde(borrow, default)]
    pub basis: Str<'a>,
    #[serde(borrow, default)]
    pub egress: Side<'a>,
    #[serde(borrow, default)]
    pub ingress: Side<'a>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct Side<'a> {
    #[serde(borrow, default)]
    pub result: Str<'a>,
    #[serde(borrow, default)]
    pub isolated_by: Vec<Named<'a>>,
    #[serde(borrow, default)]
    pub allowed_by: Option<Rule<'a>>,
    #[serde(borrow, default)]
    pub nearest: Option<Rule<'a>>,
    #[serde(borrow, default)]
    pub why: Str<'a>,
    #[serde(borrow, default)]
    pub changed: Vec<Changed<'a>>,
}

/// A policy that changed shortly before or after the drop.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct Changed<'a> {
    #[serde(borrow, default)]
    pub namespace: Str<'a>,
    #[serde(borrow, default)]
    pub name: Str<'a>,
    #[serde(borrow, default)]
    pub change: Str<'a>,
    #[serde(default)]
    pub changed_ago_seconds: i64,
}

/// A rule that allows, or that came closest.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct Rule<'a> {
    #[serde(borrow, default)]
    pub policy: Str<'a>,
    #[serde(borrow, default)]
    pub rule: Str<'a>,
    #[serde(borrow, default)]
    pub misses: Vec<Miss<'a>>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct Miss<'a> {
    #[serde(borrow, default)]
    pub field: Str<'a>,
    #[serde(borrow, default)]
    pub want: Str<'a>,
    #[serde(borrow, default)]
    pub have: Str<'a>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct Hint<'a> {
    #[serde(borrow, default)]
    pub code: Str<'a>,
    #[serde(borrow, default)]
    pub message: Str<'a>,
}

/// A hook or a source.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct State<'a> {
    #[serde(borrow, default)]
    pub name: Str<'a>,
    #[serde(borrow, default)]
    pub state: Str<'a>,
    #[serde(default)]
    pub synced: Option<bool>,
    #[serde(default)]
    pub age_seconds: u64,
    #[serde(borrow, default)]
    pub error: Option<Str<'a>>,
}

/// The record in `line`; `None` when it is none of ours.
pub fn read(line: &[u8]) -> Option<Seen<'_>> {
    // Fields that nobody reads are not checked by serde_json; a terminal would get them with `-o json`.
    let text = std::str::from_utf8(line).ok()?;
    let seen: Seen<'_> = serde_json::from_str(text).ok()?;
    seen.schema.starts_with("netpol-trace/v").then_some(seen)
}

impl Seen<'_> {
    /// Packets, or connections of an `unanswered`.
    pub fn packets(&self) -> u64 {
        self.count.unwrap_or(1)
    }

    /// Whether it tells of a connection rather than of the agent or the policies.
    pub fn is_flow(&self) -> bool {
        matches!(&*self.kind, "drop" | "unanswered")
    }

    pub fn ends(&self) -> impl Iterator<Item = &End<'_>> {
        self.source.iter().chain(&self.destination)
    }
}

impl<'a> Verdict<'a> {
    /// The side that decided, with its direction: the one that denies, the record's own direction first.
    pub fn deciding(&self, direction: &str) -> (&'static str, &Side<'a>) {
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
