//! Makes the numbered objects of a cluster.

use serde_json::{Value, json};

/// Pods of a node.
pub const PODS_PER_NODE: usize = 30;

pub fn node_name(n: usize) -> String {
    format!("node-{n}")
}

pub fn node(n: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": node_name(n), "labels": { "kubernetes.io/hostname": node_name(n) } },
        "spec": { "podCIDR": format!("10.{}.{}.0/26", n / 1024, n / 4 % 256) },
        "status": { "addresses": [{ "type": "InternalIP", "address": format!("172.18.{}.{}", n / 250, n % 250 + 1) }] },
    })
}

pub fn place(n: usize) -> (String, String) {
    (format!("team-{}", n % 100), format!("app-{}-7d9c8bf9d-{n:05}", n % 20))
}

pub fn ip(n: usize) -> String {
    format!("10.{}.{}.{}", 100 + n / 62_500, n / 250 % 250, n % 250 + 1)
}

/// A Deployment's pod, of about 4 kB with what the server adds.
pub fn pod(n: usize) -> Value {
    let (namespace, name) = place(n);
    let variables: Vec<Value> = (0..20)
        .map(|v| json!({ "name": format!("SETTING_{v}"), "value": format!("value-{v}.{namespace}.svc") }))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": namespace, "name": name,
            "labels": { "app": format!("app-{}", n % 20), "pod-template-hash": "7d9c8bf9d", "tier": "backend",
                        "app.kubernetes.io/managed-by": "Helm", "app.kubernetes.io/version": "1.2.3" },
            "annotations": { "checksum/config": "0123456789abcdef".repeat(4), "prometheus.io/scrape": "true" },
        },
        "spec": {
            "nodeName": node_name(n / PODS_PER_NODE),
            "containers": [{
                "name": "main", "image": "registry.example/team/app:1.2.3", "env": variables,
                "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }],
                "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } },
            }],
        },
        "status": { "phase": "Running", "podIP": ip(n), "podIPs": [{ "ip": ip(n) }],
                    "conditions": [{ "type": "Ready", "status": "True" }] },
    })
}

/// The pod with this number as the server would store it, made from another pod of the server.
pub fn copy(template: &Value, n: usize) -> Value {
    let (namespace, name) = place(n);
    let mut copy = template.clone();
    copy["metadata"]["namespace"] = namespace.into();
    copy["metadata"]["name"] = name.into();
    copy["metadata"]["uid"] = format!("5c2c0b8e-0a56-4f7c-9d0f-{n:012x}").into();
    copy["metadata"]["labels"]["app"] = format!("app-{}", n % 20).into();
    copy["spec"]["nodeName"] = node_name(n / PODS_PER_NODE).into();
    copy["status"]["podIP"] = ip(n).into();
    copy["status"]["podIPs"] = json!([{ "ip": ip(n) }]);
    copy
}

pub fn policy(n: usize) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": format!("team-{}", n % 100), "name": format!("policy-{n}") },
        "spec": {
            "podSelector": { "matchLabels": { "app": format!("app-{}", n % 20) } },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{
                "from": [{ "podSelector": { "matchLabels": { "app": format!("app-{}", (n + 1) % 20) } } },
                         { "namespaceSelector": { "matchLabels": { "team": (n % 7).to_string() } } }],
                "ports": [{ "port": 8080, "protocol": "TCP" }],
            }],
            "egress": [{ "to": [{ "ipBlock": { "cidr": "10.0.0.0/8" } }] }],
        },
    })
}
