//! The demo's two namespaces: what happens there, explained.

use std::path::PathBuf;

use expect_test::{Expect, expect};

use crate::run::check_files;

fn check(question: &str, expected: Expect) {
    let manifests = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/demo/manifests");
    check_files(&manifests, question, expected);
}

#[test]
fn qa_frontend_to_its_db_passes_by_the_or_mistake() {
    check(
        "qa-test/deploy/frontend -> qa-test/svc/db-svc 3306",
        expect![[r#"
        ALLOWED  qa-test/frontend-7d9c8bf9d-x2lkp -> qa-test/db-0 3306/TCP (service qa-test/db-svc:3306): egress not isolated; ingress by qa-test/db-np ingress[0]
        note: qa-test/frontend-7d9c8bf9d-x2lkp is the pod of Deployment qa-test/frontend

        egress of qa-test/frontend-7d9c8bf9d-x2lkp: allowed, no policy isolates it for egress

        ingress of qa-test/db-0: allowed by qa-test/db-np ingress[0]
          qa-test/db-np ingress[0]: matches
            from[0] namespaceSelector env=qa: matches
            from[1].podSelector app=api | pod has app=frontend
            ports: any
          qa-test/default-deny-ingress isolates it and has no ingress rules
        exit 0
    "#]],
    );
}

#[test]
fn staging_api_to_its_db_is_denied_by_egress() {
    check(
        "staging/deploy/api -> staging/svc/db-svc 3306",
        expect![[r#"
        DENIED  staging/api-84d6c9b7f-h5k2n -> staging/db-0 3306/TCP (service staging/db-svc:3306): egress by staging/test-np (no egress rule)
        hint (lockout): staging/test-np isolates egress of staging/api-84d6c9b7f-h5k2n and no policy has an egress rule for it. Add one: {to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 3306, protocol: TCP}]}
        note: staging/api-84d6c9b7f-h5k2n is the pod of Deployment staging/api

        egress of staging/api-84d6c9b7f-h5k2n: denied, no rule matches
          staging/test-np isolates it and has no egress rules

        ingress of staging/db-0: allowed by staging/db-np ingress[0]
          staging/db-np ingress[0]: matches
            from[0] namespaceSelector {} and podSelector app=api: matches
            ports[0] 3306/TCP: matches
          staging/test-np isolates it and has no ingress rules
        exit 1
    "#]],
    );
}

#[test]
fn staging_api_to_dns_is_denied_by_egress() {
    check(
        "staging/deploy/api -> kube-system/svc/kube-dns 53/UDP",
        expect![[r#"
        DENIED  staging/api-84d6c9b7f-h5k2n -> kube-system/coredns-76f75df574-4kzqh 53/UDP (service kube-system/kube-dns:53): egress by staging/test-np (no egress rule)
        hint (dns-egress): Egress of staging/api-84d6c9b7f-h5k2n is isolated and no rule allows DNS. Add an egress rule: to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
        note: staging/api-84d6c9b7f-h5k2n is the pod of Deployment staging/api

        egress of staging/api-84d6c9b7f-h5k2n: denied, no rule matches
          staging/test-np isolates it and has no egress rules

        ingress of kube-system/coredns-76f75df574-4kzqh: allowed, no policy isolates it for ingress
        exit 1
    "#]],
    );
}

#[test]
fn qa_api_to_stagings_db_passes() {
    check(
        "qa-test/deploy/api -> staging/svc/db-svc 3306",
        expect![[r#"
        ALLOWED  qa-test/api-5f6b8d7c9-qw8rt -> staging/db-0 3306/TCP (service staging/db-svc:3306): egress not isolated; ingress by staging/db-np ingress[0]
        note: qa-test/api-5f6b8d7c9-qw8rt is the pod of Deployment qa-test/api

        egress of qa-test/api-5f6b8d7c9-qw8rt: allowed, no policy isolates it for egress

        ingress of staging/db-0: allowed by staging/db-np ingress[0]
          staging/db-np ingress[0]: matches
            from[0] namespaceSelector {} and podSelector app=api: matches
            ports[0] 3306/TCP: matches
          staging/test-np isolates it and has no ingress rules
        exit 0
    "#]],
    );
}

#[test]
fn qa_frontend_to_stagings_db_by_its_service_address_is_denied_by_ingress() {
    check(
        "qa-test/deploy/frontend -> 10.99.57.125 3306",
        expect![[r#"
        DENIED  qa-test/frontend-7d9c8bf9d-x2lkp -> staging/db-0 3306/TCP (service staging/db-svc:3306): ingress by staging/db-np, staging/test-np (nearest: staging/db-np ingress[0].from[0].podSelector app=api | pod has app=frontend)
        hint (peer-label): Nearest is staging/db-np: ingress[0].from[0].podSelector app=api | pod has app=frontend. To allow it, add to ingress[0].from the item {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: qa-test}}, podSelector: {matchLabels: {app: frontend}}}
        note: qa-test/frontend-7d9c8bf9d-x2lkp is the pod of Deployment qa-test/frontend

        egress of qa-test/frontend-7d9c8bf9d-x2lkp: allowed, no policy isolates it for egress

        ingress of staging/db-0: denied, no rule matches
          staging/db-np ingress[0]: does not match
            from[0].podSelector app=api | pod has app=frontend
            ports[0] 3306/TCP: matches
          staging/test-np isolates it and has no ingress rules
        exit 1
    "#]],
    );
}

#[test]
fn staging_frontend_to_the_outside_is_denied_by_egress() {
    check(
        "staging/deploy/frontend -> 93.184.216.34 80",
        expect![[r#"
        DENIED  staging/frontend-6c8f7d5b4-m9ztv -> 93.184.216.34 80/TCP: egress by staging/test-np (no egress rule)
        hint (lockout): staging/test-np isolates egress of staging/frontend-6c8f7d5b4-m9ztv and no policy has an egress rule for it. Add one: {to: [{ipBlock: {cidr: 93.184.216.34/32}}], ports: [{port: 80, protocol: TCP}]}
        note: staging/frontend-6c8f7d5b4-m9ztv is the pod of Deployment staging/frontend

        egress of staging/frontend-6c8f7d5b4-m9ztv: denied, no rule matches
          staging/test-np isolates it and has no egress rules

        ingress of 93.184.216.34: allowed, policies isolate pods only
        exit 1
    "#]],
    );
}

#[test]
fn a_service_without_endpoints() {
    check(
        "qa-test/deploy/frontend -> qa-test/svc/metrics-svc",
        expect![[r#"
            UNDETERMINED  qa-test/frontend-7d9c8bf9d-x2lkp -> qa-test/svc/metrics-svc: service qa-test/metrics-svc has no pod behind port 9090/TCP, so there is no destination to evaluate
            exit 3
        "#]],
    );
}

#[test]
fn ping() {
    check(
        "qa-test/deploy/frontend -> staging/db-0 icmp",
        expect![[r#"
            UNDETERMINED  qa-test/frontend-7d9c8bf9d-x2lkp -> staging/db-0 ICMP: ingress: NetworkPolicy v1 can't name ICMP; what isolation does to it depends on the CNI
            hint (icmp): NetworkPolicy can't allow ICMP: its rules name TCP, UDP and SCTP only. Ingress of staging/db-0 is isolated (staging/db-np), and this CNI decides whether ICMP passes: test with a TCP connection instead of ping.
            note: qa-test/frontend-7d9c8bf9d-x2lkp is the pod of Deployment qa-test/frontend

            egress of qa-test/frontend-7d9c8bf9d-x2lkp: allowed, no policy isolates it for egress

            ingress of staging/db-0: undetermined: NetworkPolicy v1 can't name ICMP; what isolation does to it depends on the CNI
              staging/db-np ingress[0]: does not match
                from[0].podSelector app=api | pod has app=frontend
                ports[0] 3306/TCP | packet ICMP
              staging/test-np isolates it and has no ingress rules
            exit 3
        "#]],
    );
}
