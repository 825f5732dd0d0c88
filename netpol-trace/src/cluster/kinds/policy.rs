//! networking.k8s.io/v1 NetworkPolicy, with the history of its versions.

mod spec;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::api::Need;
use super::super::change::{Key, Scope};
use super::super::decode::meta::CheckedMetadata;
use super::super::decode::{Checked, Violations};
use super::super::index::{Before, Index, Isolation, PolicyEvent, PolicyEventKind};
use super::super::resource::{KindInfo, Resource};
use super::super::yaml::Path;
use super::Kind;
use crate::model::Str;
use crate::model::cluster::{Direction, Labels, Policy};

pub(in crate::cluster) const INFO: KindInfo = KindInfo {
    api_version: "networking.k8s.io/v1",
    name: "NetworkPolicy",
    plural: "networkpolicies",
    need: Need::ForVerdicts,
    is_policy: true,
    keeps_lines: true,
    ..KindInfo::DEFAULT
};

impl Resource for Policy {
    type Api = networking::NetworkPolicy;
    type Wire = networking::NetworkPolicy;

    fn metadata(api: &networking::NetworkPolicy) -> &ObjectMeta {
        &api.metadata
    }

    fn decode(api: &networking::NetworkPolicy) -> Checked<Policy> {
        let mut v = Violations::default();
        let meta = CheckedMetadata::read(&api.metadata, &mut v);
        let path = Path::default().field("spec");
        let Some(spec) = &api.spec else {
            v.add(&path, "a NetworkPolicy without spec; `spec: {podSelector: {}}` selects every pod of the namespace");
            return v.into_error();
        };
        let subject = spec
            .pod_selector
            .as_ref()
            .map(|s| spec::selector(s, &path.field("podSelector"), &mut v))
            .unwrap_or_default();
        let ingress = spec.ingress.iter().flatten().map(|rule| (rule.from.as_deref(), rule.ports.as_deref()));
        let egress = spec.egress.iter().flatten().map(|rule| (rule.to.as_deref(), rule.ports.as_deref()));
        let (ingress, egress): (Vec<_>, Vec<_>) = (ingress.collect(), egress.collect());
        let policy = Policy {
            namespace: meta.namespace,
            name: meta.name,
            uid: meta.uid,
            labels: meta.labels,
            annotations: annotations(&api.metadata),
            generation: api.metadata.generation,
            changed: changed(&api.metadata),
            subject,
            declared_types: spec::types(spec.policy_types.as_deref(), &path.field("policyTypes"), &mut v),
            ingress: spec::rules(&ingress, Direction::Ingress, &path, &mut v),
            egress: spec::rules(&egress, Direction::Egress, &path, &mut v),
        };
        v.check(policy)
    }

    fn key(&self) -> Key {
        Key { kind: Kind::Policy, namespace: Some(self.namespace.clone()), name: self.name.clone() }
    }

