//! The YAML of the well-known articles, and questions about it.

use expect_test::expect;

use crate::run::check;

mod egress;

/// What `kubectl get` would add: namespaces with labels, and the pods.
const CLUSTER: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: qa-test, labels: {env: qa}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: staging, labels: {env: staging}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: kube-system}}
- {apiVersion: v1, kind: Pod, metadata: {name: frontend, namespace: qa-test, labels: {app: frontend}}, status: {podIP: 10.7.1.1}}
- {apiVersion: v1, kind: Pod, metadata: {name: api, namespace: qa-test, labels: {app: api}}, status: {podIP: 10.7.1.2}}
- {apiVersion: v1, kind: Pod, metadata: {name: db, namespace: qa-test, labels: {app: db}}, status: {podIP: 10.7.1.3}}
- {apiVersion: v1, kind: Pod, metadata: {name: frontend, namespace: staging, labels: {app: frontend}}, status: {podIP: 10.7.2.1}}
- {apiVersion: v1, kind: Pod, metadata: {name: api, namespace: staging, labels: {app: api}}, status: {podIP: 10.7.2.2}}
- {apiVersion: v1, kind: Pod, metadata: {name: db, namespace: staging, labels: {app: db}}, status: {podIP: 10.7.2.3}}
- {apiVersion: v1, kind: Pod, metadata: {name: coredns, namespace: kube-system, labels: {k8s-app: kube-dns}}, status: {podIP: 10.7.9.9}}
---
";

fn with(policies: &str) -> String {
    format!("{CLUSTER}{policies}")
}

const DB_NP_OR: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-np, namespace: qa-test}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - namespaceSelector:
        matchLabels: {env: qa}
    - podSelector:
        matchLabels: {app: api}
    ports:
    - {protocol: TCP, port: 3306}
";

