//! Packets or records that did not make it.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Text;

/// Packets or records that did not make it, declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Loss {
    pub stage: LossStage,
    pub reason: Text,
    /// What `count` counts, where not packets: `connections`, `answers` (of DNS, and refusals). Outside the books.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<Text>,
    /// Packets; absent where nobody can know (time without hooks).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The count is an estimate (skipped runs of the program, see `kernel_recursion`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub last_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sink: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_id: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossStage {
    KernelMap,
    KernelRing,
    KernelRecursion,
    AgentQueue,
    Sink,
    NotAttached,
}
