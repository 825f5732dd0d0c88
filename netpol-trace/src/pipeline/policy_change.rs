//! Records of policy changes: rules removed and added, and pods that became isolated or stopped being so.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::atomic::Ordering;

use jiff::Timestamp;

use super::Pipeline;
use crate::cluster::index::{IsolationEffect, PolicyEvent, PolicyEventKind};
use crate::model::cluster::{Direction, Labels, Peer, Policy, Rule};
use crate::model::{ChangeKind, LossKind};
use crate::policy::bounded;
use crate::record::{Body, FieldChange, IsolationChange, PolicyChange, RuleText};
use crate::sink::SinkError;

/// Rules and labels of each list in a record.
const MAX_ITEMS: usize = 20;

impl Pipeline {
    /// Writes a record for each policy change since the last call.
    pub fn policy_changes(&mut self) -> Result<(), SinkError> {
        let (events, lost) = self.cluster.take_events();
        for event in &events {
            let change = change(event);
            let fingerprint = self.fingerprints.policy_change(&change, event.at);
            self.output.write(Body::PolicyChange(Box::new(change)), Some(fingerprint), event.at, 0)?;
        }
        if !events.is_empty() {
            // Packets counted before the change get a record of their own.
            self.intake.swap_requested.store(true, Ordering::Release);
        }
        if lost > 0 {
            let now = Timestamp::now();
            let loss = LossKind::POLICY_CHANGES_FULL.declare(Some(lost), now);
            self.write_record(Body::Loss(loss), now)?;
        }
        Ok(())
    }

    /// Writes a record of the agent's own state.
    pub fn write_record(&mut self, body: Body, time: Timestamp) -> Result<(), SinkError> {
        self.output.write(body, None, time, 0)
    }
}

/// Returns the record of a change.
pub fn change(event: &PolicyEvent) -> PolicyChange {
    let mut change = match &event.kind {
        PolicyEventKind::Policy { before, after, effects } => {
            policy_change(before.as_deref(), after.as_deref(), effects)
        }
        PolicyEventKind::NamespaceLabels { before, after } => {
            PolicyChange { fields: label_changes(before, after), ..PolicyChange::of(ChangeKind::NamespaceLabels) }
        }
    };
    change.namespace = bounded(&event.namespace);
    change.truncated = [change.rules_removed.len(), change.rules_added.len(), change.fields.len()]
        .iter()
        .any(|items| *items > MAX_ITEMS);
    change.rules_removed.truncate(MAX_ITEMS);
    change.rules_added.truncate(MAX_ITEMS);
    change.fields.truncate(MAX_ITEMS);
    change
}

fn policy_change(before: Option<&Policy>, after: Option<&Policy>, effects: &[IsolationEffect]) -> PolicyChange {
    let kind = ChangeKind::of(before.is_some(), after.is_some());
    let isolation = |begins| {
        let effects = effects.iter().filter(move |effect| effect.begins == begins);
        let changes = effects.map(|effect| IsolationChange {
            direction: effect.direction,
            pods: effect.pods,
            workloads: effect.workloads.iter().map(bounded).collect(),
        });
        changes.collect()
    };
    let policy = after.or(before);
    PolicyChange {
        policy: policy.map(|policy| bounded(&policy.name)),
        uid: policy.and_then(|policy| policy.uid.as_ref().map(bounded)),
        generation_before: before.and_then(|policy| policy.generation),
        generation: after.and_then(|policy| policy.generation),
        rules_removed: rules_missing(before, after),
        rules_added: rules_missing(after, before),
        fields: before.zip(after).map(|(before, after)| field_changes(before, after)).unwrap_or_default(),
        newly_isolates: isolation(true),
        no_longer_isolates: isolation(false),
        ..PolicyChange::of(kind)
    }
}