#[test]
fn db_np_with_or() {
    check(
        &with(DB_NP_OR),
        "qa-test/frontend -> qa-test/db 3306/TCP",
        expect![[r#"
        ALLOWED  qa-test/frontend -> qa-test/db 3306/TCP: egress not isolated; ingress by qa-test/db-np ingress[0]

        egress of qa-test/frontend: allowed, no policy isolates it for egress

        ingress of qa-test/db: allowed by qa-test/db-np ingress[0]
          qa-test/db-np ingress[0]: matches
            from[0] namespaceSelector env=qa: matches
            from[1].podSelector app=api | pod has app=frontend
            ports[0] 3306/TCP: matches
        exit 0
    "#]],
    );
    check(
        &with(DB_NP_OR),
        "staging/api -> qa-test/db 3306/TCP",
        expect![[r#"
        DENIED  staging/api -> qa-test/db 3306/TCP: ingress by qa-test/db-np (nearest: ingress[0].from[0].namespaceSelector env=qa | namespace has env=staging)
        hint (peer-namespace): Nearest is qa-test/db-np: ingress[0].from[0].namespaceSelector env=qa | namespace has env=staging. To allow it, add to ingress[0].from the item {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: staging}}, podSelector: {matchLabels: {app: api}}}

        egress of staging/api: allowed, no policy isolates it for egress

        ingress of qa-test/db: denied, no rule matches
          qa-test/db-np ingress[0]: does not match
            from[0].namespaceSelector env=qa | namespace has env=staging
            from[1].namespaceSelector namespace qa-test (the policy's own: no namespaceSelector) | namespace staging
            ports[0] 3306/TCP: matches
        exit 1
    "#]],
    );
}

#[test]
fn db_np_for_every_namespace() {
    let np = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-np, namespace: staging}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - namespaceSelector: {}
      podSelector:
        matchLabels: {app: api}
    ports:
    - {protocol: TCP, port: 3306}
";
    check(
        &with(np),
        "qa-test/api -> staging/db 3306",
        expect![[r#"
        ALLOWED  qa-test/api -> staging/db 3306/TCP: egress not isolated; ingress by staging/db-np ingress[0]

        egress of qa-test/api: allowed, no policy isolates it for egress

        ingress of staging/db: allowed by staging/db-np ingress[0]
          staging/db-np ingress[0]: matches
            from[0] namespaceSelector {} and podSelector app=api: matches
            ports[0] 3306/TCP: matches
        exit 0
    "#]],
    );
    check(
        &with(np),
        "qa-test/frontend -> staging/db 3306",
        expect![[r#"
        DENIED  qa-test/frontend -> staging/db 3306/TCP: ingress by staging/db-np (nearest: ingress[0].from[0].podSelector app=api | pod has app=frontend)
        hint (peer-label): Nearest is staging/db-np: ingress[0].from[0].podSelector app=api | pod has app=frontend. To allow it, add to ingress[0].from the item {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: qa-test}}, podSelector: {matchLabels: {app: frontend}}}

        egress of qa-test/frontend: allowed, no policy isolates it for egress

        ingress of staging/db: denied, no rule matches
          staging/db-np ingress[0]: does not match
            from[0].podSelector app=api | pod has app=frontend
            ports[0] 3306/TCP: matches
        exit 1
    "#]],
    );
}

const TEST_NP: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: test-np, namespace: staging}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
";

#[test]
fn test_np() {
    check(
        &with(TEST_NP),
        "staging/api -> staging/db 3306/TCP",
        expect![[r#"
        DENIED  staging/api -> staging/db 3306/TCP: egress by staging/test-np (no egress rule); ingress by staging/test-np (no ingress rule)
        hint (lockout): staging/test-np isolates egress of staging/api and no policy has an egress rule for it. Add one: {to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 3306, protocol: TCP}]} Ingress of staging/db denies it too.

        egress of staging/api: denied, no rule matches
          staging/test-np isolates it and has no egress rules

        ingress of staging/db: denied, no rule matches
          staging/test-np isolates it and has no ingress rules
        exit 1
    "#]],
    );
    check(
        &with(TEST_NP),
        "staging/api -> kube-system/coredns 53/UDP",
        expect![[r#"
        DENIED  staging/api -> kube-system/coredns 53/UDP: egress by staging/test-np (no egress rule)
        hint (dns-egress): Egress of staging/api is isolated and no rule allows DNS. Add an egress rule: to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]

        egress of staging/api: denied, no rule matches
          staging/test-np isolates it and has no egress rules

        ingress of kube-system/coredns: allowed, no policy isolates it for ingress
        exit 1
    "#]],
    );
}

#[test]
fn frontend_api_np() {
    let np = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: frontend-api-np, namespace: staging}
spec:
  podSelector: {matchLabels: {app: api}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector: {matchLabels: {app: frontend}}
    ports:
    - {protocol: TCP, port: 80}
";
    check(
        &with(np),
        "staging/frontend -> staging/api 8080/TCP",
        expect![[r#"
            DENIED  staging/frontend -> staging/api 8080/TCP: ingress by staging/frontend-api-np (nearest: ingress[0].ports[0] 80/TCP | packet 8080/TCP)
            hint (port): staging/frontend-api-np ingress[0].ports[0] allows 80/TCP; the packet is 8080/TCP: add {port: 8080, protocol: TCP} to its ports.

            egress of staging/frontend: allowed, no policy isolates it for egress

            ingress of staging/api: denied, no rule matches
              staging/frontend-api-np ingress[0]: does not match
                from[0] podSelector app=frontend: matches
                ports[0] 80/TCP | packet 8080/TCP
            exit 1
        "#]],
    );
    check(
        &with(np),
        "qa-test/frontend -> staging/api 80/TCP",
        expect![[r#"
            DENIED  qa-test/frontend -> staging/api 80/TCP: ingress by staging/frontend-api-np (nearest: ingress[0].from[0].namespaceSelector namespace staging (the policy's own: no namespaceSelector) | namespace qa-test)
            hint (peer-namespace): staging/frontend-api-np ingress[0].from[0] has only a podSelector, which selects in namespace staging; qa-test/frontend is in another namespace: add to the same item namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: qa-test}}

            egress of qa-test/frontend: allowed, no policy isolates it for egress

            ingress of staging/api: denied, no rule matches
              staging/frontend-api-np ingress[0]: does not match
                from[0].namespaceSelector namespace staging (the policy's own: no namespaceSelector) | namespace qa-test
                ports[0] 80/TCP: matches
            exit 1
        "#]],
    );
}

#[test]
fn deny_all_without_a_namespace() {
    let np = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
";
    check(
        &with(np),
        "qa-test/api -> staging/db 3306/TCP",
        expect![[r#"
            warning: -:17 (document 2): NetworkPolicy deny-all has no namespace, so it counts for "default"
            ALLOWED  qa-test/api -> staging/db 3306/TCP: egress not isolated; ingress not isolated

            egress of qa-test/api: allowed, no policy isolates it for egress

            ingress of staging/db: allowed, no policy isolates it for ingress
            exit 0
        "#]],
    );
}

#[test]
fn two_policies_of_one_name() {
    let np = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: ingress-policy, namespace: staging}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: api}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: ingress-policy, namespace: staging}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: {}
";
    check(
        &with(np),
        "staging/api -> staging/db 3306/TCP",
        expect![[r#"
            warning: -:28 (document 3) metadata.name: NetworkPolicy staging/ingress-policy: has the name of the object at -:17 (document 2): once corrected and applied it replaces that one, of which nothing stays
            error: -:31 (document 3) spec.ingress: NetworkPolicy staging/ingress-policy: found a mapping, expected a list
            netpol-trace explain: the manifests have errors (see above), so a result could be wrong
            exit 2
        "#]],
    );
    let both_valid = np.replace("ingress: {}", "ingress: []");
    check(
        &with(&both_valid),
        "staging/api -> staging/db 3306/TCP",
        expect![[r#"
            warning: -:28 (document 3) metadata.name: NetworkPolicy staging/ingress-policy: replaces the policy of the same name at -:17 (document 2): applied in this order, its 1 ingress and 0 egress rules are gone
            DENIED  staging/api -> staging/db 3306/TCP: ingress by staging/ingress-policy (no ingress rule)
            hint (lockout): staging/ingress-policy isolates ingress of staging/db and no policy has an ingress rule for it. Add one: {from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 3306, protocol: TCP}]}

            egress of staging/api: allowed, no policy isolates it for egress

            ingress of staging/db: denied, no rule matches
              staging/ingress-policy isolates it and has no ingress rules
            exit 1
        "#]],
    );
}
