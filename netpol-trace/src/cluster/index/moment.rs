//! The index as of the time at which a packet was dropped: owners of addresses, policies and labels.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::history::Before;
use super::{AddressOwner, Index, NamespaceEntry, PodEntry};
use crate::model::Str;
use crate::model::cluster::{Pod, Policy};

/// A pod uses its address before the API has it: the kubelet starts the pod, then reports. Within this time before the report
/// that another pod has an address, either pod may have had it.
const REPORTED_LATE: SignedDuration = SignedDuration::from_secs(5);

/// A change of a policy whose earlier version is still kept.
#[derive(Debug, Clone, Copy)]
pub struct PolicyChanged<'a> {
    pub name: &'a Str,
    pub before: Option<&'a Arc<Policy>>,
    pub after: Option<&'a Arc<Policy>>,
    /// When the source reported the change.
    pub at: Timestamp,
}

/// The index as it was at a time, for a few addresses.
#[derive(Debug)]
pub struct Moment<'a> {
    /// The current index, for kinds without history (services, nodes).
    pub index: &'a Index,
    /// `None` if nothing relevant has changed since the time.
    past: Option<Box<Past>>,
}

#[derive(Debug, Default)]
struct Past {
    namespaces: Vec<(Str, NamespaceEntry)>,
    holders: Vec<(IpAddr, Holder)>,
}

/// The pods that had an address.
#[derive(Debug, Clone)]
enum Holder {
    Pod(Arc<Pod>),
    Several(usize),
    /// The first had it until about that time, the second from about that time.
    Either(Arc<Pod>, Arc<Pod>),
    Nobody,
}

