//! The examples of the articles that people learn NetworkPolicy from.

use crate::policy::lint::tests::*;

mod egress;

#[test]
fn db_np_with_two_items() {
    check(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: db-np
  namespace: qa-test
spec:
  podSelector:
    matchLabels:
      app: db
  policyTypes:
  - Ingress
  ingress:
  - from:
    - namespaceSelector:
        matchLabels:
          env: qa
    - podSelector:
        matchLabels:
          app: api
    ports:
    - protocol: TCP
      port: 3306
",
        expect![[r#"
            netpol.yaml:13: warning[and-or]: lets in EVERY pod of namespaces with env=qa, not only app=api: items 0 and 1 of the list are alternatives
                in:  NetworkPolicy qa-test/db-np, spec.ingress[0].from
                fix: if a pod must match both, write one item (one dash):
                     - namespaceSelector:
                         matchLabels: {env: qa}
                       podSelector:
                         matchLabels: {app: api}
                     if either is enough, write two rules, which shows that it is meant

            1 warning (1 policy, 0 pods and workloads, 1 file); without pods or workloads in the input, selectors were not checked
        "#]],
    );
}

/// The same among the objects that it is about.
#[test]
fn db_np_with_two_items_in_its_cluster() {
    check(
        "apiVersion: v1
kind: Namespace
metadata: {name: qa-test, labels: {env: qa}}
---
apiVersion: v1
kind: Pod
metadata: {name: frontend, namespace: qa-test, labels: {app: frontend}}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: qa-test, labels: {app: api}}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: qa-test, labels: {app: db}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-np, namespace: qa-test}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {env: qa}}
    - podSelector: {matchLabels: {app: api}}
    ports:
    - {protocol: TCP, port: 3306}
",
        expect![[r#"
            netpol.yaml:5: info[open-pods]: no policy selects Pod frontend, Pod api: open to everybody
                in:  Namespace qa-test
                fix: add a default deny to namespace qa-test, and policies that allow what is needed

            netpol.yaml:24: warning[and-or]: lets in EVERY pod of namespaces with env=qa, not only app=api: items 0 and 1 of the list are alternatives (now also qa-test/db, qa-test/frontend)
                in:  NetworkPolicy qa-test/db-np, spec.ingress[0].from
                fix: if a pod must match both, write one item (one dash):
                     - namespaceSelector:
                         matchLabels: {env: qa}
                       podSelector:
                         matchLabels: {app: api}
                     if either is enough, write two rules, which shows that it is meant

            1 warning, 1 info (1 policy, 3 pods and workloads, 1 file)
        "#]],
    );
}

#[test]
fn db_np_from_every_namespace() {
    check(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: db-np
  namespace: staging
spec:
  podSelector:
    matchLabels:
      app: db
  policyTypes:
  - Ingress
  ingress:
  - from:
    - namespaceSelector: {}
      podSelector:
        matchLabels:
          app: api
    ports:
    - protocol: TCP
      port: 3306
",
        expect![[r#"
            netpol.yaml:14: warning[wide-namespace]: a pod with app=api gets in from EVERY namespace: whoever may create a pod anywhere can give it that label
                in:  NetworkPolicy staging/db-np, spec.ingress[0].from[0]
                fix: name the namespaces that are meant, for example only this one:
                     - namespaceSelector:
                         matchLabels: {kubernetes.io/metadata.name: staging}
                       podSelector:
                         matchLabels: {app: api}

            1 warning (1 policy, 0 pods and workloads, 1 file); without pods or workloads in the input, selectors were not checked
        "#]],
    );
}

#[test]
fn test_np_denies_all() {
    check(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: test-np
  namespace: staging
spec:
  podSelector: {}
  policyTypes:
  - Ingress
  - Egress
",
        expect![[r#"
            netpol.yaml:6: warning[lockout]: denies every pod of namespace staging all ingress and egress, DNS included, and no policy here allows them anything
                in:  NetworkPolicy staging/test-np, spec
                fix: add policies that allow what is needed; DNS first:
                     apiVersion: networking.k8s.io/v1
                     kind: NetworkPolicy
                     metadata:
                       name: allow-dns
                       namespace: staging
                     spec:
                       podSelector: {}
                       policyTypes: [Egress]
                       egress:
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

/// With other policies beside it, as in the demo: only DNS is forgotten.
#[test]
fn test_np_beside_allows() {
    check(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: test-np
  namespace: staging
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: frontend-api-np
  namespace: staging
spec:
  podSelector: {matchLabels: {app: api}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector: {matchLabels: {app: frontend}}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: staging, labels: {app: api}}
---
apiVersion: v1
kind: Pod
metadata: {name: frontend, namespace: staging, labels: {app: frontend}}
",
        expect![[r#"
            netpol.yaml:6: warning[dns-egress]: no name resolves for staging/api, staging/frontend: egress is denied, and no policy allows port 53
                in:  NetworkPolicy staging/test-np, spec.egress
                fix: add to spec.egress:
                     - to:
                       - namespaceSelector:
                           matchLabels: {kubernetes.io/metadata.name: kube-system}
                         podSelector:
                           matchLabels: {k8s-app: kube-dns}
                       ports:
                       - {protocol: UDP, port: 53}
                       - {protocol: TCP, port: 53}

            1 warning (2 policies, 2 pods and workloads, 1 file)
        "#]],
    );
}

#[test]
fn frontend_api_np() {
    check(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: frontend-api-np
  namespace: qa-test
spec:
  podSelector:
    matchLabels:
      app: api
  policyTypes:
  - Ingress
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: frontend
",
        expect![[r#"
            nothing found (1 policy, 0 pods and workloads, 1 file); without pods or workloads in the input, selectors were not checked
        "#]],
    );
}

#[test]
fn deny_all_without_a_namespace() {
    check(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: deny-all
spec:
  podSelector: {}
  policyTypes:
  - Ingress
  - Egress
",
        expect![[r#"
            netpol.yaml:3: warning[no-namespace]: no metadata.namespace: this default deny isolates one namespace, kubectl's current one (taken here as `default`), not the cluster
                in:  NetworkPolicy default/deny-all, metadata
                fix: write metadata.namespace, one such policy for each namespace; for all namespaces at once use a cluster-wide policy API (ClusterNetworkPolicy, GlobalNetworkPolicy, CiliumClusterwideNetworkPolicy)

            netpol.yaml:5: warning[lockout]: denies every pod of namespace default all ingress and egress, DNS included, and no policy here allows them anything
                in:  NetworkPolicy default/deny-all, spec
                fix: add policies that allow what is needed; DNS first:
                     apiVersion: networking.k8s.io/v1
                     kind: NetworkPolicy
                     metadata:
                       name: allow-dns
                       namespace: default
                     spec:
                       podSelector: {}
                       policyTypes: [Egress]
                       egress:
                       - to:
                         - namespaceSelector:
                             matchLabels: {kubernetes.io/metadata.name: kube-system}
                           podSelector:
                             matchLabels: {k8s-app: kube-dns}
                         ports:
                         - {protocol: UDP, port: 53}
                         - {protocol: TCP, port: 53}

            2 warnings (1 policy, 0 pods and workloads, 1 file); without pods or workloads in the input, selectors were not checked
        "#]],
    );
}

#[test]
fn two_policies_of_one_name() {
    check(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: ingress-policy
  namespace: staging
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: frontend
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: ingress-policy
  namespace: staging
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress: {}
",
        expect![[r#"
            netpol.yaml:18: warning[duplicate-name]: has the name of the object at netpol.yaml:1 (document 1): once corrected and applied it replaces that one, of which nothing stays
                in:  NetworkPolicy staging/ingress-policy, metadata.name
                fix: rename one of the two: rules of policies with different names add up, one name holds one policy

            netpol.yaml:23: error[shape]: spec.ingress: found a mapping, expected a list
                in:  NetworkPolicy staging/ingress-policy, spec.ingress
                fix: it is a list of rules: `ingress: []` allows nothing, `ingress: [{}]` allows everything, one rule starts with `- `

            1 error, 1 warning (1 policy, 0 pods and workloads, 1 file); without pods or workloads in the input, selectors were not checked
        "#]],
    );
}

/// Kubernetes' own documentation: three sources in one list, all meant.
#[test]
fn the_example_of_the_documentation() {
    check(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: test-network-policy
  namespace: default
spec:
  podSelector:
    matchLabels:
      role: db
  policyTypes:
  - Ingress
  - Egress
  ingress:
  - from:
    - ipBlock:
        cidr: 172.17.0.0/16
        except:
        - 172.17.1.0/24
    - namespaceSelector:
        matchLabels:
          project: myproject
    - podSelector:
        matchLabels:
          role: frontend
    ports:
    - protocol: TCP
      port: 6379
  egress:
  - to:
    - ipBlock:
        cidr: 10.0.0.0/24
    ports:
    - protocol: TCP
      port: 5978
",
        expect![[r#"
            netpol.yaml:14: info[and-or]: lets in EVERY pod of namespaces with project=myproject, not only role=frontend: items 1 and 2 of the list are alternatives
                in:  NetworkPolicy default/test-network-policy, spec.ingress[0].from
                fix: if a pod must match both, write one item (one dash):
                     - namespaceSelector:
                         matchLabels: {project: myproject}
                       podSelector:
                         matchLabels: {role: frontend}
                     if either is enough, write two rules, which shows that it is meant

            netpol.yaml:28: warning[dns-egress]: no name resolves for pods with role=db: egress is isolated, and no rule allows port 53
                in:  NetworkPolicy default/test-network-policy, spec.egress
                fix: add to spec.egress:
                     - to:
                       - namespaceSelector:
                           matchLabels: {kubernetes.io/metadata.name: kube-system}
                         podSelector:
                           matchLabels: {k8s-app: kube-dns}
                       ports:
                       - {protocol: UDP, port: 53}
                       - {protocol: TCP, port: 53}

            1 warning, 1 info (1 policy, 0 pods and workloads, 1 file); without pods or workloads in the input, selectors were not checked
        "#]],
    );
}
