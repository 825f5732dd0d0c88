//! One case for each entry of the catalogue that the articles don't have, and the near misses that must stay silent.

use crate::policy::lint::tests::*;

/// A small cluster: two namespaces with workloads, DNS, a node.
const CLUSTER: &str = r#"apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: shop-team}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: bank, labels: {team: bank-team}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: kube-system}}
- {apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.1.0.0/24, "fd01::/64"]}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web, tier: front}}, spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}, status: {podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: "fd01::1"}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, spec: {containers: [{name: c, ports: [{containerPort: 3306}]}], initContainers: [{name: s, restartPolicy: Always, ports: [{name: admin, containerPort: 9901}]}]}, status: {podIP: 10.1.0.2}}
- {apiVersion: v1, kind: Pod, metadata: {name: syslog, namespace: shop, labels: {app: syslog}}, spec: {containers: [{name: c, ports: [{name: syslog, containerPort: 514, protocol: UDP}]}]}, status: {podIP: 10.1.0.3}}
- {apiVersion: v1, kind: Pod, metadata: {name: vault, namespace: bank, labels: {app: vault}}, status: {podIP: 10.1.0.4}}
- {apiVersion: v1, kind: Pod, metadata: {name: agent, namespace: bank, labels: {app: agent}}, spec: {hostNetwork: true}, status: {podIP: 192.168.0.1}}
- {apiVersion: v1, kind: Pod, metadata: {name: coredns, namespace: kube-system, labels: {k8s-app: kube-dns}}, spec: {containers: [{name: c, ports: [{name: dns, containerPort: 5353, protocol: UDP}, {name: dns-tcp, containerPort: 5353}]}]}, status: {podIP: 10.1.0.5}}
- {apiVersion: v1, kind: Pod, metadata: {name: node-local-dns-x, namespace: kube-system, labels: {k8s-app: node-local-dns}}, spec: {hostNetwork: true}}
- {apiVersion: v1, kind: Service, metadata: {name: kube-dns, namespace: kube-system}, spec: {clusterIP: 10.96.0.10, selector: {k8s-app: kube-dns}, ports: [{name: dns, port: 53, protocol: UDP, targetPort: dns}]}}
- {apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {type: NodePort, clusterIP: 10.96.0.2, selector: {app: web}, ports: [{port: 80, targetPort: http, nodePort: 30080}]}}
- {apiVersion: v1, kind: Service, metadata: {name: kubernetes, namespace: default}, spec: {clusterIP: 10.96.0.1, ports: [{port: 443, targetPort: 6443}]}}
- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}, endpoints: [{addresses: [192.168.0.1]}], ports: [{port: 6443}]}
"#;

/// The findings of a policy in namespace shop, without those of other objects: `severity[id] field: message | fix`.
fn case(spec: &str, expected: Expect) {
    let policy = format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    );
    let loaded = load_bytes("x.yaml", format!("{CLUSTER}{policy}").as_bytes());
    let mut shown = String::new();
    for finding in lint(&loaded, &[]).iter().filter(|f| f.object == "NetworkPolicy shop/p") {
        let fix = finding.fix.replace('\n', "\n  ");
        shown.push_str(&format!(
            "{}[{}] {}: {}\n  {fix}\n",
            finding.severity, finding.id, finding.place.field, finding.message
        ));
    }
    expected.assert_eq(&shown);
}

#[test]
fn no_match_shows_the_nearest_label() {
    case(
        "{podSelector: {matchLabels: {app: wep}}}",
        expect![[r#"
        warning[no-match] spec.podSelector: podSelector app=wep matches no pod of namespace shop; nearest: shop/web has app=web
          correct the label, or remove the policy: it isolates nothing
    "#]],
    );
    case(
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {tier: back}}}]}]}",
        expect![[r#"
        warning[no-match] spec.ingress[0].from[0].podSelector: podSelector tier=back matches no pod of shop; nearest: shop/web has tier=front
          correct the label
    "#]],
    );
    case(
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: bank-team}}, podSelector: {matchLabels: {ap: vault}}}]}]}",
        expect![[r#"
        warning[no-match] spec.ingress[0].from[0].podSelector: podSelector ap=vault matches no pod of bank; nearest: bank/vault has app=vault
          correct the label
    "#]],
    );
    case(
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: bank-taem}}}]}]}",
        expect![[r#"
        warning[no-match] spec.ingress[0].from[0].namespaceSelector: namespaceSelector team=bank-taem matches no namespace here; nearest: bank has team=bank-team
          write team: bank-team
    "#]],
    );
    // Another value is another namespace, which the input may not have.
    case(
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: logistics}}, podSelector: {matchLabels: {app: x}}}]}]}",
        expect![""],
    );
}