impl Index {
    /// The index as of `time` for connections between `addresses`. Costs nothing if nothing has changed since.
    pub fn at(&self, time: Timestamp, addresses: &[IpAddr]) -> Moment<'_> {
        let past = self.history.reaches(time).then(|| self.past(time, addresses)).flatten();
        Moment { index: self, past }
    }

    /// The current index.
    pub fn now(&self) -> Moment<'_> {
        Moment { index: self, past: None }
    }

    /// `None` if nothing relevant has changed since `time`.
    fn past(&self, time: Timestamp, addresses: &[IpAddr]) -> Option<Box<Past>> {
        let mut past = Past::default();
        for ip in addresses {
            if !past.holders.iter().any(|(known, _)| known == ip) {
                past.holders.push((*ip, self.holder(*ip, time)));
            }
        }
        let differs = past.holders.iter().any(|(ip, holder)| match (holder, self.owner_of(*ip)) {
            (Holder::Pod(pod), AddressOwner::Pod(now)) => {
                !Arc::ptr_eq(pod, now.pod)
                    || self.history.since(&pod.namespace, time).next().is_some()
                    || self.history.of_pod_since(pod, time).next().is_some()
            }
            (Holder::Several(then), AddressOwner::Ambiguous(now)) => *then != now,
            (Holder::Nobody, AddressOwner::None | AddressOwner::Node(_) | AddressOwner::Former(_)) => false,
            _ => true,
        });
        if !differs {
            return None;
        }
        for (_, holder) in &past.holders {
            let Holder::Pod(pod) = holder else { continue };
            let at = past.namespaces.iter().position(|(name, _)| *name == pod.namespace).unwrap_or_else(|| {
                past.namespaces.push((pod.namespace.clone(), self.namespace_at(&pod.namespace, time)));
                past.namespaces.len() - 1
            });
            let namespace = &mut past.namespaces[at].1;
            let mut entry = PodEntry::new(self.pod_at(pod, time));
            for policy in namespace.policies.values() {
                entry.isolate(policy);
            }
            namespace.pods.insert(pod.unique_name(), entry);
        }
        Some(Box::new(past))
    }

    /// A namespace without its pods.
    fn namespace_at(&self, name: &str, time: Timestamp) -> NamespaceEntry {
        let mut entry = self.namespaces.get(name).map(NamespaceEntry::without_pods).unwrap_or_default();
        for undo in self.history.since(name, time) {
            match &undo.before {
                Before::Namespace(object) => entry.object.clone_from(object),
                Before::Policy(name, Some(policy)) => _ = entry.policies.insert(name.clone(), policy.clone()),
                Before::Policy(name, None) => _ = entry.policies.remove(name),
            }
        }
        entry
    }

    /// The version of a pod at `time`, or the earliest one that is kept.
    fn pod_at(&self, pod: &Arc<Pod>, time: Timestamp) -> Arc<Pod> {
        let earliest = self.history.of_pod_since(pod, time).last();
        earliest.map_or(pod, |undo| &undo.before).clone()
    }

    fn holder(&self, ip: IpAddr, time: Timestamp) -> Holder {
        let now = self.pods_by_ip.get(&ip).into_iter().flatten().filter_map(|key| {
            let entry = self.namespaces.get(&key.namespace)?.pods.get(&key.name)?;
            Some((&entry.pod, key.from, Timestamp::MAX))
        });
        let former = self.history.claims(ip).map(|claim| (&claim.pod, claim.from, claim.until));
        let mut ended = false;
        let (mut held, mut late) = (Vec::<&Arc<Pod>>::new(), Vec::<(&Arc<Pod>, Timestamp)>::new());
        for (pod, from, until) in former.chain(now) {
            match (from <= time, until <= time) {
                (true, false) => held.push(pod),
                (_, true) => ended = true,
                (false, false) => late.push((pod, from)),
            }
        }
        late.retain(|(pod, _)| {
            !held.iter().any(|known| known.is_same(pod))
                && match pod.created {
                    // The server's time is in whole seconds, rounded down: the pod may have begun in that second.
                    Some(created) => created <= time,
                    // Without a creation time the pod is the owner only if no other pod can be.
                    None => held.is_empty() && !ended,
                }
        });
        match (&*held, &*late) {
            ([], []) => Holder::Nobody,
            ([one], []) | ([], [(one, _)]) => Holder::Pod(Arc::clone(one)),
            ([one], late) if late.iter().all(|(_, from)| from.duration_since(time) > REPORTED_LATE) => {
                Holder::Pod(Arc::clone(one))
            }
            ([one], [(other, _), ..]) | ([], [(one, _), (other, _), ..]) => {
                Holder::Either(Arc::clone(one), Arc::clone(other))
            }
            (several, _) => Holder::Several(several.len()),
        }
    }

    /// Whether a verdict about a pod may have changed within `span` before or after `time`: by a change of a policy in its
    /// namespace, deletion included, of the namespace's labels, or of the pod itself.
    pub fn changed_near(&self, pod: &Pod, time: Timestamp, span: SignedDuration) -> bool {
        let (first, last) = near(time, span);
        self.history.since(&pod.namespace, first).any(|undo| undo.until <= last)
            || self.history.of_pod_since(pod, first).any(|undo| undo.until <= last)
    }

    /// The policies of a namespace that changed within `span` before or after `time`, each with the latest such change.
    /// `before` is `None` for a new policy, `after` for a deleted one.
    pub fn policies_changed_near(
        &self,
        namespace: &str,
        time: Timestamp,
        span: SignedDuration,
    ) -> Vec<PolicyChanged<'_>> {
        let (first, last) = near(time, span);
        let mut found: Vec<PolicyChanged<'_>> = Vec::new();
        for undo in self.history.since(namespace, first).filter(|undo| undo.until <= last) {
            let Before::Policy(name, before) = &undo.before else { continue };
            if !found.iter().any(|known| known.name == name) {
                let after = self.policy(namespace, name);
                found.push(PolicyChanged { name, before: before.as_ref(), after, at: undo.until });
            }
        }
        found
    }

    /// The number of kept changes, and of changes that were removed early.
    pub fn history(&self) -> (usize, u64) {
        (self.history.len(), self.history.crowded_out())
    }
}

/// The interval of `span` around `time`: after the first time, and not after the last.
fn near(time: Timestamp, span: SignedDuration) -> (Timestamp, Timestamp) {
    let nanosecond = SignedDuration::from_nanos(1);
    (time.saturating_sub(span + nanosecond).unwrap_or(time), time.saturating_add(span).unwrap_or(time))
}

impl Moment<'_> {
    /// Whether nothing relevant has changed since.
    pub fn is_as_now(&self) -> bool {
        self.past.is_none()
    }

    /// The owner of `ip` at the time.
    pub fn owner_of(&self, ip: IpAddr) -> AddressOwner<'_> {
        let then = self.past.as_ref().and_then(|past| {
            let (_, holder) = past.holders.iter().find(|(known, _)| *known == ip)?;
            Some((past, holder))
        });
        let Some((past, holder)) = then else { return self.index.owner_of(ip) };
        match holder {
            Holder::Pod(pod) => {
                let namespace = past.namespaces.iter().find(|(name, _)| *name == pod.namespace);
                namespace
                    .and_then(|(_, entry)| entry.pod(&pod.unique_name()))
                    .map_or(AddressOwner::None, AddressOwner::Pod)
            }
            Holder::Several(count) => AddressOwner::Ambiguous(*count),
            Holder::Either(one, other) => AddressOwner::Either(one, other),
            Holder::Nobody => self.index.owner_without_pod(ip),
        }
    }
}

#[cfg(test)]
mod tests;
