//! Bad input: a message with its place and exit code 2. Untrusted text reaches the terminal only escaped.

use expect_test::expect;

use crate::run::{check, explain};

const TWO: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: a, namespace: x, labels: {app: a}}}
- {apiVersion: v1, kind: Pod, metadata: {name: b, namespace: x, labels: {app: b}}, spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}}
- {apiVersion: v1, kind: Service, metadata: {name: s, namespace: x}, spec: {selector: {app: b}, clusterIP: 10.96.0.9, ports: [{name: web, port: 80, targetPort: http}, {name: tls, port: 443, targetPort: 8443}]}}
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: x}, spec: {template: {metadata: {labels: {app: web}}, spec: {containers: []}}}}
";

#[test]
fn wrong_arguments_say_what_there_is() {
    check(
        TWO,
        "x/nobody -> x/b 80",
        expect![[r#"
            warning: the input has no NetworkPolicy, so no pod is isolated
            netpol-trace explain: --from "x/nobody": no pod x/nobody; x has web, a, b
            exit 2
        "#]],
    );
    check(
        TWO,
        "y/a -> x/b 80",
        expect![[r#"
            warning: the input has no NetworkPolicy, so no pod is isolated
            netpol-trace explain: --from "y/a": no namespace y; the only one is x
            exit 2
        "#]],
    );
    check(
        TWO,
        "x/a -> x/svc/t 80",
        expect![[r#"
            warning: the input has no NetworkPolicy, so no pod is isolated
            netpol-trace explain: --to "x/svc/t": no service x/t; x has s
            exit 2
        "#]],
    );
    check(
        TWO,
        "x/a -> x/svc/s 81",
        expect![[r#"
            warning: the input has no NetworkPolicy, so no pod is isolated
            netpol-trace explain: --port "81": service x/s has no such port; it has 80/TCP (web), 443/TCP (tls)
            exit 2
        "#]],
    );
    check(
        TWO,
        "x/a -> x/svc/s",
        expect![[r#"
            warning: the input has no NetworkPolicy, so no pod is isolated
            netpol-trace explain: --port is needed: service x/s has 80/TCP (web), 443/TCP (tls)
            exit 2
        "#]],
    );
    check(
        TWO,
        "x/svc/s -> x/b 80",
        expect![[r#"
            warning: the input has no NetworkPolicy, so no pod is isolated
            netpol-trace explain: --from "x/svc/s": a service does not open connections; name the pod that does
            exit 2
        "#]],
    );
    check(
        TWO,
        "x/a -> x/b",
        expect![[r#"
            warning: the input has no NetworkPolicy, so no pod is isolated
            netpol-trace explain: --port is needed: 5432/TCP, 53/UDP, 80 or a port's name
            exit 2
        "#]],
    );
    check(
        TWO,
        "x/a -> x/b 99999",
        expect![[r#"
            warning: the input has no NetworkPolicy, so no pod is isolated
            netpol-trace explain: --port "99999": expected a number up to 65535 or a name
            exit 2
        "#]],
    );
    check(
        TWO,
        "x/a -> x/b https",
        expect![[r#"
            warning: the input has no NetworkPolicy, so no pod is isolated
            netpol-trace explain: --port "https": x/b has no port of that name; it has http (8080/TCP)
            exit 2
        "#]],
    );
    check(
        TWO,
        "x/a -> x/b 80/GRE",
        expect![[r#"
            warning: the input has no NetworkPolicy, so no pod is isolated
            netpol-trace explain: --port "80/GRE": unknown protocol "GRE": expected TCP, UDP or SCTP
            exit 2
        "#]],
    );
    check(
        TWO,
        "x/a -> x/thing/b 80",
        expect![[r#"
            warning: the input has no NetworkPolicy, so no pod is isolated
            netpol-trace explain: --to "x/thing/b": unknown kind "thing": expected pod, svc, deploy, sts, ds, rs, job or cronjob
            exit 2
        "#]],
    );
    check(
        TWO,
        "x/a -> 300.1.1.1 80",
        expect![[r#"
            warning: the input has no NetworkPolicy, so no pod is isolated
            netpol-trace explain: --to "300.1.1.1": expected NS/POD, NS/KIND/NAME or an IP address, such as staging/deploy/api
            exit 2
        "#]],
    );
}

#[test]
fn names_of_ports_and_templates_resolve() {
    check(
        TWO,
        "x/a -> x/b http",
        expect![[r#"
            warning: the input has no NetworkPolicy, so no pod is isolated
            ALLOWED  x/a -> x/b 8080/TCP: egress not isolated; ingress not isolated

            egress of x/a: allowed, no policy isolates it for egress

            ingress of x/b: allowed, no policy isolates it for ingress
            exit 0
        "#]],
    );
    check(
        TWO,
        "x/deploy/web -> x/svc/s web",
        expect![[r#"
            warning: the input has no NetworkPolicy, so no pod is isolated
            ALLOWED  x/deploy/web -> x/b 8080/TCP (service x/s:80): egress not isolated; ingress not isolated
            note: x/deploy/web is a pod template: it has labels and ports, and no address

            egress of x/deploy/web: allowed, no policy isolates it for egress

            ingress of x/b: allowed, no policy isolates it for ingress
            exit 0
        "#]],
    );
}

#[test]
fn an_error_in_a_manifest_has_its_place() {
    let broken = format!(
        "{TWO}---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: x}}\nspec:\n  podSelector: {{}}\n  ingress:\n  - ports:\n    - {{port: 90, endPort: 80}}\n"
    );
    check(
        &broken,
        "x/a -> x/b 80",
        expect![[r#"
            error: -:17 (document 2) spec.ingress[0].ports[0].endPort: NetworkPolicy x/p: endPort 80 is below port 90
            netpol-trace explain: the manifests have errors (see above), so a result could be wrong
            exit 2
        "#]],
    );
    let run = explain(&["--manifests", "/nowhere/at/all", "--from", "x/a", "--to", "x/b", "--port", "80"], "");
    assert_eq!((run.code, run.out.as_str()), (2, ""));
    assert!(run.err.contains("/nowhere/at/all"), "{}", run.err);
}

#[test]
fn no_control_character_reaches_the_terminal() {
    let hostile = TWO.replace("name: s,", "name: \"s\\e[31m\\u202e\",");
    for question in
        [["x/a", "x/b\u{1b}[2J", "80"], ["x/\u{1b}]0;owned\u{7}", "x/b", "80"], ["x/a", "x/svc/\u{9b}1m", "80"]]
    {
        let run =
            explain(&["--manifests", "-", "--from", question[0], "--to", question[1], "--port", question[2]], &hostile);
        assert_eq!(run.code, 2, "{}", run.err);
        for text in [run.out, run.err] {
            assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        }
    }
}

#[test]
fn a_selector_with_ten_thousand_expressions_takes_bounded_time_and_text() {
    let expressions: String = (0..10_000).map(|i| format!("{{key: k{i}, operator: In, values: [a, b]}},")).collect();
    let np = format!(
        "{TWO}---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: x}}\nspec:\n  podSelector: {{}}\n  ingress:\n  - from:\n    - podSelector: {{matchExpressions: [{expressions}]}}\n"
    );
    let started = std::time::Instant::now();
    let run = explain(&["--manifests", "-", "--from", "x/a", "--to", "x/b", "--port", "80"], &np);
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    assert!(run.out.len() + run.err.len() < 8000, "{}", run.out);
    assert!(run.code == 1 || run.code == 2, "{}", run.err);
}

#[test]
fn usage_errors_are_exit_code_2() {
    assert_eq!(explain(&[], "").code, 2);
    assert_eq!(explain(&["--manifests", "-", "--from", "x/a"], TWO).code, 2);
    assert_eq!(explain(&["--manifests", "-", "--queries", "-"], TWO).code, 2);
    assert_eq!(explain(&["--manifests", "-", "--queries", "/nowhere"], TWO).code, 2);
}
