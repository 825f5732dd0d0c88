//! Changes of policies and namespace labels, with the pods whose isolation began or ended.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::NamespaceEntry;
use crate::model::Str;
use crate::model::cluster::{Direction, Labels, Policy};

/// Queued events. Events beyond this are only counted.
pub(in crate::cluster) const MAX_EVENTS: usize = 1_000;
/// Workloads that one effect names.
const MAX_NAMED: usize = 10;

#[derive(Debug, Clone, PartialEq)]
pub struct PolicyEvent {
    /// When the source reported the change.
    pub at: Timestamp,
    pub namespace: Str,
    pub kind: PolicyEventKind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum PolicyEventKind {
    /// A policy came (no `before`), changed, or went (no `after`).
    Policy { before: Option<Arc<Policy>>, after: Option<Arc<Policy>>, effects: Vec<IsolationEffect> },
    /// The labels by which policies of other namespaces select this one.
    NamespaceLabels { before: Labels, after: Labels },
}

/// Pods whose isolation in a direction began or ended.
#[derive(Debug, Clone, PartialEq)]
pub struct IsolationEffect {
    pub direction: Direction,
    pub begins: bool,
    pub pods: u64,
    /// The first few workloads, or pods without one, as `Deployment/web`.
    pub workloads: BTreeSet<Str>,
}

/// Which pods of a namespace are isolated, in the order of its pods.
pub(in crate::cluster) struct Isolation(Vec<[bool; 2]>);

impl Isolation {
    pub(in crate::cluster) fn of(namespace: Option<&NamespaceEntry>) -> Isolation {
        let pods = namespace.into_iter().flat_map(|entry| entry.pods.values());
        Isolation(pods.map(|pod| pod.isolated_by.each_ref().map(|list| !list.is_empty())).collect())
    }

    /// PolicyEventKind differs in `namespace`, whose pods are the same ones.
    pub(in crate::cluster) fn effects(&self, namespace: Option<&NamespaceEntry>) -> Vec<IsolationEffect> {
        let mut effects = Vec::new();
        for (direction, begins) in [
            (Direction::Ingress, true),
            (Direction::Egress, true),
            (Direction::Ingress, false),
            (Direction::Egress, false),
        ] {
            let (mut pods, mut workloads) = (0, BTreeSet::new());
            let now = namespace.into_iter().flat_map(|entry| entry.pods.values());
            for (before, entry) in self.0.iter().zip(now) {
                let is_isolated = !entry.isolated_by[direction as usize].is_empty();
                // A template's pods are counted themselves, and finished pods send nothing.
                let counts = !entry.pod.template && !entry.pod.is_over();
                if !counts || before[direction as usize] == begins || is_isolated != begins {
                    continue;
                }
                pods += 1;
                if workloads.len() < MAX_NAMED {
                    workloads.insert(match &entry.pod.owner {
                        Some(owner) => format!("{}/{}", owner.kind, owner.name).into(),
                        None => format!("Pod/{}", entry.pod.name).into(),
                    });
                }
            }
            if pods > 0 {
                effects.push(IsolationEffect { direction, begins, pods, workloads });
            }
        }
        effects
    }
}