    fn get<'a>(index: &'a Index, key: &Key) -> Option<&'a Policy> {
        index.policy(key.namespace.as_ref()?, &key.name).map(|policy| &**policy)
    }

    fn keys<'a>(index: &'a Index, _: &'a Scope) -> Box<dyn Iterator<Item = Key> + 'a> {
        let policies = index.namespaces.values().flat_map(|entry| entry.policies.values());
        Box::new(policies.map(|policy| Resource::key(&**policy)))
    }

    fn insert(mut self, index: &mut Index) {
        index.strings.share_selectors(&mut self);
        let entry = index.namespaces.entry(self.namespace.clone()).or_default();
        let policy = Arc::new(self);
        entry.policies.insert(policy.name.clone(), policy.clone());
        entry.reisolate(&policy.name, Some(&policy));
    }

    fn remove(index: &mut Index, key: &Key) {
        let Some(namespace) = &key.namespace else { return };
        if let Some(entry) = index.namespaces.get_mut(namespace)
            && entry.policies.remove(&key.name).is_some()
        {
            entry.reisolate(&key.name, None);
        }
        index.remove_if_empty(namespace);
    }

    fn put(mut self, index: &mut Index, at: Timestamp, listed: bool) {
        let (namespace, name) = (self.namespace.clone(), self.name.clone());
        let before = index.policy(&namespace, &name).cloned();
        if let Some(before) = before.as_ref().filter(|before| decides_the_same(before, &self)) {
            self.changed = before.changed.or(self.changed);
            if **before != self {
                index.upsert(self.into());
            }
            return;
        }
        if !listed {
            return index.upsert(self.into());
        }
        // The server's time, if it can be the time of this change: not after `at`, and later than the change before.
        let last = before.as_ref().and_then(|before| before.changed);
        self.changed = self.changed.filter(|changed| *changed <= at && Some(*changed) > last).or(Some(at));
        let isolation = Isolation::of(index.namespaces.get(&namespace));
        index.upsert(self.into());
        record_change(index, &namespace, name, before, &isolation, at);
    }

    fn take(index: &mut Index, key: &Key, at: Timestamp) {
        let entry = key.namespace.as_ref().and_then(|namespace| index.namespaces.get_key_value(namespace));
        let Some((namespace, entry)) = entry else { return };
        let Some(policy) = entry.policies.get(&key.name).cloned() else { return };
        let (namespace, isolation) = (namespace.clone(), Isolation::of(Some(entry)));
        index.remove(key);
        record_change(index, &namespace, key.name.clone(), Some(policy), &isolation, at);
    }
}

/// Records the version `before` of a policy that changed at `at`, and queues the change as an event. `isolation` is that of the
/// namespace's pods before the change.
fn record_change(
    index: &mut Index,
    namespace: &Str,
    name: Str,
    before: Option<Arc<Policy>>,
    isolation: &Isolation,
    at: Timestamp,
) {
    index.history.undo(namespace, at, Before::Policy(name.clone(), before.clone()));
    let effects = isolation.effects(index.namespaces.get(namespace));
    let after = index.policy(namespace, &name).cloned();
    let mut push = |before, after, effects| {
        let kind = PolicyEventKind::Policy { before, after, effects };
        index.push_event(PolicyEvent { at, namespace: namespace.clone(), kind });
    };
    let uid = |policy: &Option<Arc<Policy>>| policy.as_ref().and_then(|policy| policy.uid.clone());
    if uid(&before).zip(uid(&after)).is_some_and(|(before, after)| before != after) {
        // A LIST found another policy of the same name. Agents whose watch went on report two changes, so this one does too.
        push(before, None, Vec::new());
        return push(None, after, effects);
    }
    push(before, after, effects);
}

/// Whether two versions of a policy decide the same: labels and annotations decide nothing.
fn decides_the_same(a: &Policy, b: &Policy) -> bool {
    (&a.subject, &a.declared_types, &a.ingress, &a.egress) == (&b.subject, &b.declared_types, &b.ingress, &b.egress)
        && a.uid == b.uid
}

/// Bytes of annotations that are kept: `suggest` prints them with the changed policy.
const MAX_ANNOTATIONS: usize = 16 * 1024;

fn annotations(meta: &ObjectMeta) -> Labels {
    const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
    let kept = || meta.annotations.iter().flatten().filter(|(key, _)| *key != LAST_APPLIED);
    let size: usize = kept().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_ANNOTATIONS { Labels::default() } else { kept().map(|(k, v)| (k.as_str(), v.as_str())).collect() }
}

/// The creation, or the newest change in `managedFields`.
fn changed(meta: &ObjectMeta) -> Option<jiff::Timestamp> {
    let fields =
        meta.managed_fields.iter().flatten().filter(|entry| entry.subresource.as_deref().unwrap_or("").is_empty());
    fields.filter_map(|entry| entry.time.as_ref()).chain(&meta.creation_timestamp).map(|time| time.0).max()
}