/// Returns the rules of `one` that `other` does not have, in any order.
fn rules_missing(one: Option<&Policy>, other: Option<&Policy>) -> Vec<RuleText> {
    let Some(one) = one else { return Vec::new() };
    let mut missing = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        let mut there: HashMap<String, usize> = HashMap::new();
        for rule in other.into_iter().flat_map(|other| other.rules(direction)) {
            *there.entry(format!("{rule:?}")).or_default() += 1;
        }
        for (i, rule) in one.rules(direction).iter().enumerate() {
            match there.get_mut(&format!("{rule:?}")) {
                Some(count) if *count > 0 => *count -= 1,
                _ => missing.push(RuleText { rule: format!("{direction}[{i}]"), allows: allows(direction, rule) }),
            }
        }
    }
    missing
}

/// Returns a rule in words: `from pods app=api, 10.0.0.0/8: 5432/TCP`.
fn allows(direction: Direction, rule: &Rule) -> String {
    let mut text = format!("{} ", direction.peers_field());
    // Writes to a String cannot fail. Longer lists are cut anyway.
    match rule.peers.as_deref() {
        None | Some([]) => text.push_str("anywhere"),
        Some(peers) => {
            for (i, peer) in peers.iter().take(MAX_ITEMS).enumerate() {
                _ = write!(text, "{}{}", if i == 0 { "" } else { ", " }, peer_text(peer));
            }
        }
    }
    text.push_str(": ");
    match rule.ports.as_deref() {
        None | Some([]) => text.push_str("all ports"),
        Some(ports) => {
            for (i, port) in ports.iter().take(MAX_ITEMS).enumerate() {
                _ = write!(text, "{}{port}", if i == 0 { "" } else { ", " });
            }
        }
    }
    bounded(text)
}

fn peer_text(peer: &Peer) -> String {
    match peer {
        Peer::Pods { namespaces: None, pods: Some(pods) } => format!("pods {pods}"),
        Peer::Pods { namespaces: Some(namespaces), pods: None } => format!("pods in namespaces {namespaces}"),
        Peer::Pods { namespaces: Some(namespaces), pods: Some(pods) } => {
            format!("pods {pods} in namespaces {namespaces}")
        }
        Peer::Pods { namespaces: None, pods: None } => "pods of the namespace".to_owned(),
        Peer::Block { cidr, except } if except.is_empty() => cidr.to_string(),
        Peer::Block { cidr, except } => {
            let except: Vec<String> = except.iter().take(MAX_ITEMS).map(ToString::to_string).collect();
            format!("{cidr} except {}", except.join(","))
        }
    }
}

fn field_changes(before: &Policy, after: &Policy) -> Vec<FieldChange> {
    let types = |policy: &Policy| {
        let isolates = [Direction::Ingress, Direction::Egress].into_iter().filter(|d| policy.isolates(*d));
        isolates.map(|d| d.to_string()).collect::<Vec<_>>().join(",")
    };
    let fields = [
        ("spec.podSelector", before.subject.to_string(), after.subject.to_string()),
        ("spec.policyTypes", types(before), types(after)),
    ];
    let changed = fields.into_iter().filter(|(_, before, after)| before != after);
    changed
        .map(|(field, before, after)| FieldChange {
            field: field.to_owned(),
            before: Some(bounded(before)),
            after: Some(bounded(after)),
        })
        .collect()
}

fn label_changes(before: &Labels, after: &Labels) -> Vec<FieldChange> {
    let gone = before.iter().filter(|(key, _)| after.get(key).is_none());
    let gone = gone.map(|(key, value)| (key, Some(value), None));
    let now = after.iter().map(|(key, value)| (key, before.get(key), Some(value)));
    let changed = gone.chain(now).filter(|(_, before, after)| before != after).take(MAX_ITEMS + 1);
    changed
        .map(|(key, before, after)| FieldChange {
            field: bounded(format_args!("metadata.labels[{key}]")),
            before: before.map(bounded),
            after: after.map(bounded),
        })
        .collect()
}

#[cfg(test)]
mod tests;
