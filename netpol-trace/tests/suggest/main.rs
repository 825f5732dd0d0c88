//! `netpol-trace suggest` and `replay` as a person runs them, on the demo's two namespaces.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use expect_test::{Expect, expect};

fn demo() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/demo/manifests")
}

/// Runs the program with the demo's manifests; standard error, standard output and the exit code.
fn run(subcommand: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_netpol-trace"))
        .arg(subcommand)
        .args(arguments)
        .arg("--manifests")
        .arg(demo())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    format!("{}{}exit {}\n", text(output.stderr), text(output.stdout), output.status.code().unwrap())
}

fn check(subcommand: &str, arguments: &[&str], input: &str, expected: Expect) {
    expected.assert_eq(&run(subcommand, arguments, input));
}

/// Two recorded drops: qa-test's frontend at staging's database, and staging's api at the cluster's DNS.
fn records() -> String {
    let pod = |namespace: &str, name: &str, app: &str| {
        format!(r#"{{"namespace":"{namespace}","name":"{name}","labels":{{"app":"{app}"}}}}"#)
    };
    let drop = |n: u32, source: String, destination: String, transport: &str, port: u16| {
        format!(
            r#"{{"schema":"netpol-trace/v1","id":"r/{n}","run":"r","seq":{n},"time":"2026-11-21T04:30:11Z","kind":"drop","count":3,"bytes":180,"cause":"policy","action":"drop","source":{{"kind":"pod","ip":"10.244.1.9","port":40000,"pod":{source}}},"destination":{{"kind":"pod","ip":"10.244.1.8","port":{port},"pod":{destination}}},"network":{{"transport":"{transport}","family":"ipv4","length":60}},"kernel":{{"mechanism":"nftables"}},"enrichment":"complete"}}"#
        )
    };
    let frontend = pod("qa-test", "frontend-7d9c8bf9d-x2lkp", "frontend");
    let first = drop(1, frontend.clone(), pod("staging", "db-0", "db"), "tcp", 3306);
    let again = drop(2, frontend, pod("staging", "db-0", "db"), "tcp", 3306);
    let other = drop(3, pod("staging", "api-84d6c9b7f-h5k2n", "api"), pod("staging", "db-0", "db"), "tcp", 3306);
    [first, again, "not a record".to_owned(), other].join("\n")
}

#[test]
fn a_rule_goes_into_the_policy_for_these_pods() {
    let question = ["--from", "qa-test/deploy/frontend", "--to", "staging/svc/db-svc"];
    check(
        "suggest",
        &question,
        "",
        expect![[r#"
            # 1 policy to apply. Read what each allows, then kubectl apply -f.
            ---
            # staging/db-np as it is, with added rules.
            # ingress[1] allows qa-test/frontend-7d9c8bf9d-x2lkp -> staging/db-0 3306/TCP
            #   and nothing else between the pods in the input
            apiVersion: networking.k8s.io/v1
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
                - from:
                    - namespaceSelector:
                        matchLabels:
                          kubernetes.io/metadata.name: qa-test
                      podSelector:
                        matchLabels:
                          app: frontend
                  ports:
                    - protocol: TCP
                      port: 3306
            exit 0
        "#]],
    );
}

#[test]
fn a_policy_of_all_pods_gets_no_exceptions() {
    let question = ["--from", "staging/deploy/frontend", "--to", "93.184.216.34", "--port", "80"];
    check(
        "suggest",
        &question,
        "",
        expect![[r#"
            # 1 policy to apply. Read what each allows, then kubectl apply -f.
            ---
            # staging/frontend-to-93-184-216-34 is new; its pods are isolated already.
            # egress[0] allows staging/frontend-6c8f7d5b4-m9ztv -> 93.184.216.34 80/TCP
            #   and nothing else between the pods in the input
            apiVersion: networking.k8s.io/v1
            kind: NetworkPolicy
            metadata:
              name: frontend-to-93-184-216-34
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
            exit 0
        "#]],
    );
}

#[test]
fn nothing_to_change() {
    let question = ["--from", "qa-test/deploy/frontend", "--to", "qa-test/svc/db-svc"];
    check(
        "suggest",
        &question,
        "",
        expect![[r#"
            # Nothing to change: the policies allow it already.
            # allowed already, or by the rules below: qa-test/frontend-7d9c8bf9d-x2lkp -> qa-test/db-0 3306/TCP
            exit 0
        "#]],
    );
}

#[test]
fn icmp_can_not_be_suggested() {
    let question = ["--from", "staging/deploy/frontend", "--to", "staging/db-0", "--port", "icmp"];
    check(
        "suggest",
        &question,
        "",
        expect![[r#"
        # NOT solved: staging/frontend-6c8f7d5b4-m9ztv -> staging/db-0 ICMP: NetworkPolicy v1 can't name ICMP; what isolation does to it depends on the CNI
        exit 1
    "#]],
    );
}

#[test]
fn recorded_drops_become_policies() {
    check(
        "suggest",
        &["-"],
        &records(),
        expect![[r#"
            warning: 1 line is not a netpol-trace record and was skipped; it is standard input:3: text, not a JSON object
            # 2 policies to apply. Read what each allows, then kubectl apply -f.
            ---
            # staging/api-to-db is new; its pods are isolated already.
            # egress[0] allows staging/api-84d6c9b7f-h5k2n -> staging/db-0 3306/TCP
            #   and nothing else between the pods in the input
            apiVersion: networking.k8s.io/v1
            kind: NetworkPolicy
            metadata:
              name: api-to-db
              namespace: staging
            spec:
              podSelector:
                matchLabels:
                  app: api
              policyTypes:
                - Egress
              egress:
                - to:
                    - podSelector:
                        matchLabels:
                          app: db
                  ports:
                    - protocol: TCP
                      port: 3306
            ---
            # staging/db-np as it is, with added rules.
            # ingress[1] allows qa-test/frontend-7d9c8bf9d-x2lkp -> staging/db-0 3306/TCP
            #   and nothing else between the pods in the input
            apiVersion: networking.k8s.io/v1
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
                - from:
                    - namespaceSelector:
                        matchLabels:
                          kubernetes.io/metadata.name: qa-test
                      podSelector:
                        matchLabels:
                          app: frontend
                  ports:
                    - protocol: TCP
                      port: 3306
            exit 0
        "#]],
    );
}

#[test]
fn replay_lists_what_still_drops_and_what_is_not_known() {
    check(
        "replay",
        &["-"],
        &records(),
        expect![[r#"
            warning: 1 line is not a netpol-trace record and was skipped; it is standard input:3: text, not a JSON object
            0 of 2 recorded connections would pass, 2 still drop, 0 are undetermined.
              still drops   qa-test/frontend-7d9c8bf9d-x2lkp -> staging/db-0 3306/TCP (6 packets recorded)
                            ingress by staging/db-np, staging/test-np (nearest: staging/db-np ingress[0].from[0].podSelector app=api | pod has app=frontend)
              still drops   staging/api-84d6c9b7f-h5k2n -> staging/db-0 3306/TCP (3 packets recorded)
                            egress by staging/test-np (no egress rule)
            Connections that passed are not in the records, so this does not show whether the edited policies break one of them.
            exit 1
        "#]],
    );
}

/// What suggest prints, added to the cluster, makes the recorded drops pass.
#[test]
fn a_suggestion_applied_makes_the_replay_pass() {
    let printed = run("suggest", &["-"], &records());
    let (_, rest) = printed.split_once("# ").unwrap();
    let yaml = rest.trim_end_matches("exit 0\n");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("suggested.yaml");
    std::fs::write(&file, format!("# {yaml}")).unwrap();
    for entry in std::fs::read_dir(demo()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let output = Command::new(env!("CARGO_BIN_EXE_netpol-trace"))
        .args(["replay", "-"])
        .arg("--manifests")
        .arg(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .and_then(|mut child| {
            child.stdin.take().unwrap().write_all(records().as_bytes())?;
            child.wait_with_output()
        })
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("2 of 2 recorded connections would pass"), "{text}");
    assert_eq!(output.status.code(), Some(0));
}
