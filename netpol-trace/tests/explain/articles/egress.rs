//! The articles' examples of egress: DNS, one address outside, the internet.

use expect_test::expect;

use super::{TEST_NP, with};
use crate::run::check;

#[test]
fn allow_dns() {
    let np = format!(
        "{TEST_NP}---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: allow-dns, namespace: staging}}
spec:
  podSelector: {{}}
  policyTypes: [Egress]
  egress:
  - to:
    - namespaceSelector:
        matchLabels: {{kubernetes.io/metadata.name: kube-system}}
    ports:
    - {{protocol: UDP, port: 53}}
    - {{protocol: TCP, port: 53}}
"
    );
    check(
        &with(&np),
        "staging/api -> kube-system/coredns 53/UDP",
        expect![[r#"
        ALLOWED  staging/api -> kube-system/coredns 53/UDP: egress by staging/allow-dns egress[0]; ingress not isolated

        egress of staging/api: allowed by staging/allow-dns egress[0]
          staging/allow-dns egress[0]: matches
            to[0] namespaceSelector kubernetes.io/metadata.name=kube-system: matches
            ports[0] 53/UDP: matches
            ports[1] 53/TCP | packet 53/UDP
          staging/test-np isolates it and has no egress rules

        ingress of kube-system/coredns: allowed, no policy isolates it for ingress
        exit 0
    "#]],
    );
    check(
        &with(&np),
        "staging/api -> 8.8.8.8 53/UDP",
        expect![[r#"
            DENIED  staging/api -> 8.8.8.8 53/UDP: egress by staging/allow-dns, staging/test-np (nearest: staging/allow-dns egress[0].to[0] pods in namespaces kubernetes.io/metadata.name=kube-system | 8.8.8.8 (outside of the cluster))
            hint (ip-block): staging/allow-dns egress[0].to[0] selects pods, and 8.8.8.8 is not a pod: add to egress[0].to the item {ipBlock: {cidr: 8.8.8.8/32}}

            egress of staging/api: denied, no rule matches
              staging/allow-dns egress[0]: does not match
                to[0] pods in namespaces kubernetes.io/metadata.name=kube-system | 8.8.8.8 (outside of the cluster)
                ports[0] 53/UDP: matches
                ports[1] 53/TCP | packet 53/UDP
              staging/test-np isolates it and has no egress rules

            ingress of 8.8.8.8: allowed, policies isolate pods only
            exit 1
        "#]],
    );
}

#[test]
fn allow_dns_without_to() {
    let np = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-dns, namespace: staging}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - namespaceSelector:
      matchLabels: {kubernetes.io/metadata.name: kube-system}
    ports:
    - {protocol: UDP, port: 53}
";
    check(
        &with(np),
        "staging/api -> 8.8.8.8 53/UDP",
        expect![[r#"
        warning: -:24 (document 2) spec.egress[0].namespaceSelector: NetworkPolicy staging/allow-dns: unknown field "spec.egress[0].namespaceSelector": the API server drops or refuses it
        ALLOWED  staging/api -> 8.8.8.8 53/UDP: egress by staging/allow-dns egress[0]; ingress not isolated

        egress of staging/api: allowed by staging/allow-dns egress[0]
          staging/allow-dns egress[0]: matches
            to: anywhere
            ports[0] 53/UDP: matches

        ingress of 8.8.8.8: allowed, policies isolate pods only
        exit 0
    "#]],
    );
}

#[test]
fn one_external_address() {
    let np = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-external, namespace: staging}
spec:
  podSelector: {matchLabels: {app: frontend}}
  policyTypes: [Egress]
  egress:
  - to:
    - ipBlock: {cidr: 93.184.216.34/32}
";
    check(
        &with(np),
        "staging/frontend -> 93.184.216.34 80/TCP",
        expect![[r#"
        ALLOWED  staging/frontend -> 93.184.216.34 80/TCP: egress by staging/allow-external egress[0]; ingress not isolated

        egress of staging/frontend: allowed by staging/allow-external egress[0]
          staging/allow-external egress[0]: matches
            to[0] ipBlock 93.184.216.34/32: matches
            ports: any

        ingress of 93.184.216.34: allowed, policies isolate pods only
        exit 0
    "#]],
    );
    check(
        &with(np),
        "staging/frontend -> 93.184.216.35 80/TCP",
        expect![[r#"
        DENIED  staging/frontend -> 93.184.216.35 80/TCP: egress by staging/allow-external (nearest: egress[0].to[0].ipBlock 93.184.216.34/32 | 93.184.216.35)
        hint (ip-block): Nearest is staging/allow-external: egress[0].to[0].ipBlock 93.184.216.34/32 | 93.184.216.35. To allow it, add to egress[0].to the item {ipBlock: {cidr: 93.184.216.35/32}}

        egress of staging/frontend: denied, no rule matches
          staging/allow-external egress[0]: does not match
            to[0].ipBlock 93.184.216.34/32 | 93.184.216.35
            ports: any

        ingress of 93.184.216.35: allowed, policies isolate pods only
        exit 1
    "#]],
    );
}

#[test]
fn everything_but_the_private_ranges() {
    let np = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: internet-only, namespace: staging}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to:
    - ipBlock:
        cidr: 0.0.0.0/0
        except: [10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16]
";
    check(
        &with(np),
        "staging/api -> 172.20.1.1 443/TCP",
        expect![[r#"
            DENIED  staging/api -> 172.20.1.1 443/TCP: egress by staging/internet-only (nearest: egress[0].to[0].ipBlock 0.0.0.0/0 except 172.16.0.0/12,10.0.0.0/8,192.168.0.0/16 | 172.20.1.1)
            hint (ip-block): staging/internet-only egress[0].to[0] allows 0.0.0.0/0 except 172.16.0.0/12, and 172.20.1.1 lies in that exception: add to egress[0].to the item {ipBlock: {cidr: 172.20.1.1/32}}

            egress of staging/api: denied, no rule matches
              staging/internet-only egress[0]: does not match
                to[0].ipBlock 0.0.0.0/0 except 172.16.0.0/12,10.0.0.0/8,192.168.0.0/16 | 172.20.1.1
                ports: any

            ingress of 172.20.1.1: allowed, policies isolate pods only
            exit 1
        "#]],
    );
    check(
        &with(np),
        "staging/api -> qa-test/api 80/TCP",
        expect![[r#"
            DENIED  staging/api -> qa-test/api 80/TCP: egress by staging/internet-only (nearest: egress[0].to[0].ipBlock 0.0.0.0/0 except 10.0.0.0/8,172.16.0.0/12,192.168.0.0/16 | 10.7.1.2)
            hint (ip-block): staging/internet-only egress[0].to[0] allows 0.0.0.0/0 except 10.0.0.0/8, and 10.7.1.2 lies in that exception: add to egress[0].to the item {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: qa-test}}, podSelector: {matchLabels: {app: api}}}

            egress of staging/api: denied, no rule matches
              staging/internet-only egress[0]: does not match
                to[0].ipBlock 0.0.0.0/0 except 10.0.0.0/8,172.16.0.0/12,192.168.0.0/16 | 10.7.1.2
                ports: any

            ingress of qa-test/api: allowed, no policy isolates it for ingress
            exit 1
        "#]],
    );
    check(
        &with(np),
        "staging/api -> 2001:db8::1 443/TCP",
        expect![[r#"
            DENIED  staging/api -> 2001:db8::1 443/TCP: egress by staging/internet-only (nearest: egress[0].to[0].ipBlock 0.0.0.0/0 except 10.0.0.0/8,172.16.0.0/12,192.168.0.0/16 | 2001:db8::1)
            hint (family): staging/internet-only egress[0].to[0] allows 0.0.0.0/0, which is IPv4 only, and the peer is 2001:db8::1: add an ipBlock with cidr ::/0.

            egress of staging/api: denied, no rule matches
              staging/internet-only egress[0]: does not match
                to[0].ipBlock 0.0.0.0/0 except 10.0.0.0/8,172.16.0.0/12,192.168.0.0/16 | 2001:db8::1
                ports: any

            ingress of 2001:db8::1: allowed, policies isolate pods only
            exit 1
        "#]],
    );
}
