//! Restricts a record to what a reader may see who may read one endpoint's namespace only. The other endpoint becomes an address. Pure.
//!
//! The reader's own endpoint, the drop and the policies of their namespace stay. The identity of the other endpoint, the policies that isolate
//! it, and the hint are removed: they name objects of the other namespace.

use super::{Body, Drop, Endpoint, Record, Unanswered};
use crate::model::{EndpointKind, Loss, Part, Side, Verdict};

const NOT_SHOWN: &str = "not shown: in a namespace that you may not read";

/// Returns the record for a reader who may read the namespaces that `may` allows; `None` if they may not see it at all.
pub fn restricted(record: Record, mut may: impl FnMut(&str) -> bool) -> Option<Record> {
    let body = match record.body {
        Body::Drop(drop) => Body::Drop(Box::new(restricted_drop(*drop, &mut may)?)),
        Body::Unanswered(unanswered) => Body::Unanswered(Box::new(restricted_unanswered(*unanswered, &mut may)?)),
        // The lost packets may be the reader's own.
        Body::Loss(loss) => Body::Loss(Loss { sink: None, first_id: None, last_id: None, ..loss }),
        // A policy isolates pods of its own namespace only.
        Body::PolicyChange(change) if may(&change.namespace) => Body::PolicyChange(change),
        Body::PolicyChange(_) | Body::Status(_) => return None,
    };
    // The node would show where the other endpoint runs.
    Some(Record { body, node: None, ..record })
}

fn restricted_drop(drop: Drop, may: &mut impl FnMut(&str) -> bool) -> Option<Drop> {
    let [sees_source, sees_destination] = sees(&drop.source, &drop.destination, may)?;
    let sees_all = sees_source && sees_destination;
    let kernel = super::Kernel { device: None, netns: None, ..drop.kernel };
    Some(Drop {
        source: end(drop.source, sees_source, sees_destination),
        destination: end(drop.destination, sees_destination, sees_source),
        verdict: drop.verdict.map(|verdict| restricted_verdict(verdict, [sees_source, sees_destination])),
        hint: drop.hint.filter(|_| sees_all),
        kernel,
        ..drop
    })
}

fn restricted_unanswered(unanswered: Unanswered, may: &mut impl FnMut(&str) -> bool) -> Option<Unanswered> {
    let [sees_source, sees_destination] = sees(&unanswered.source, &unanswered.destination, may)?;
    let sees_all = sees_source && sees_destination;
    Some(Unanswered {
        source: end(unanswered.source, sees_source, sees_destination),
        destination: end(unanswered.destination, sees_destination, sees_source),
        verdict: unanswered.verdict.map(|verdict| restricted_verdict(verdict, [sees_source, sees_destination])),
        hint: unanswered.hint.filter(|_| sees_all),
        device: None,
        ..unanswered
    })
}

/// Returns which endpoints the reader may see; `None` if neither is a pod or service of theirs. An endpoint without a namespace (a node, an
/// external address) is shown if the other one is.
fn sees(source: &Endpoint, destination: &Endpoint, may: &mut impl FnMut(&str) -> bool) -> Option<[bool; 2]> {
    let mut own = |end: &Endpoint| namespace(end).map(&mut *may);
    match [own(source), own(destination)] {
        [None, None] | [Some(false), Some(false) | None] | [None, Some(false)] => None,
        [source, destination] => Some([source.unwrap_or(true), destination.unwrap_or(true)]),
    }
}

fn namespace(end: &Endpoint) -> Option<&str> {
    let of_pod = end.pod.as_ref().map(|pod| pod.namespace.as_str());
    of_pod.or_else(|| end.service.as_ref().map(|service| &*service.namespace))
}

fn end(mut end: Endpoint, seen: bool, sees_other: bool) -> Endpoint {
    if end.kind == EndpointKind::Node {
        end.node = None;
    }
    if seen {
        return end;
    }
    Endpoint {
        pod: None,
        node: None,
        service: None,
        // The reader's own pod knows which name and address it used.
        original: end.original.filter(|_| sees_other),
        names: if sees_other { end.names } else { Vec::new() },
        note: Some(NOT_SHOWN.into()),
        ..end
    }
}

