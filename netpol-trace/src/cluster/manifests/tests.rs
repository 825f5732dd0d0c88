use std::fmt::Write as _;

use expect_test::{Expect, expect};

use super::*;

/// What a text loads as: its objects with their locations, then its problems, then what was skipped.
fn check(text: &str, expected: Expect) {
    check_bytes(text.as_bytes(), expected);
}

fn check_bytes(bytes: &[u8], expected: Expect) {
    let loaded = load_bytes("x.yaml", bytes);
    let mut out = String::new();
    for located in &loaded.objects {
        let (kind, namespace, name) = located.object.identity();
        let default = if located.namespace_defaulted && !namespace.is_empty() { " (namespace defaulted)" } else { "" };
        writeln!(out, "{kind} {namespace}/{name} at {}{default}", located.place).unwrap();
    }
    for problem in &loaded.problems {
        writeln!(out, "{}: {problem}", problem.severity).unwrap();
    }
    for (kind, count) in &loaded.skipped {
        writeln!(out, "skipped {count} {kind}").unwrap();
    }
    expected.assert_eq(&out);
}

const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}\n";

#[test]
fn objects_of_several_documents_and_lists() {
    check(
        "# comment\n---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n---\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: x}\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}}\n---\napiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: z, namespace: b}\n",
        expect![[r#"
            Namespace /a at x.yaml:3 (document 1)
            Pod default/x at x.yaml:12 (document 2) (namespace defaulted)
            Pod b/z at x.yaml:20 (document 3)
            skipped 1 ConfigMap
        "#]],
    );
}

#[test]
fn an_object_where_a_list_belongs() {
    check(
        &format!("{POLICY}spec:\n  podSelector: {{}}\n  ingress: {{}}\n"),
        expect![[r#"
        error: x.yaml:6 spec.ingress: NetworkPolicy a/p: found a mapping, expected a list
    "#]],
    );
}

#[test]
fn a_rule_without_to() {
    check(
        &format!(
            "{POLICY}spec:\n  podSelector: {{}}\n  policyTypes: [Egress]\n  egress:\n  - namespaceSelector:\n      matchLabels: {{kubernetes.io/metadata.name: kube-system}}\n    ports:\n    - {{protocol: UDP, port: 53}}\n"
        ),
        expect![[r#"
            NetworkPolicy a/p at x.yaml:1
            warning: x.yaml:8 spec.egress[0].namespaceSelector: NetworkPolicy a/p: unknown field "spec.egress[0].namespaceSelector": the API server drops or refuses it
        "#]],
    );
}

#[test]
fn label_values_that_yaml_reads_as_something_else() {
    check(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n  labels:\n    env: yes\n",
        expect![[r#"
            error: x.yaml:6 metadata.labels.env: Pod x: unquoted yes is the boolean true in YAML, and this must be text: write "yes"
        "#]],
    );
    check(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n  labels:\n    version: 1.0\n",
        expect![[r#"
            error: x.yaml:6 metadata.labels.version: Pod x: unquoted 1.0 is a number in YAML, and this must be text: write "1.0"
        "#]],
    );
    check(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n  labels: {version: \"1.0\", env: 'yes', on: !!str yes}\n",
        expect![[r#"
        Pod default/x at x.yaml:1 (namespace defaulted)
    "#]],
    );
}

#[test]
fn broken_documents_cost_only_themselves() {
    check(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\nkind: Pod\n  bad: [\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n",
        expect![[r#"
            Namespace /a at x.yaml:1 (document 1)
            Namespace /b at x.yaml:8 (document 3)
            error: x.yaml:6 (document 2): not YAML: mapping values are not allowed in this context
        "#]],
    );
    check_bytes(
        b"apiVersion: v1\nkind: Pod\nmetadata: {name: \xff}\n",
        expect![[r#"
        error: x.yaml:3: not UTF-8 text; save the file as UTF-8
    "#]],
    );
    check(
        "{\"apiVersion\": \"v1\",\n\"kind\": \"Pod\",\n",
        expect![[r#"
        error: x.yaml:3: not JSON: EOF while parsing a value
    "#]],
    );
    check(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: {{ .Values.name }}}\n",
        expect![[r#"
        error: x.yaml:3: not YAML: a list or mapping as a key; `{{` looks like a Helm template: render it first (helm template)
    "#]],
    );
    check(
        "a: 1\nb: 2\na: 3\n",
        expect![[r#"
        error: x.yaml:3: not YAML: duplicate key "a"
    "#]],
    );
}

#[test]
fn json_has_lines_too() {
    check(
        "{\"apiVersion\": \"networking.k8s.io/v1\", \"kind\": \"NetworkPolicy\",\n\t\"metadata\": {\"name\": \"p\"},\n\t\"spec\": {\n\t\t\"ingress\": [\n{\"from\": [{}],\n\"ports\": [{\"port\": 80,\n\"endPort\": 79}]}]}}\n",
        expect![[r#"
            error: x.yaml:5 spec.ingress[0].from[0]: NetworkPolicy p: an empty peer; for every pod of every namespace write `namespaceSelector: {}`, for every peer leave the list out
            error: x.yaml:7 spec.ingress[0].ports[0].endPort: NetworkPolicy p: endPort 79 is below port 80
        "#]],
    );
}

#[test]
fn kinds_that_are_not_what_they_seem() {
    check(
        "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: p}\n",
        expect![[r#"
        error: x.yaml:1 apiVersion: NetworkPolicy p: apiVersion "extensions/v1beta1" has no kind "NetworkPolicy"; write `apiVersion: networking.k8s.io/v1` and `kind: NetworkPolicy`
    "#]],
    );
    check(
        "apiVersion: networking.k8s.io/v1\nkind: Networkpolicy\nmetadata: {name: p}\n",
        expect![[r#"
        error: x.yaml:2 kind: Networkpolicy p: apiVersion "networking.k8s.io/v1" has no kind "Networkpolicy"; write `apiVersion: networking.k8s.io/v1` and `kind: NetworkPolicy`
    "#]],
    );
    check(
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: p}\n",
        expect![[r#"
        OtherPolicy /projectcalico.org/GlobalNetworkPolicy/p at x.yaml:1
    "#]],
    );
    check(
        "replicas: 3\n",
        expect![[r#"
        error: x.yaml:1: no apiVersion and no kind: not a Kubernetes object
    "#]],
    );
}

#[test]
fn the_last_of_two_objects_with_one_name_wins() {
    check(
        &format!(
            "{POLICY}spec: {{podSelector: {{}}}}\n---\n{POLICY}spec: {{podSelector: {{matchLabels: {{a: b}}}}}}\n"
        ),
        expect![[r#"
            NetworkPolicy a/p at x.yaml:6 (document 2)
            warning: x.yaml:8 (document 2) metadata.name: NetworkPolicy a/p: replaces the policy of the same name at x.yaml:1 (document 1): applied in this order, its 0 ingress and 0 egress rules are gone
        "#]],
    );
}

#[test]
fn what_the_api_server_would_refuse() {
    check(
        &format!(
            "{POLICY}spec:\n  podSelector: {{}}\n  policyTypes: [ingress]\n  ingress:\n  - from:\n    - {{}}\n    - ipBlock: {{cidr: 10.0.0.1}}\n      podSelector: {{}}\n    - ipBlock: {{cidr: 10.0.0.1}}\n    - ipBlock:\n        cidr: 10.0.0.0/8\n        except:\n        - 10.0.0.0/8\n        - fd00::/8\n    - podSelector:\n        matchExpressions:\n        - {{key: a, operator: Is, values: [b]}}\n        - {{key: a, operator: In}}\n        - {{key: a, operator: Exists, values: [b]}}\n    ports:\n    - port: 0\n    - port: \"80\"\n    - protocol: ICMP\n    - protocol: tcp\n    - endPort: 5\n    - {{port: http, endPort: 5}}\n    - {{port: 9, endPort: 5}}\n"
        ),
        expect![[r#"
            error: x.yaml:6 spec.policyTypes[0]: NetworkPolicy a/p: unknown policy type "ingress": expected Ingress or Egress
            error: x.yaml:9 spec.ingress[0].from[0]: NetworkPolicy a/p: an empty peer; for every pod of every namespace write `namespaceSelector: {}`, for every peer leave the list out
            error: x.yaml:10 spec.ingress[0].from[1]: NetworkPolicy a/p: ipBlock together with a selector; make them two items of the list
            error: x.yaml:12 spec.ingress[0].from[2].ipBlock.cidr: NetworkPolicy a/p: invalid CIDR "10.0.0.1"; for this one address write 10.0.0.1/32
            error: x.yaml:16 spec.ingress[0].from[3].ipBlock.except[0]: NetworkPolicy a/p: 10.0.0.0/8 is not inside cidr 10.0.0.0/8: each except must be a smaller range in it
            error: x.yaml:17 spec.ingress[0].from[3].ipBlock.except[1]: NetworkPolicy a/p: fd00::/8 is not inside cidr 10.0.0.0/8: each except must be a smaller range in it
            error: x.yaml:20 spec.ingress[0].from[4].podSelector.matchExpressions[0].operator: NetworkPolicy a/p: unknown operator "Is": expected In, NotIn, Exists or DoesNotExist
            error: x.yaml:21 spec.ingress[0].from[4].podSelector.matchExpressions[1].values: NetworkPolicy a/p: In needs at least one value
            error: x.yaml:22 spec.ingress[0].from[4].podSelector.matchExpressions[2].values: NetworkPolicy a/p: Exists takes no values
            error: x.yaml:24 spec.ingress[0].ports[0].port: NetworkPolicy a/p: invalid port 0: expected 1 to 65535
            error: x.yaml:25 spec.ingress[0].ports[1].port: NetworkPolicy a/p: invalid port name "80": expected at most 15 of a-z 0-9 -, with a letter; for the port number write 80 without quotes
            error: x.yaml:26 spec.ingress[0].ports[2].protocol: NetworkPolicy a/p: unknown protocol "ICMP": NetworkPolicy can't express ICMP, only TCP, UDP and SCTP
            error: x.yaml:27 spec.ingress[0].ports[3].protocol: NetworkPolicy a/p: unknown protocol "tcp": write TCP
            error: x.yaml:28 spec.ingress[0].ports[4].endPort: NetworkPolicy a/p: endPort without port
            error: x.yaml:29 spec.ingress[0].ports[5].endPort: NetworkPolicy a/p: endPort with the named port "http": a range needs a number as port
            error: x.yaml:30 spec.ingress[0].ports[6].endPort: NetworkPolicy a/p: endPort 5 is below port 9
        "#]],
    );
}

#[test]
fn aliases_and_depth_are_bounded() {
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..12 {
        let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
        writeln!(laughs, "a{i}: &a{i} [{aliases}]").unwrap();
    }
    check(
        &laughs,
        expect![[r#"
        error: x.yaml:5: not YAML: aliases copy more than 200000 values
    "#]],
    );
    check(
        &"[".repeat(100_000),
        expect![[r#"
        error: x.yaml:1: not JSON: recursion limit exceeded
    "#]],
    );
    check(
        &"- ".repeat(100_000),
        expect![[r#"
        error: x.yaml:1: not YAML: nested deeper than 128 levels
    "#]],
    );
    check(
        "a: &a\n  b: *a\n",
        expect![[r#"
        error: x.yaml:2: not YAML: an alias inside the value that it names
    "#]],
    );
}

/// The API server's answers to ports, as Kubernetes' e2e tests have them.
#[test]
fn ports_are_refused_as_kubernetes_refuses_them() {
    let text = include_str!("../../../../tests/golden/kubernetes-e2e-netpol.json");
    let vectors: serde_json::Value = serde_json::from_str(text).unwrap();
    let vectors = vectors["validation"].as_array().unwrap();
    assert!(!vectors.is_empty());
    for vector in vectors {
        let ports = &vector["ports"];
        let policy = format!("{POLICY}spec: {{podSelector: {{}}, egress: [{{ports: {ports}}}]}}\n");
        let loaded = load_bytes("x.yaml", policy.as_bytes());
        assert_eq!(loaded.error().is_none(), vector["valid"].as_bool().unwrap(), "{ports}: {:?}", loaded.problems);
        assert_eq!(loaded.objects.len(), usize::from(vector["valid"].as_bool().unwrap()));
    }
}

#[test]
fn unreadable_paths_and_empty_folders_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let loaded = load(&[folder.path().to_owned(), folder.path().join("none.yaml"), "/dev/null".into()]);
    let shown: Vec<String> = loaded.problems.iter().map(|p| p.message.clone()).collect();
    assert_eq!(
        shown,
        [
            "a folder without *.yaml, *.yml or *.json files",
            "No such file or directory (os error 2)",
            "not a file and not a folder"
        ]
    );
}

#[test]
fn folders_are_read_by_name_and_each_file_once() {
    let folder = tempfile::tempdir().unwrap();
    let namespace = |name: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n");
    fs::create_dir(folder.path().join("b")).unwrap();
    fs::create_dir(folder.path().join(".git")).unwrap();
    fs::write(folder.path().join("c.yml"), namespace("c")).unwrap();
    fs::write(folder.path().join("a.yaml"), namespace("a")).unwrap();
    fs::write(
        folder.path().join("b/x.json"),
        "{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"b\"}}",
    )
    .unwrap();
    fs::write(folder.path().join("README.md"), "# no manifest").unwrap();
    fs::write(folder.path().join("values.yaml"), "replicas: 3\n").unwrap();
    fs::write(folder.path().join(".git/z.yaml"), namespace("z")).unwrap();
    std::os::unix::fs::symlink("a.yaml", folder.path().join("link.yaml")).unwrap();
    // Loops: without care, twice as many folders at each level.
    std::os::unix::fs::symlink(".", folder.path().join("loop1")).unwrap();
    std::os::unix::fs::symlink(".", folder.path().join("loop2")).unwrap();
    let loaded = load(&[folder.path().to_owned(), folder.path().join("a.yaml")]);
    let names: Vec<String> = loaded.objects.iter().map(|l| l.object.identity().2.to_string()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(loaded.problems, []);
    assert_eq!(loaded.skipped.into_iter().collect::<Vec<_>>(), [("(not a Kubernetes object)".to_owned(), 1)]);
}

#[test]
fn pods_come_from_templates_with_their_owner() {
    let pod = |text: &str| match load_bytes("x", text.as_bytes()).objects.remove(0).object {
        Object::Pod(pod) => pod,
        other => panic!("{other:?}"),
    };
    let template = "template: {metadata: {labels: {app: web}}, spec: {hostNetwork: true, containers: [{name: c, ports: [{containerPort: 80}]}]}}";
    for (version, kind, spec) in [
        ("apps/v1", "Deployment", format!("{{{template}}}")),
        ("apps/v1", "StatefulSet", format!("{{{template}}}")),
        ("apps/v1", "DaemonSet", format!("{{{template}}}")),
        ("apps/v1", "ReplicaSet", format!("{{{template}}}")),
        ("batch/v1", "Job", format!("{{{template}}}")),
        ("batch/v1", "CronJob", format!("{{jobTemplate: {{spec: {{{template}}}}}}}")),
    ] {
        let pod =
            pod(&format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: w, namespace: a}}\nspec: {spec}\n"));
        assert!(pod.template && pod.host_network && pod.ips.is_empty(), "{kind}");
        assert_eq!((&*pod.name, pod.labels.get("app").map(|v| &**v), pod.ports.len()), ("w", Some("web"), 1), "{kind}");
        let owner = pod.owner.map(|owner| (owner.kind.to_string(), owner.name.to_string()));
        assert_eq!(owner, Some((kind.to_owned(), "w".to_owned())));
    }

    let owned = |kind: &str, name: &str| {
        let pod = pod(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  labels: {{pod-template-hash: 7d9f}}\n  ownerReferences:\n  - {{apiVersion: v1, kind: Node, name: \"n\", uid: x}}\n  - {{apiVersion: apps/v1, kind: {kind}, name: {name}, uid: x, controller: true}}\n"
        ));
        pod.owner.map(|owner| format!("{}/{}", owner.kind, owner.name))
    };
    assert_eq!(owned("ReplicaSet", "web-7d9f").as_deref(), Some("Deployment/web"));
    assert_eq!(owned("ReplicaSet", "alone").as_deref(), Some("ReplicaSet/alone"));
    assert_eq!(owned("StatefulSet", "db-7d9f").as_deref(), Some("StatefulSet/db-7d9f"));
}