#[test]
fn ns_label() {
    case(
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {name: bank}}}]}]}",
        expect![[r#"
        warning[ns-label] spec.ingress[0].from[0].namespaceSelector: namespace bank has no label name=bank; it has kubernetes.io/metadata.name=bank, team=bank-team
          select it by the label that every namespace has:
          - namespaceSelector:
              matchLabels: {kubernetes.io/metadata.name: bank}
    "#]],
    );
    case(
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {name: elsewhere}}}]}]}",
        expect![[r#"
        info[ns-label] spec.ingress[0].from[0].namespaceSelector: name=elsewhere is a label that Kubernetes doesn't set: it matches only where somebody labelled the namespace so
          select it by the label that every namespace has:
          - namespaceSelector:
              matchLabels: {kubernetes.io/metadata.name: elsewhere}
    "#]],
    );
}

#[test]
fn wrong_ns() {
    case(
        "{podSelector: {matchLabels: {app: vault}}}",
        expect![[r#"
        warning[wrong-ns] spec.podSelector: podSelector app=vault matches no pod of namespace shop, where the policy is; such pods are in bank
          set metadata.namespace: bank
    "#]],
    );
    case(
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: vault}}}]}]}",
        expect![[r#"
        warning[no-match] spec.ingress[0].from[0].podSelector: podSelector app=vault matches no pod of shop; nearest: shop/db has app=db
          such pods are in bank: select it by the label that every namespace has:
          - namespaceSelector:
              matchLabels: {kubernetes.io/metadata.name: bank}
            podSelector:
              matchLabels: {app: vault}
    "#]],
    );
}

