//! The mistakes people make with NetworkPolicy, as data. Lint findings and the hints of recorded drops use one list.

use crate::cluster::location::Severity;

/// One kind of mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Stable: scripts and `--disable` name it.
    pub id: &'static str,
    /// How bad a lint finding of it is, unless the check knows better.
    pub severity: Severity,
    pub title: &'static str,
    /// What is wrong, in general.
    pub what: &'static str,
    /// What to do, in general.
    pub fix: &'static str,
}

/// The entry of that id.
pub fn entry(id: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| entry.id == id)
}

const fn e(id: &'static str, severity: Severity, title: &'static str, what: &'static str, fix: &'static str) -> Entry {
    Entry { id, severity, title, what, fix }
}

use Severity::{Error, Info, Warning};

/// All entries, by subject.
pub static ENTRIES: &[Entry] = &[
    e(
        "dns-egress",
        Warning,
        "Egress is isolated, DNS is not allowed",
        "Pods whose egress is isolated can't resolve any name unless a rule allows port 53.",
        "Allow 53/UDP and 53/TCP to the cluster's DNS pods.",
    ),
    e(
        "dns-nodelocal",
        Warning,
        "DNS goes to the node-local cache",
        "With NodeLocal DNSCache, pods ask 169.254.20.10 on their node; a rule that selects the DNS pods doesn't cover that address.",
        "Allow port 53 to the cache's address by ipBlock too.",
    ),
    e(
        "dns-pod-port",
        Warning,
        "The DNS pods listen on another port than 53",
        "Policy sees the pod's port, not the service's: where the DNS service forwards 53 to another port, a rule for 53 allows nothing.",
        "Allow the DNS service's target port.",
    ),
    e(
        "and-or",
        Warning,
        "Two list items where one was meant",
        "Items of a from or to list are alternatives: a namespaceSelector item beside a podSelector item allows every pod of those namespaces.",
        "Put namespaceSelector and podSelector into one item (one dash), or into two rules if both are meant.",
    ),
    e(
        "ns-label",
        Warning,
        "The namespace doesn't have that label",
        "A namespaceSelector matches labels of Namespace objects, not their names; `name` is not set by Kubernetes.",
        "Select `kubernetes.io/metadata.name`, which every namespace has.",
    ),
    e(
        "wrong-ns",
        Warning,
        "The policy is in another namespace than the pods",
        "A policy selects pods of its own namespace only.",
        "Move the policy to the pods' namespace.",
    ),
    e(
        "no-match",
        Warning,
        "A selector matches no pod",
        "A selector that matches nothing isolates nothing, or allows nobody.",
        "Correct the label; the nearest one is shown.",
    ),
    e(
        "svc-port",
        Warning,
        "The rule has the service's port, the pod listens on another",
        "Policy is applied to the pod's port, after the service's translation.",
        "Write the target port.",
    ),
    e(
        "clusterip-ipblock",
        Warning,
        "An ipBlock of a service's cluster address",
        "By the time policy acts the destination is a backend pod: an ipBlock of the cluster IP matches nothing.",
        "Select the pods behind the service.",
    ),
    e(
        "apiserver",
        Warning,
        "The API server can't be selected",
        "The API server is no pod of the pod network: it runs on its node's address, or outside of the cluster.",
        "Allow the addresses of its endpoints by ipBlock, on their port (often 6443).",
    ),
    e(
        "empty-peers",
        Warning,
        "An empty peer list allows everybody",
        "An empty from or to list is no restriction. From a template it usually means that a value was missing.",
        "Leave out the rule when the list is empty; leave out the field when everybody is meant.",
    ),
    e(
        "lockout",
        Warning,
        "Nothing can reach these pods and they can reach nothing",
        "They are isolated in both directions and no policy allows anything.",
        "Add the needed allows: DNS first, then each peer.",
    ),
    e(
        "types-missing",
        Warning,
        "policyTypes and rules disagree",
        "Rules of a direction that policyTypes doesn't name do nothing (some CNIs apply them all the same), and a direction without a type isolates nothing.",
        "Write policyTypes, with each direction that is meant.",
    ),
    e(
        "proto-default",
        Warning,
        "A port without protocol means TCP",
        "The traffic on that port is UDP or SCTP.",
        "Write the protocol.",
    ),
    e(
        "named-port",
        Warning,
        "No such named port on the pods",
        "A named port is looked up on the destination pods, by name and protocol; a pod without it is not reached.",
        "Use a name that the pods declare, or the number.",
    ),
    e(
        "hostnet-peer",
        Warning,
        "The selector points at hostNetwork pods",
        "Pods on the host network have their node's address: selectors don't match them.",
        "Allow the nodes' addresses by ipBlock.",
    ),
    e(
        "pod-cidr-ipblock",
        Warning,
        "An ipBlock of pod addresses",
        "Whether ipBlock matches pods depends on the CNI (Calico: yes, Cilium: no), and pods change addresses.",
        "Use namespaceSelector and podSelector.",
    ),
    e(
        "family",
        Warning,
        "One address family only",
        "On a dual-stack cluster an IPv4 block says nothing of IPv6, and the other way round.",
        "Add the other family's block.",
    ),
    e(
        "dynamic-ports",
        Warning,
        "A protocol with data ports of its own",
        "FTP, RPC and NFSv3 open further connections on ports that no rule can name in advance.",
        "Fix the data ports on the server and allow them with endPort.",
    ),
    e(
        "snat-source",
        Warning,
        "Clients come with another address",
        "Through a NodePort or LoadBalancer service the source address becomes a node's, unless externalTrafficPolicy is Local.",
        "Set externalTrafficPolicy: Local on the service.",
    ),
    e(
        "duplicate-name",
        Warning,
        "Two policies of one name",
        "The last one applied replaces the whole first one. Rules of policies with different names add up.",
        "Rename one of them.",
    ),
    e(
        "missing-to",
        Error,
        "A peer outside of from or to",
        "A selector directly in a rule is no field of the API. Where it is dropped, the rule has no peers and allows everybody.",
        "Put the peer into a `to:` (egress) or `from:` (ingress) list.",
    ),
    e(
        "no-namespace",
        Warning,
        "A default deny without a namespace",
        "A policy isolates the pods of one namespace: the one it is applied to, here whatever kubectl's current one is.",
        "Write metadata.namespace, one policy per namespace; for the whole cluster use a cluster-wide policy API.",
    ),
    e(
        "open-pods",
        Info,
        "No policy selects these pods",
        "A pod that no policy selects is open to everybody and may connect everywhere.",
        "Add a default deny to the namespace, and allows for what is needed.",
    ),
    e(
        "wide-namespace",
        Warning,
        "That pod from every namespace",
        "`namespaceSelector: {}` is every namespace: who may create a pod in any of them can give it the label.",
        "Add a label of the namespaces that are meant.",
    ),
    e(
        "icmp",
        Error,
        "ICMP can't be expressed",
        "NetworkPolicy knows TCP, UDP and SCTP. What an isolated pod may do with ICMP depends on the CNI.",
        "Remove the rule; test with a TCP connection instead of ping.",
    ),
    e(
        "shape",
        Error,
        "Not what the API takes",
        "The API server refuses the object, or drops the field.",
        "Write it as the API has it; kubectl apply --dry-run=server checks it.",
    ),
    e(
        "not-enforced",
        Warning,
        "Nothing enforces policies here",
        "Policies are only objects until the network plugin applies them; this one doesn't.",
        "Use a plugin with NetworkPolicy support.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_found() {
        for (i, one) in ENTRIES.iter().enumerate() {
            assert_eq!(entry(one.id), Some(one));
            assert!(ENTRIES[i + 1..].iter().all(|other| other.id != one.id), "{}", one.id);
            for text in [one.title, one.what, one.fix] {
                assert!(!text.is_empty() && text.is_ascii(), "{}: {text}", one.id);
            }
        }
        assert_eq!(ENTRIES.len(), 28);
        assert_eq!(entry("nothing"), None);
    }
}
