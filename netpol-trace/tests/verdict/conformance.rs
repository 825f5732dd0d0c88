//! Kubernetes' own NetworkPolicy e2e tests as a truth table. `tests/golden/kubernetes-e2e-netpol.json` is re-encoded
//! from kubernetes/kubernetes test/e2e/network/netpol/network_policy.go (Apache-2.0); its `source` names the commit.

use std::collections::BTreeSet;

use netpol_trace::cluster::{Index, Object};
use netpol_trace::model::cluster::*;
use netpol_trace::model::{Str, VerdictResult};
use netpol_trace::policy;
use netpol_trace::policy::CniOptions;
use serde_json::Value;

use crate::mk;

const TABLE: &str = include_str!("../../../tests/golden/kubernetes-e2e-netpol.json");

/// The table states 58 steps with 4,680 verdicts; fewer would mean that the test reads it wrongly.
#[test]
fn kubernetes_e2e_table_holds_for_every_ordered_pair() {
    let table: Value = serde_json::from_str(TABLE).unwrap();
    let mut steps = 0;
    let mut verdicts = 0;
    let mut wrong = Vec::new();
    for case in table["cases"].as_array().unwrap() {
        steps += 1;
        let index = index_of(&table["model"], case);
        let denied: BTreeSet<_> = case["denied"].as_array().unwrap().iter().map(probe_key).collect();
        let pods: Vec<&str> = list(&table["model"]["pods"]).map(|pod| text(&pod["id"])).collect();
        for probe in list(&case["probes"]) {
            let port = format!("{}/{}", probe["port"], text(&probe["protocol"]));
            for from in &pods {
                for to in pods.iter().filter(|to| *to != from) {
                    verdicts += 1;
                    let connection = mk::connection(&index, from, to, &port);
                    let result = policy::verdict_of(&index, &connection, &CniOptions::default()).result;
                    let expected = match denied.contains(&format!("{from} {to} {port}")) {
                        true => VerdictResult::Denied,
                        false => VerdictResult::Allowed,
                    };
                    if result != expected {
                        wrong.push(format!("{}: {from} -> {to} {port}: {result:?}, not {expected:?}", case["case"]));
                    }
                }
            }
        }
    }
    assert_eq!((steps, verdicts), (58, 4680));
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn probe_key(denied: &Value) -> String {
    format!("{} {} {}/{}", text(&denied[0]), text(&denied[1]), denied[2], text(&denied[3]))
}

fn index_of(model: &Value, case: &Value) -> Index {
    let mut objects = Vec::new();
    for (name, labels) in model["namespaces"].as_object().unwrap() {
        let labels = labels_of(labels).chain(labels_of(&case["namespace_labels_extra"][name])).collect();
        objects.push(Object::Namespace(Namespace { name: name.as_str().into(), labels }));
    }
    for pod in list(&model["pods"]) {
        let id = text(&pod["id"]);
        let labels = labels_of(&pod["labels"]).chain(labels_of(&case["pod_labels_extra"][id])).collect();
        let ports = list(&model["ports"])
            .map(|p| mk::container_port(&format!("{}={}/{}", text(&p["name"]), p["port"], text(&p["protocol"]))));
        let made = mk::pod(id, "", text(&pod["ip"]));
        objects.push(Object::Pod(Pod { labels, ports: ports.collect(), ..made }));
    }
    objects.extend(list(&case["policies"]).map(|policy| Object::Policy(policy_of(policy))));
    Index::from_objects(objects)
}

fn labels_of(value: &Value) -> impl Iterator<Item = (&str, &str)> {
    value.as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), text(value)))
}

fn policy_of(value: &Value) -> Policy {
    let spec = &value["spec"];
    let key = format!("{}/{}", text(&value["metadata"]["namespace"]), text(&value["metadata"]["name"]));
    let direction = |d: &Value| if text(d) == "Ingress" { Direction::Ingress } else { Direction::Egress };
    Policy {
        subject: selector_of(&spec["podSelector"]).unwrap(),
        declared_types: spec["policyTypes"].as_array().map(|types| types.iter().map(direction).collect()),
        ingress: list(&spec["ingress"]).map(|rule| rule_of(rule, "from")).collect(),
        egress: list(&spec["egress"]).map(|rule| rule_of(rule, "to")).collect(),
        ..mk::policy(&key, "")
    }
}

fn rule_of(value: &Value, peers: &str) -> Rule {
    Rule {
        peers: value[peers].as_array().map(|peers| peers.iter().map(peer_of).collect()),
        ports: value["ports"].as_array().map(|ports| ports.iter().map(port_of).collect()),
    }
}

fn peer_of(value: &Value) -> Peer {
    match value.get("ipBlock") {
        Some(block) => Peer::Block {
            cidr: text(&block["cidr"]).parse().unwrap(),
            except: list(&block["except"]).map(|e| text(e).parse().unwrap()).collect(),
        },
        None => Peer::Pods {
            namespaces: selector_of(&value["namespaceSelector"]),
            pods: selector_of(&value["podSelector"]),
        },
    }
}

fn port_of(value: &Value) -> PortMatch {
    let number = |value: &Value| u16::try_from(value.as_u64().unwrap()).unwrap();
    let port = match &value["port"] {
        Value::Null => PortSpec::Any,
        Value::String(name) => PortSpec::Named(name.as_str().into()),
        first => PortSpec::Range(number(first), value.get("endPort").map_or(number(first), number)),
    };
    let protocol = value["protocol"].as_str();
    PortMatch { protocol: mk::protocol(protocol.unwrap_or("TCP")), protocol_defaulted: protocol.is_none(), port }
}

fn selector_of(value: &Value) -> Option<Selector> {
    let fields = value.as_object()?;
    let equal = labels_of(&value["matchLabels"])
        .map(|(key, value)| Requirement { key: key.into(), operator: Operator::In([Str::from(value)].into()) });
    let expressions = list(&value["matchExpressions"]).map(|e| {
        let values = || list(&e["values"]).map(|v| Str::from(text(v))).collect();
        let operator = match text(&e["operator"]) {
            "In" => Operator::In(values()),
            "NotIn" => Operator::NotIn(values()),
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            other => panic!("operator {other}"),
        };
        Requirement { key: text(&e["key"]).into(), operator }
    });
    assert!(fields.keys().all(|k| k == "matchLabels" || k == "matchExpressions"));
    Some(Selector { requirements: equal.chain(expressions).collect() })
}