/// Keeps the sides that the reader may see: egress belongs to the source, ingress to the destination.
fn restricted_verdict(verdict: Part<Verdict>, [sees_source, sees_destination]: [bool; 2]) -> Part<Verdict> {
    let (verdict, sees_all) = (verdict.into_inner(), sees_source && sees_destination);
    Part::new(Verdict {
        egress: side(verdict.egress, sees_source, sees_all),
        ingress: side(verdict.ingress, sees_destination, sees_all),
        notes: if sees_all { verdict.notes } else { Vec::new() },
        ..verdict
    })
}

fn side(side: Side, own: bool, sees_all: bool) -> Side {
    if !own {
        let why = Some(NOT_SHOWN.to_owned());
        return Side { isolated_by: Vec::new(), allowed_by: None, nearest: None, why, changed: Vec::new(), ..side };
    }
    let mut side = side;
    if !sees_all && let Some(nearest) = &mut side.nearest {
        // The miss of a selector quotes the labels of the other endpoint.
        for miss in nearest.misses.iter_mut().filter(|miss| miss.field.ends_with("Selector")) {
            NOT_SHOWN.clone_into(&mut miss.have);
        }
    }
    side
}

#[cfg(test)]
mod tests {
    use super::*;

    const DROP: &str = r#"{"schema":"netpol-trace/v1","id":"a/1","run":"a","seq":1,"time":"2026-11-21T04:30:11Z","node":"worker-7","kind":"drop","count":1,"bytes":60,
      "cause":"policy","direction":"ingress","action":"drop",
      "source":{"kind":"pod","ip":"10.0.0.1","port":1000,"pod":{"namespace":"qa","name":"SECRET-web","uid":"SECRET","labels":{"app":"SECRET"},"owner":{"kind":"Deployment","name":"SECRET"},"node":"SECRET"}},
      "destination":{"kind":"pod","ip":"10.0.0.2","port":80,"pod":{"namespace":"prod","name":"db-0","labels":{"app":"db"},"node":"worker-7"},"service":{"namespace":"prod","name":"db-svc"}},
      "network":{"transport":"tcp","family":"ipv4","length":60},
      "kernel":{"reason":"NETFILTER_DROP","hook":"forward","mechanism":"nftables","device":"SECRET","netns":4026531840},
      "verdict":{"result":"denied","basis":"networkpolicy_v1","notes":["SECRET"],
        "egress":{"result":"denied","isolated_by":[{"namespace":"qa","name":"SECRET"}],"nearest":{"policy":"qa/SECRET","misses":[{"field":"egress","want":"a rule","have":"no rules"}]}},
        "ingress":{"result":"denied","isolated_by":[{"namespace":"prod","name":"db-np"}],"nearest":{"policy":"prod/db-np","rule":"ingress[0]","misses":[{"field":"ingress[0].from[0].podSelector","want":"app=api","have":"app=SECRET"}]}}},
      "hint":{"code":"peer-label","message":"pod has app=SECRET"},"enrichment":"complete"}"#;

    fn as_seen_by(namespaces: &[&str]) -> Option<String> {
        let record: Record = serde_json::from_str(DROP).unwrap();
        restricted(record, |ns| namespaces.contains(&ns)).map(|record| serde_json::to_string(&record).unwrap())
    }

    #[test]
    fn the_other_endpoint_is_an_address() {
        let seen = as_seen_by(&["prod"]).unwrap();
        assert!(!seen.contains("SECRET") && !seen.contains("worker-7\",\"kind\""), "{seen}");
        for kept in ["10.0.0.1", "db-0", "prod\",\"name\":\"db-np", "app=api", "db-svc"] {
            assert!(seen.contains(kept), "{kept}: {seen}");
        }
    }

    #[test]
    fn a_reader_of_both_namespaces_sees_both_and_of_neither_nothing() {
        assert!(as_seen_by(&["prod", "qa"]).unwrap().contains("app=SECRET"));
        assert_eq!(as_seen_by(&["kube-system"]), None);
    }
}
