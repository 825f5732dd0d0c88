//! Keeps one copy of each label and name, because thousands of pods share them.

use std::collections::HashSet;

use crate::model::Str;
use crate::model::cluster::{Operator, Peer, Policy, Selector};

#[derive(Debug, Clone, Default)]
pub(in crate::cluster) struct Strings {
    known: HashSet<Str>,
    /// The number of strings at which unused ones are removed.
    sweep_at: usize,
}

impl Strings {
    pub(in crate::cluster) const FIRST_SWEEP: usize = 4096;

    /// The shared copy of `text`.
    pub(in crate::cluster) fn share(&mut self, text: &Str) -> Str {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at.max(Self::FIRST_SWEEP) {
            // A string without another holder is from a removed object.
            self.known.retain(|text| Str::strong_count(text) > 1);
            self.sweep_at = self.known.len() * 2;
        }
        self.known.insert(text.clone());
        text.clone()
    }

    /// Shares keys and values of all selectors. A verdict compares them with pods' labels, and shared memory stays in the
    /// processor's cache.
    pub(in crate::cluster) fn share_selectors(&mut self, policy: &mut Policy) {
        policy.namespace = self.share(&policy.namespace);
        self.share_selector(&mut policy.subject);
        let rules = policy.ingress.iter_mut().chain(&mut policy.egress);
        for peer in rules.filter_map(|rule| rule.peers.as_mut()).flatten() {
            if let Peer::Pods { namespaces, pods } = peer {
                namespaces.iter_mut().chain(pods).for_each(|selector| self.share_selector(selector));
            }
        }
    }

    fn share_selector(&mut self, selector: &mut Selector) {
        for requirement in &mut selector.requirements {
            requirement.key = self.share(&requirement.key);
            if let Operator::In(values) | Operator::NotIn(values) = &mut requirement.operator {
                values.iter_mut().for_each(|value| *value = self.share(value));
            }
        }
    }

    #[cfg(test)]
    pub(in crate::cluster) fn len(&self) -> usize {
        self.known.len()
    }
}
