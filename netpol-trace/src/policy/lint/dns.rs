//! DNS: the first thing that an egress policy breaks.

use crate::cluster::index::PodView;
use crate::cluster::yaml::scalar_text;
use crate::model::cluster::{Direction, Peer, Policy, PortSpec, Protocol, Rule};
use crate::policy::lint::Finding;
use crate::policy::lint::context::{Context, NAME_LABEL, PolicyContext, names, selector_yaml};
use crate::policy::lint::ports::covers;

const CACHE: &str = "169.254.20.10";

pub fn check(context: &Context<'_>, at: &PolicyContext<'_>, findings: &mut Vec<Finding>) {
    if !at.policy.isolates(Direction::Egress) {
        return;
    }
    no_dns(context, at, findings);
    node_local(context, at, findings);
}

/// How far a rule lets DNS through.
fn allows(context: &Context<'_>, policy: &Policy, rule: &Rule, protocol: Protocol) -> bool {
    let ports = rule.ports.as_deref().unwrap_or_default();
    // 53, or the port on which OpenShift's DNS pods listen, or one by name: somebody thought of DNS.
    let listed = ports.iter().any(|port| {
        let named = matches!(&port.port, PortSpec::Named(name) if name.starts_with("dns"));
        port.protocol == protocol
            && !matches!(port.port, PortSpec::Any)
            && (covers(port, 53) || covers(port, 5353) || covers(port, 1053) || named)
    });
    // Port 53 without protocol: DNS was thought of, `proto-default` says the rest.
    let half = ports.iter().any(|port| port.protocol_defaulted && port.port == PortSpec::Range(53, 53));
    let any = ports.is_empty() || ports.iter().any(|port| port.protocol == protocol && covers(port, 53));
    listed || half || (any && reaches_dns(context, policy, rule))
}

/// Whether a rule for all ports may hold the DNS pods. What the input doesn't show counts as yes.
fn reaches_dns(context: &Context<'_>, policy: &Policy, rule: &Rule) -> bool {
    let peers = rule.peers.as_deref().unwrap_or_default();
    let system = |namespace: &str| matches!(namespace, "kube-system" | "openshift-dns");
    let peer = |peer: &Peer| match peer {
        Peer::Block { cidr, except } => {
            // The private ranges hold nearly every cluster's pods and services.
            let private = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
            let holes = except.iter().filter(|hole| private.contains(&hole.to_string().as_str())).count();
            cidr.prefix_len() == 0 && holes == 0
        }
        Peer::Pods { namespaces: None, .. } => system(&policy.namespace),
        Peer::Pods { namespaces: Some(selector), .. } => {
            let named = |text: &str| selector.to_string().contains(text);
            selector.is_everything()
                || named("kube-system")
                || named("openshift-dns")
                || context.matching_namespaces(selector).iter().any(|(name, _)| system(name))
        }
    };
    peers.is_empty() || peers.iter().any(peer)
}

/// Whether any policy on these pods lets DNS through.
fn has_dns<'c>(context: &Context<'_>, mut policies: impl Iterator<Item = &'c Policy>) -> bool {
    policies.any(|policy| policy.egress.iter().any(|rule| allows(context, policy, rule, Protocol::Udp)))
}

fn no_dns(context: &Context<'_>, at: &PolicyContext<'_>, findings: &mut Vec<Finding>) {
    let policy = at.policy;
    let subjects = context.subjects(policy);
    let on_pod = |view: &PodView<'_>| view.isolated_by(Direction::Egress).to_vec();
    let without: Vec<PodView<'_>> =
        subjects.iter().copied().filter(|view| !has_dns(context, on_pod(view).iter().map(|p| &**p))).collect();
    let known = !subjects.is_empty();
    let covered = || has_dns(context, context.also_on_subjects(policy, Direction::Egress).map(|other| other.policy));
    if if known { without.is_empty() } else { covered() } {
        return;
    }
    let locked_out = policy.isolates(Direction::Ingress) && policy.ingress.is_empty();
    if policy.egress.is_empty() {
        // One workload that may send nothing is a decision, and a default deny is completed by other policies; a
        // namespace where no pod may ask is a mistake.
        let somebody_else = context.policies_of(&policy.namespace).any(|other| !other.policy.egress.is_empty());
        let lockout_says_it = findings
            .iter()
            .any(|f| f.id == "lockout" && f.place.file == at.located.place.file && f.object == at.name());
        if !policy.subject.is_everything() || somebody_else || (locked_out && lockout_says_it) {
            return;
        }
    }
    let who = if known { names(&without) } else { subject_text(policy) };
    let why = if policy.egress.is_empty() {
        "egress is denied, and no policy allows port 53"
    } else if policy.egress.iter().any(private_excepted) {
        "the cluster's DNS is inside of the excepted private ranges, and no rule allows it"
    } else {
        "egress is isolated, and no rule allows port 53"
    };
    let message = format!("no name resolves for {who}: {why}");
    let fix = format!("add to spec.egress:\n{}", dns_rule(context));
    findings.push(at.finding("dns-egress", "spec.egress", message, fix));
}

