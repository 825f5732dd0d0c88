//! The articles' examples of egress: DNS, one address outside, the internet.

use crate::policy::lint::tests::*;

#[test]
fn allow_dns() {
    check(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: allow-dns
  namespace: staging
spec:
  podSelector: {}
  policyTypes:
  - Egress
  egress:
  - to:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: kube-system
    ports:
    - protocol: UDP
      port: 53
    - protocol: TCP
      port: 53
",
        expect![[r#"
            nothing found (1 policy, 0 pods and workloads, 1 file); without pods or workloads in the input, selectors were not checked
        "#]],
    );
}

#[test]
fn allow_dns_without_to() {
    check(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: allow-dns
  namespace: staging
spec:
  podSelector: {}
  policyTypes:
  - Egress
  egress:
  - namespaceSelector:
      matchLabels:
        kubernetes.io/metadata.name: kube-system
    ports:
    - protocol: UDP
      port: 53
    - protocol: TCP
      port: 53
",
        expect![[r#"
            netpol.yaml:11: error[missing-to]: `namespaceSelector` is not in a `to:` list: where that unknown field is dropped, this egress rule has no peers and opens its ports to everyone (kubectl refuses it)
                in:  NetworkPolicy staging/allow-dns, spec.egress[0].namespaceSelector
                fix: put it into a list:
                     - to:
                       - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
                       ports: …

            1 error (1 policy, 0 pods and workloads, 1 file); without pods or workloads in the input, selectors were not checked
        "#]],
    );
}

#[test]
fn one_external_address() {
    check(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: allow-external
  namespace: staging
spec:
  podSelector:
    matchLabels:
      app: frontend
  policyTypes:
  - Egress
  egress:
  - to:
    - ipBlock:
        cidr: 93.184.216.34/32
    ports:
    - protocol: TCP
      port: 80
",
        expect![[r#"
            netpol.yaml:12: warning[dns-egress]: no name resolves for pods with app=frontend: egress is isolated, and no rule allows port 53
                in:  NetworkPolicy staging/allow-external, spec.egress
                fix: add to spec.egress:
                     - to:
                       - namespaceSelector:
                           matchLabels: {kubernetes.io/metadata.name: kube-system}
                         podSelector:
                           matchLabels: {k8s-app: kube-dns}
                       ports:
                       - {protocol: UDP, port: 53}
                       - {protocol: TCP, port: 53}

            1 warning (1 policy, 0 pods and workloads, 1 file); without pods or workloads in the input, selectors were not checked
        "#]],
    );
}

#[test]
fn the_internet_except_private_ranges() {
    check(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: internet-only
  namespace: staging
spec:
  podSelector:
    matchLabels:
      app: frontend
  policyTypes:
  - Egress
  egress:
  - to:
    - ipBlock:
        cidr: 0.0.0.0/0
        except:
        - 10.0.0.0/8
        - 172.16.0.0/12
        - 192.168.0.0/16
",
        expect![[r#"
            netpol.yaml:12: warning[dns-egress]: no name resolves for pods with app=frontend: the cluster's DNS is in the private ranges that `except` lists, and no rule allows it
                in:  NetworkPolicy staging/internet-only, spec.egress
                fix: add to spec.egress:
                     - to:
                       - namespaceSelector:
                           matchLabels: {kubernetes.io/metadata.name: kube-system}
                         podSelector:
                           matchLabels: {k8s-app: kube-dns}
                       ports:
                       - {protocol: UDP, port: 53}
                       - {protocol: TCP, port: 53}

            1 warning (1 policy, 0 pods and workloads, 1 file); without pods or workloads in the input, selectors were not checked
        "#]],
    );
}
