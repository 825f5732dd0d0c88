//! A policy of the model as a manifest that `kubectl apply` takes.

use saphyr::{Scalar, Yaml, YamlEmitter};
use serde_json::{Map, Value, json as object};

use crate::model::cluster::{Labels, Operator, Peer, Policy, PortMatch, PortSpec, Rule, Selector};
use crate::policy::type_name;

/// The object with the API's field names.
pub fn json(policy: &Policy) -> Value {
    let mut metadata = Map::new();
    metadata.insert("name".into(), (*policy.name).into());
    metadata.insert("namespace".into(), (*policy.namespace).into());
    for (field, labels) in [("labels", &policy.labels), ("annotations", &policy.annotations)] {
        if !labels.is_empty() {
            metadata.insert(field.into(), map(labels));
        }
    }
    let mut spec = Map::new();
    spec.insert("podSelector".into(), selector(&policy.subject));
    if let Some(types) = &policy.declared_types {
        let names = types.iter().map(|direction| Value::from(type_name(*direction)));
        spec.insert("policyTypes".into(), names.collect());
    }
    for (field, rules, peers) in [("ingress", &policy.ingress, "from"), ("egress", &policy.egress, "to")] {
        if !rules.is_empty() {
            spec.insert(field.into(), rules.iter().map(|r| rule(r, peers)).collect());
        }
    }
    object!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
}

fn rule(rule: &Rule, peers_field: &str) -> Value {
    let mut fields = Map::new();
    if let Some(peers) = &rule.peers {
        fields.insert(peers_field.into(), peers.iter().map(peer).collect());
    }
    if let Some(ports) = &rule.ports {
        fields.insert("ports".into(), ports.iter().map(port).collect());
    }
    fields.into()
}

fn peer(peer: &Peer) -> Value {
    let mut fields = Map::new();
    match peer {
        Peer::Pods { namespaces, pods } => {
            if let Some(namespaces) = namespaces {
                fields.insert("namespaceSelector".into(), selector(namespaces));
            }
            if let Some(pods) = pods {
                fields.insert("podSelector".into(), selector(pods));
            }
        }
        Peer::Block { cidr, except } => {
            let mut block = Map::new();
            block.insert("cidr".into(), cidr.to_string().into());
            if !except.is_empty() {
                block.insert("except".into(), except.iter().map(|e| Value::from(e.to_string())).collect());
            }
            fields.insert("ipBlock".into(), block.into());
        }
    }
    fields.into()
}

fn port(port: &PortMatch) -> Value {
    let mut fields = Map::new();
    if !port.protocol_defaulted {
        fields.insert("protocol".into(), port.protocol.as_str().into());
    }
    match &port.port {
        PortSpec::Any => {}
        PortSpec::Named(name) => {
            fields.insert("port".into(), (**name).into());
        }
        PortSpec::Range(first, last) => {
            fields.insert("port".into(), (*first).into());
            if last != first {
                fields.insert("endPort".into(), (*last).into());
            }
        }
    }
    fields.into()
}

fn selector(selector: &Selector) -> Value {
    let mut labels = Map::new();
    let mut expressions = Vec::new();
    for requirement in &selector.requirements {
        let (operator, values) = match &requirement.operator {
            // Two requirements on one key need two expressions: a map holds a key once.
            Operator::In(values) if values.len() == 1 && !labels.contains_key(&*requirement.key) => {
                labels.insert(requirement.key.to_string(), (*values[0]).into());
                continue;
            }
            Operator::In(values) => ("In", Some(values)),
            Operator::NotIn(values) => ("NotIn", Some(values)),
            Operator::Exists => ("Exists", None),
            Operator::DoesNotExist => ("DoesNotExist", None),
        };
        let mut expression = Map::new();
        expression.insert("key".into(), (*requirement.key).into());
        expression.insert("operator".into(), operator.into());
        if let Some(values) = values {
            expression.insert("values".into(), values.iter().map(|v| Value::from(&**v)).collect());
        }
        expressions.push(expression.into());
    }
    let mut fields = Map::new();
    if !labels.is_empty() {
        fields.insert("matchLabels".into(), labels.into());
    }
    if !expressions.is_empty() {
        fields.insert("matchExpressions".into(), Value::Array(expressions));
    }
    fields.into()
}

fn map(labels: &Labels) -> Value {
    labels.iter().map(|(k, v)| (k.to_string(), Value::from(&**v))).collect::<Map<_, _>>().into()
}

/// The object as one YAML document, without the document marker.
pub fn yaml(policy: &Policy) -> String {
    let value = json(policy);
    let mut text = String::new();
    // Writing to a String can't fail, and the emitter's other error is for documents that can't be written at all.
    match YamlEmitter::new(&mut text).dump(&tree(&value)) {
        Ok(()) => text.trim_start_matches("---\n").to_owned() + "\n",
        // JSON is YAML.
        Err(_) => value.to_string() + "\n",
    }
}

fn tree(value: &Value) -> Yaml<'_> {
    match value {
        Value::Null => Yaml::Value(Scalar::Null),
        Value::Bool(flag) => Yaml::Value(Scalar::Boolean(*flag)),
        Value::Number(number) => Yaml::Value(Scalar::Integer(number.as_i64().unwrap_or_default())),
        Value::String(text) => Yaml::Value(Scalar::String(text.as_str().into())),
        Value::Array(items) => Yaml::Sequence(items.iter().map(tree).collect()),
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(key, _)| ORDER.iter().position(|known| known == key));
            let string = |text| Yaml::Value(Scalar::String(std::borrow::Cow::Borrowed(text)));
            Yaml::Mapping(fields.into_iter().map(|(key, value)| (string(key.as_str()), tree(value))).collect())
        }
    }
}

/// The order in which people write a policy's fields, where it is not alphabetical.
const ORDER: [&str; 11] =
    ["name", "namespace", "podSelector", "policyTypes", "ingress", "egress", "from", "to", "ports", "protocol", "port"];
