//! YAML that the user should write.

use crate::cluster::yaml::scalar_text;
use crate::model::Str;
use crate::model::cluster::{Operator, Policy, Requirement, Selector};
use crate::policy::lint::context::LintContext;
use crate::policy::matching::NAME_LABEL;

/// `key: value, other: value`, as in a mapping.
pub fn labels_yaml<'l>(labels: impl IntoIterator<Item = (&'l Str, &'l Str)>) -> String {
    let pairs: Vec<String> = labels.into_iter().map(|(k, v)| format!("{k}: {}", scalar_text(v))).collect();
    pairs.join(", ")
}

/// A selector on lines of `indent` spaces, without its field name.
pub fn selector_yaml(selector: &Selector, indent: usize) -> String {
    if selector.is_everything() {
        return " {}".to_owned();
    }
    let (mut labels, mut expressions) = (Vec::new(), Vec::new());
    for Requirement { key, operator } in &selector.requirements {
        let key = scalar_text(key);
        let list = |values: &[Str]| values.iter().map(|v| scalar_text(v)).collect::<Vec<_>>().join(", ");
        match operator {
            Operator::In(values) if values.len() == 1 => labels.push(format!("{key}: {}", list(values))),
            Operator::In(values) => {
                expressions.push(format!("{{key: {key}, operator: In, values: [{}]}}", list(values)))
            }
            Operator::NotIn(values) => {
                expressions.push(format!("{{key: {key}, operator: NotIn, values: [{}]}}", list(values)));
            }
            Operator::Exists => expressions.push(format!("{{key: {key}, operator: Exists}}")),
            Operator::DoesNotExist => expressions.push(format!("{{key: {key}, operator: DoesNotExist}}")),
        }
    }
    let pad = " ".repeat(indent);
    let mut yaml = String::new();
    if !labels.is_empty() {
        yaml.push_str(&format!("\n{pad}matchLabels: {{{}}}", labels.join(", ")));
    }
    if !expressions.is_empty() {
        yaml.push_str(&format!("\n{pad}matchExpressions: [{}]", expressions.join(", ")));
    }
    yaml
}

/// A peer as one item of a list.
pub fn peer_yaml(namespaces: Option<&Selector>, pods: Option<&Selector>) -> String {
    let mut lines = Vec::new();
    for (field, selector) in [("namespaceSelector", namespaces), ("podSelector", pods)] {
        if let Some(selector) = selector {
            let dash = if lines.is_empty() { "- " } else { "  " };
            lines.push(format!("{dash}{field}:{}", selector_yaml(selector, 4)));
        }
    }
    lines.join("\n")
}

/// A peer of one namespace, selected by the label that every namespace has.
pub fn peer_of_namespace_yaml(namespace: &Str, pods: Option<&Selector>) -> String {
    let requirement = Requirement { key: NAME_LABEL.into(), operator: Operator::In([namespace.clone()].into()) };
    peer_yaml(Some(&Selector { requirements: [requirement].into() }), pods)
}

/// The egress rule that reaches this cluster's DNS: as the input shows it, else as kubeadm and most clouds set it up.
pub fn dns_rule(context: &LintContext<'_>) -> String {
    let known = [("kube-system", "kube-dns"), ("openshift-dns", "dns-default"), ("kube-system", "coredns")];
    let in_the_input = known.iter().find_map(|(namespace, name)| {
        let service = context.index.service(namespace, name)?;
        let selector = service.selector.as_ref()?;
        let mut backends = context.index.service_backends(namespace, name);
        let target = backends.find(|b| b.service_port.port == 53).map_or(53, |b| b.target_port);
        Some((*namespace, selector.clone(), target))
    });
    let default = || ("kube-system", [("k8s-app", "kube-dns")].into_iter().collect(), 53);
    let (namespace, labels, port) = in_the_input.unwrap_or_else(default);
    let labels = labels_yaml(labels.iter());
    [
        "- to:".to_owned(),
        "  - namespaceSelector:".to_owned(),
        format!("      matchLabels: {{{NAME_LABEL}: {namespace}}}"),
        "    podSelector:".to_owned(),
        format!("      matchLabels: {{{labels}}}"),
        "  ports:".to_owned(),
        format!("  - {{protocol: UDP, port: {port}}}"),
        format!("  - {{protocol: TCP, port: {port}}}"),
    ]
    .join("\n")
}

/// A policy that allows the subjects of `policy` to query the cluster's DNS.
pub fn allow_dns_policy(context: &LintContext<'_>, policy: &Policy) -> String {
    [
        "apiVersion: networking.k8s.io/v1",
        "kind: NetworkPolicy",
        "metadata:",
        "  name: allow-dns",
        &format!("  namespace: {}", policy.namespace),
        "spec:",
        &format!("  podSelector:{}", selector_yaml(&policy.subject, 4)),
        "  policyTypes: [Egress]",
        "  egress:",
        &format!("  {}", dns_rule(context).replace('\n', "\n  ")),
    ]
    .join("\n")
}