#[test]
fn svc_port() {
    case(
        "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]}",
        expect![[r#"
        warning[svc-port] spec.ingress[0].ports[0].port: 80 is the port of service shop/web; its pods (shop/web) listen on 8080, and policy sees the pod's port
          write `port: 8080`
    "#]],
    );
    case("{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 8080}, {port: 80}]}]}", expect![""]);
}

#[test]
fn dns() {
    case(
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}]}]}",
        expect![[r#"
        warning[dns-pod-port] spec.egress[0].ports[0].port: 53 is the port of service kube-system/kube-dns; its pods (kube-system/coredns) listen on 5353, and policy sees the pod's port
          write `port: 5353`
        warning[dns-nodelocal] spec.egress[0].to: this cluster has NodeLocal DNSCache: pods ask 169.254.20.10 on their node, which no selector matches
          add to the list:
          - ipBlock: {cidr: 169.254.20.10/32}
    "#]],
    );
    case(
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 53}]}]}",
        expect![[r#"
            warning[proto-default] spec.egress[0].ports[0]: port 53 without protocol is 53/TCP, and DNS asks over UDP first
              list both:
              - {port: 53, protocol: UDP}
              - {port: 53, protocol: TCP}
        "#]],
    );
    case(
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}",
        expect![[r#"
            warning[dns-egress] spec.egress: no name resolves for shop/web: egress is isolated, and no rule allows port 53
              add to spec.egress:
              - to:
                - namespaceSelector:
                    matchLabels: {kubernetes.io/metadata.name: kube-system}
                  podSelector:
                    matchLabels: {k8s-app: kube-dns}
                ports:
                - {protocol: UDP, port: 5353}
                - {protocol: TCP, port: 5353}
        "#]],
    );
    case(
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: \"::/0\"}}]}]}",
        expect![""],
    );
}

#[test]
fn blocks() {
    let dns = "{ports: [{port: 53, protocol: UDP}]}";
    case(
        &format!(
            "{{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{dns}, {{to: [{{ipBlock: {{cidr: 10.96.0.2/32}}}}, {{ipBlock: {{cidr: 10.96.0.1/32}}}}, {{ipBlock: {{cidr: 10.1.0.4/32}}}}, {{ipBlock: {{cidr: 10.0.0.0/8}}}}, {{ipBlock: {{cidr: 0.0.0.0/0}}}}]}}]}}"
        ),
        expect![[r#"
        warning[clusterip-ipblock] spec.egress[1].to[0].ipBlock.cidr: 10.96.0.2/32 is the cluster IP of service shop/web: policy sees the pod behind it, so this matches nothing
          select its pods, with their target port:
          - namespaceSelector:
              matchLabels: {kubernetes.io/metadata.name: shop}
            podSelector:
              matchLabels: {app: web}
        warning[apiserver] spec.egress[1].to[1].ipBlock.cidr: 10.96.0.1/32 is the API server's service address: policy sees its endpoints, after the translation
          write the endpoints' addresses: 192.168.0.1 port 6443
        warning[pod-cidr-ipblock] spec.egress[1].to[2].ipBlock.cidr: 10.1.0.4/32 is the address that bank/vault has now: whether ipBlock matches pods depends on the CNI (Calico: yes, Cilium: no), and pods change addresses
          for pods use namespaceSelector and podSelector; keep ipBlock for what is outside
        info[pod-cidr-ipblock] spec.egress[1].to[3].ipBlock.cidr: 10.0.0.0/8 holds the pod network: whether ipBlock matches pods depends on the CNI (Calico: yes, Cilium: no), and pods change addresses
          for pods use namespaceSelector and podSelector; keep ipBlock for what is outside
        warning[family] spec.egress[1].to[4].ipBlock.cidr: 0.0.0.0/0 is IPv4 only, and pods here have IPv6 addresses too: over IPv6 nothing is allowed
          add an item `- ipBlock: {cidr: "::/0"}`, with its own except list
    "#]],
    );
    case(
        "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}",
        expect![[r#"
        warning[snat-source] spec.ingress[0].from[0].ipBlock.cidr: clients from 203.0.113.0/24 that come through service shop/web arrive with a node's address: externalTrafficPolicy is not Local
          set `externalTrafficPolicy: Local` on the service (x.yaml:16 (document 1))
    "#]],
    );
    case(
        &format!(
            "{{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{dns}, {{to: [{{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: kube-system}}}}, podSelector: {{matchLabels: {{component: kube-apiserver}}}}}}]}}]}}"
        ),
        expect![[r#"
        warning[apiserver] spec.egress[1].to[0].podSelector: component=kube-apiserver doesn't select the API server: it runs on its node's network, or outside of the cluster
          use ipBlock items with its endpoints' addresses and port: here 192.168.0.1:6443
    "#]],
    );
}

#[test]
fn ports() {
    case(
        "{podSelector: {matchLabels: {app: syslog}}, ingress: [{ports: [{port: 514}]}]}",
        expect![[r#"
        warning[proto-default] spec.ingress[0].ports[0]: port 514 without protocol is 514/TCP, and the pods listen on 514/UDP
          write `protocol: UDP`
    "#]],
    );
    case(
        "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: web}]}]}",
        expect![[r#"
        warning[named-port] spec.ingress[0].ports[0].port: no destination pod has a port web/TCP: it has http=8080/TCP
          write a name that the pods declare, or the number
    "#]],
    );
    case(
        "{podSelector: {matchLabels: {app: syslog}}, ingress: [{ports: [{port: syslog}]}]}",
        expect![[r#"
        warning[named-port] spec.ingress[0].ports[0].port: no destination pod has a port syslog/TCP: it has syslog=514/UDP
          syslog is 514/UDP there: write `protocol: UDP`
    "#]],
    );
    case(
        "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: admin}]}]}",
        expect![[r#"
        warning[named-port] spec.ingress[0].ports[0].port: only a sidecar (an init container with restartPolicy Always) declares port admin: older plugins don't look there
          write the number: 9901
    "#]],
    );
    case(
        "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 21}]}]}",
        expect![[r#"
        warning[dynamic-ports] spec.ingress[0].ports[0].port: FTP opens further connections, to passive mode's data ports (in active mode the server connects back: an ingress rule from its port 20): this rule allows only the first
          fix the data ports on the server and list them: `{port: 30000, endPort: 30100}`; or use SFTP, NFSv4
    "#]],
    );
    case(
        "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 21}, {port: 30000, endPort: 30100}]}]}",
        expect![""],
    );
}

#[test]
fn host_network() {
    case(
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: bank-team}}, podSelector: {matchLabels: {app: agent}}}]}]}",
        expect![[r#"
        warning[hostnet-peer] spec.ingress[0].from[0].podSelector: app=agent is bank/agent only: hostNetwork, so its packets carry the node's address
          use ipBlock items with the nodes' addresses (192.168.0.1/32)
    "#]],
    );
}

#[test]
fn empty_peers_and_types() {
    case(
        "{podSelector: {}, ingress: [{from: []}]}",
        expect![[r#"
        warning[empty-peers] spec.ingress[0].from: `from: []` is no restriction: the rule lets everybody in
          if nobody is meant, remove the whole rule; if everybody is meant, leave `from` out so that it shows
    "#]],
    );
    case(
        "\n  podSelector: {}\n  ingress:\n  - from:\n    ports:\n    - port: 80",
        expect![[r#"
        warning[empty-peers] spec.ingress[0].from: `from:` with nothing in it is no restriction: the rule lets everybody in
          if nobody is meant, remove the whole rule; if everybody is meant, leave `from` out so that it shows
        warning[svc-port] spec.ingress[0].ports[0].port: 80 is the port of service shop/web; its pods (shop/web) listen on 8080, and policy sees the pod's port
          write `port: 8080`
    "#]],
    );
    case("{podSelector: {}, ingress: [{}]}", expect![""]);
    case(
        "{podSelector: {}, policyTypes: [Ingress], egress: [{}]}",
        expect![[r#"
        warning[types-missing] spec.egress: 1 egress rule but policyTypes is without Egress: they do nothing, egress of these pods stays as it is (some CNIs apply them all the same)
          write `policyTypes: [Ingress, Egress]`, or remove the rules
    "#]],
    );
    case(
        "{podSelector: {}, egress: []}",
        expect![[r#"
        warning[types-missing] spec.egress: an empty egress list without policyTypes isolates nothing: egress stays open
          to deny egress write `policyTypes: [Ingress, Egress]`
    "#]],
    );
    case(
        "{podSelector: {}, egress: [{}]}",
        expect![[r#"
        warning[types-missing] spec: egress rules without policyTypes: the default isolates ingress too, and no rule allows any
          write `policyTypes: [Egress]`; or `[Ingress, Egress]` if ingress is to be denied
    "#]],
    );
}

#[test]
fn shapes() {
    case(
        "{podSelector: {}, polcyTypes: [Egress]}",
        expect![[r#"
            error[shape] spec.polcyTypes: unknown field "spec.polcyTypes": the API server drops or refuses it
              write `policyTypes`, or remove it; `kubectl explain networkpolicy.spec` shows the fields
        "#]],
    );
    case(
        "{podSelector: {}, policyTypes: [egress]}",
        expect![[r#"
            error[shape] spec.policyTypes[0]: spec.policyTypes[0]: unknown policy type "egress": expected Ingress or Egress
              correct it; the API server refuses the object as it is
        "#]],
    );
    case(
        "{podSelector: {}, egress: [{from: []}]}",
        expect![[r#"
            warning[types-missing] spec: egress rules without policyTypes: the default isolates ingress too, and no rule allows any
              write `policyTypes: [Egress]`; or `[Ingress, Egress]` if ingress is to be denied
            error[shape] spec.egress[0].from: unknown field "spec.egress[0].from": the API server drops or refuses it
              an egress rule's peers are `to:`
        "#]],
    );
    case(
        "{podSelector: {}, ingress: [{ports: [{protocol: ICMP}]}]}",
        expect![[r#"
        error[icmp] spec.ingress[0].ports[0].protocol: unknown protocol "ICMP": NetworkPolicy can't express ICMP, only TCP, UDP and SCTP
          Remove the rule; test with a TCP connection instead of ping.
    "#]],
    );
}

#[test]
fn and_or_where_only_the_other_namespace_wears_the_label() {
    case(
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: bank-team}}}, {podSelector: {matchLabels: {app: vault}}}]}]}",
        expect![[r#"
            warning[and-or] spec.ingress[0].from: lets in EVERY pod of namespaces with team=bank-team, not only app=vault: items 0 and 1 of the list are alternatives (now also bank/agent)
              to mean both together, write one item (one dash):
              - namespaceSelector:
                  matchLabels: {team: bank-team}
                podSelector:
                  matchLabels: {app: vault}
              if either is meant, write two rules, so that it shows
            warning[no-match] spec.ingress[0].from[1].podSelector: podSelector app=vault matches no pod of shop; nearest: shop/db has app=db
              such pods are in bank: select it by the label that every namespace has:
              - namespaceSelector:
                  matchLabels: {kubernetes.io/metadata.name: bank}
                podSelector:
                  matchLabels: {app: vault}
        "#]],
    );
    case(
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}, {namespaceSelector: {}}]}]}",
        expect![[r#"
            warning[and-or] spec.ingress[0].from: lets in EVERY pod of every namespace, not only app=web: items 0 and 1 of the list are alternatives (now also bank/agent, bank/vault, kube-system/coredns and 3 more)
              to mean both together, write one item (one dash):
              - namespaceSelector: {}
                podSelector:
                  matchLabels: {app: web}
              if either is meant, write two rules, so that it shows
        "#]],
    );
    // Two sources: a neighbour namespace, and pods of one's own.
    case(
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: bank-team}}}, {podSelector: {matchLabels: {app: web}}}]}]}",
        expect![""],
    );
}

#[test]
fn flannel_enforces_nothing() {
    check(
        "apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-flannel-ds, namespace: kube-flannel}
spec: {template: {spec: {hostNetwork: true}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec: {podSelector: {}}
",
        expect![[r#"
            netpol.yaml:6: warning[not-enforced]: the network plugin in this input is flannel, which applies no NetworkPolicy: all of them are without effect
                in:  NetworkPolicy x/p
                fix: run a plugin with NetworkPolicy support, for example Calico (canal), Cilium or kube-router's policy part

            1 warning (1 policy, 1 pod or workload, 1 file)
        "#]],
    );
}
