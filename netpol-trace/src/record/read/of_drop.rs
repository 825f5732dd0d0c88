//! The view of a drop that the agent itself is about to write, for describing it without a detour over JSON.

use std::borrow::Cow;
use std::fmt::Display;

use serde::Serialize;

use super::{
    EndpointView, HintView, KernelView, MissView, NetworkView, ObjectRefView, OwnerView, PodRefView, PolicyChangedView,
    RecordView, RuleView, SideView, TextView, VerdictView,
};
use crate::model::{ChangedPolicy, Nearest, PodRef, PolicyRef, RuleRef, Side, Verdict};
use crate::record::{Drop, Endpoint, Record};

impl<'a> RecordView<'a> {
    /// Returns the view of `drop`, the body of `record`: what [`super::read`] would return for its line.
    pub fn of_drop(record: &'a Record, drop: &'a Drop) -> RecordView<'a> {
        RecordView {
            schema: text(&record.schema),
            id: text(&record.id),
            run: text(&record.run),
            seq: Some(record.seq),
            fingerprint: record.fingerprint.as_ref().map(shown).unwrap_or_default(),
            time: record.time,
            last_time: drop.last_time,
            cluster: maybe(record.cluster.as_deref()),
            node: maybe(record.node.as_deref()),
            kind: text("drop"),
            count: Some(drop.count),
            cause: text(drop.cause.as_str()),
            direction: maybe(drop.direction.map(|direction| direction.as_str())),
            action: named(&drop.action),
            source: Some(endpoint(&drop.source)),
            destination: Some(endpoint(&drop.destination)),
            network: NetworkView {
                transport: text(&drop.network.transport),
                tcp_flags: drop.network.tcp_flags.iter().map(|flag| text(flag)).collect(),
                length: drop.network.length,
            },
            reply: drop.reply,
            spoofed: drop.spoofed,
            kernel: KernelView {
                reason: maybe(drop.kernel.reason.as_deref()),
                location: maybe(drop.kernel.location.as_deref()),
                hook: drop.kernel.hook.as_ref().map(named).unwrap_or_default(),
                mechanism: named(&drop.kernel.mechanism),
                device: maybe(drop.kernel.device.as_deref()),
            },
            verdict: drop.verdict.as_deref().map(verdict),
            hint: drop.hint.as_deref().map(|hint| HintView { code: text(&hint.code), message: text(&hint.message) }),
            enrichment: named(&drop.enrichment),
            ..RecordView::default()
        }
    }
}

fn endpoint(endpoint: &Endpoint) -> EndpointView<'_> {
    let service = endpoint.service.as_ref().map(|service| ObjectRefView {
        namespace: text(&service.namespace),
        name: text(&service.name),
        port: service.port,
        changed_ago_seconds: None,
    });
    EndpointView {
        kind: named(&endpoint.kind),
        ip: shown(&endpoint.ip),
        port: endpoint.port,
        pod: endpoint.pod.as_deref().map(pod),
        node: maybe(endpoint.node.as_deref()),
        service,
        names: endpoint.names.iter().map(|name| text(name)).collect(),
    }
}

fn pod(pod: &PodRef) -> PodRefView<'_> {
    PodRefView {
        namespace: text(&pod.namespace),
        name: text(&pod.name),
        uid: maybe(pod.uid.as_deref()),
        labels: pod.labels.iter().map(|(key, value)| (text(key), text(value))).collect(),
        owner: pod.owner.as_ref().map(|owner| OwnerView { kind: text(&owner.kind), name: text(&owner.name) }),
        node: maybe(pod.node.as_deref()),
    }
}

fn verdict(verdict: &Verdict) -> VerdictView<'_> {
    VerdictView {
        result: named(&verdict.result),
        basis: text(&verdict.basis),
        egress: side(&verdict.egress),
        ingress: side(&verdict.ingress),
    }
}

fn side(side: &Side) -> SideView<'_> {
    SideView {
        result: named(&side.result),
        isolated_by: side.isolated_by.iter().map(policy).collect(),
        allowed_by: side.allowed_by.as_ref().map(rule),
        nearest: side.nearest.as_ref().map(nearest),
        why: maybe(side.why.as_deref()),
        changed: side.changed.iter().map(changed).collect(),
    }
}

fn policy(policy: &PolicyRef) -> ObjectRefView<'_> {
    ObjectRefView {
        namespace: text(&policy.namespace),
        name: text(&policy.name),
        port: None,
        changed_ago_seconds: policy.changed_ago_seconds,
    }
}

fn rule(rule: &RuleRef) -> RuleView<'_> {
    RuleView { policy: text(&rule.policy), rule: text(&rule.rule), misses: Vec::new() }
}

fn nearest(nearest: &Nearest) -> RuleView<'_> {
    let misses = nearest.misses.iter().map(|miss| MissView {
        field: text(&miss.field),
        want: text(&miss.want),
        have: text(&miss.have),
    });
    RuleView { policy: text(&nearest.policy), rule: maybe(nearest.rule.as_deref()), misses: misses.collect() }
}

fn changed(policy: &ChangedPolicy) -> PolicyChangedView<'_> {
    PolicyChangedView {
        namespace: text(&policy.namespace),
        name: text(&policy.name),
        change: named(&policy.change),
        changed_ago_seconds: policy.changed_ago_seconds,
    }
}

fn text(text: &str) -> TextView<'_> {
    TextView(Cow::Borrowed(text))
}

fn maybe(text: Option<&str>) -> TextView<'_> {
    TextView(Cow::Borrowed(text.unwrap_or_default()))
}

fn shown(value: &impl Display) -> TextView<'static> {
    TextView(Cow::Owned(value.to_string()))
}

/// The name of an enum's value, as serde writes it.
fn named(value: &impl Serialize) -> TextView<'static> {
    let name = serde_json::to_value(value).ok().and_then(|name| name.as_str().map(str::to_owned));
    TextView(Cow::Owned(name.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use crate::record::read::{RecordView, read};
    use crate::record::{Body, Record};

    #[test]
    fn a_drops_view_is_that_of_its_line() {
        let mut drops = 0;
        for line in include_str!("../../../../tests/golden/records.jsonl").lines() {
            let record: Record = serde_json::from_str(line).unwrap();
            if let Body::Drop(drop) = &record.body {
                assert_eq!(RecordView::of_drop(&record, drop), read(line.as_bytes()).unwrap());
                drops += 1;
            }
        }
        assert!(drops > 3, "only {drops} drops");
    }
}