fn private_excepted(rule: &Rule) -> bool {
    let default_route = |peer: &Peer| matches!(peer, Peer::Block { cidr, .. } if cidr.prefix_len() == 0);
    rule.ports.as_deref().unwrap_or_default().is_empty() && rule.peers.iter().flatten().any(default_route)
}

fn subject_text(policy: &Policy) -> String {
    if policy.subject.is_everything() {
        format!("every pod of namespace {}", policy.namespace)
    } else {
        format!("pods with {}", policy.subject)
    }
}

/// The egress rule that reaches this cluster's DNS, as the input shows it, else as kubeadm and most clouds set it up.
fn dns_rule(context: &Context<'_>) -> String {
    let known = [("kube-system", "kube-dns"), ("openshift-dns", "dns-default"), ("kube-system", "coredns")];
    let found = known.iter().find_map(|(namespace, name)| {
        let service = context.index.service(namespace, name)?;
        let selector = service.selector.as_ref()?;
        let mut backends = context.index.service_backends(namespace, name);
        let target = backends.find(|b| b.service_port.port == 53).map_or(53, |b| b.target_port);
        Some((*namespace, selector.clone(), target))
    });
    let default = || ("kube-system", [("k8s-app", "kube-dns")].into_iter().collect(), 53);
    let (namespace, labels, port) = found.unwrap_or_else(default);
    let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}: {}", scalar_text(v))).collect();
    let labels = labels.join(", ");
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

/// A policy that lets the subjects of `policy` ask the cluster's DNS.
pub fn allow_dns(context: &Context<'_>, policy: &Policy) -> String {
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

/// A cluster with NodeLocal DNSCache, and a DNS rule that only selects pods.
fn node_local(context: &Context<'_>, at: &PolicyContext<'_>, findings: &mut Vec<Finding>) {
    let cache = context.pods("kube-system").into_iter().find(|view| {
        let app = view
            .pod
            .labels
            .get("k8s-app")
            .is_some_and(|app| app.contains("node-local-dns") || app.contains("nodelocaldns"));
        view.pod.host_network
            && (app || view.pod.name.contains("node-local-dns") || view.pod.name.contains("nodelocaldns"))
    });
    if cache.is_none() {
        return;
    }
    let address = CACHE.parse().ok();
    for (path, rule) in at.rules(Direction::Egress) {
        let lists_dns = rule.ports.iter().flatten().any(|p| p.protocol == Protocol::Udp && covers(p, 53));
        let peers = rule.peers.as_deref().unwrap_or_default();
        let block = |peer: &Peer| matches!(peer, Peer::Block { cidr, .. } if address.is_some_and(|a: std::net::IpAddr| cidr.contains(&a)));
        let elsewhere = context.also_on_subjects(at.policy, Direction::Egress).any(|other| {
            other
                .policy
                .egress
                .iter()
                .any(|rule| rule.peers.as_deref().is_none_or(|peers| peers.is_empty() || peers.iter().any(block)))
        });
        if lists_dns && !peers.is_empty() && !elsewhere {
            let message = format!(
                "this cluster has NodeLocal DNSCache: pods ask {CACHE} on their node, which no selector matches"
            );
            let fix = format!("add to the list:\n- ipBlock: {{cidr: {CACHE}/32}}");
            findings.push(at.finding("dns-nodelocal", &format!("{path}.to"), message, fix));
            return;
        }
    }
}
