//! Reads the agent's lines by JSON pointer, independent of the agent's types.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::Value;

/// One line of the agent's output.
#[derive(Clone, PartialEq)]
pub struct Record {
    line: String,
    value: Value,
}

impl Record {
    pub fn parse(line: &str) -> Result<Record> {
        let value: Value = serde_json::from_str(line).with_context(|| format!("not a JSON line: {line:?}"))?;
        anyhow::ensure!(value["schema"] == "netpol-trace/v1", "not a record: {line}");
        Ok(Record { line: line.to_owned(), value })
    }

    /// The text at a JSON pointer such as `/verdict/ingress/result`; `""` if absent.
    pub fn text(&self, pointer: &str) -> &str {
        self.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    pub fn number(&self, pointer: &str) -> Option<u64> {
        self.value.pointer(pointer).and_then(Value::as_u64)
    }

    pub fn list(&self, pointer: &str) -> &[Value] {
        self.value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    pub fn value(&self) -> &Value {
        &self.value
    }

    pub fn kind(&self) -> &str {
        self.text("/kind")
    }

    pub fn is_drop(&self) -> bool {
        self.kind() == "drop"
    }

    pub fn cause(&self) -> &str {
        self.text("/cause")
    }

    /// The number of packets of a drop.
    pub fn count(&self) -> u64 {
        self.number("/count").unwrap_or_default()
    }

    pub fn netns(&self) -> Option<u32> {
        self.number("/kernel/netns").and_then(|inode| u32::try_from(inode).ok())
    }

    /// The address and port of `source` or `destination`, after NAT; port 0 if the packet has none.
    pub fn address(&self, end: &str) -> Option<SocketAddr> {
        let ip: IpAddr = self.text(&format!("/{end}/ip")).parse().ok()?;
        let port = self.number(&format!("/{end}/port")).unwrap_or_default();
        Some(SocketAddr::new(ip, u16::try_from(port).ok()?))
    }

    /// `namespace/name` of an endpoint's pod; `""` if it is not a pod.
    pub fn pod(&self, end: &str) -> String {
        self.name(&format!("/{end}/pod"))
    }

    /// `namespace/name` of the service that an endpoint was addressed by; `""` if there is none.
    pub fn service(&self, end: &str) -> String {
        self.name(&format!("/{end}/service"))
    }

    fn name(&self, pointer: &str) -> String {
        match (self.text(&format!("{pointer}/namespace")), self.text(&format!("{pointer}/name"))) {
            ("", "") => String::new(),
            (namespace, name) => format!("{namespace}/{name}"),
        }
    }

    /// The policies that isolate the pod in `direction`, as `namespace/name`, sorted.
    pub fn isolated_by(&self, direction: &str) -> Vec<String> {
        let policies = self.list(&format!("/verdict/{direction}/isolated_by"));
        let mut names: Vec<_> = policies
            .iter()
            .map(|policy| {
                format!(
                    "{}/{}",
                    policy["namespace"].as_str().unwrap_or_default(),
                    policy["name"].as_str().unwrap_or_default()
                )
            })
            .collect();
        names.sort();
        names
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

/// The whole line, for the message of a failed test.
impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

/// The drops among `records`.
pub fn drops<'a>(records: impl IntoIterator<Item = &'a Record>) -> impl Iterator<Item = &'a Record> {
    records.into_iter().filter(|record| record.is_drop())
}

/// The sum of the packets of these drops.
pub fn packets<'a>(records: impl IntoIterator<Item = &'a Record>) -> u64 {
    drops(records).map(Record::count).sum()
}
