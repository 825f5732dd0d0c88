use expect_test::{Expect, expect};

use crate::cluster::manifests::load_bytes;
use crate::policy::lint::*;

mod articles;
mod clean;

/// The text that `netpol-trace lint --severity info` prints for a file.
pub(super) fn check(yaml: &str, expected: Expect) {
    let loaded = load_bytes("netpol.yaml", yaml.as_bytes());
    let findings = lint(&loaded, &[]);
    for finding in &findings {
        assert!(catalogue::find(finding.id).is_some(), "{}", finding.id);
    }
    expected.assert_eq(&text(&findings, &loaded, Severity::Info));
}

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
pub(super) fn case(spec: &str, expected: Expect) {
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

/// Findings of warning and above, as `line id`.
fn ids(yaml: &str) -> Vec<String> {
    let loaded = load_bytes("netpol.yaml", yaml.as_bytes());
    let findings = lint(&loaded, &[]);
    let shown = findings.iter().filter(|f| f.severity >= Severity::Warning);
    shown.map(|f| format!("{} {}", f.place.line.unwrap_or_default(), f.id)).collect()
}

#[test]
fn sarif_is_what_code_hosts_read() {
    let loaded = load_bytes(
        "a b/ünï.yaml",
        b"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {ingress: {}}\n",
    );
    let log: serde_json::Value = serde_json::from_str(&sarif(&lint(&loaded, &[]), Severity::Info).unwrap()).unwrap();
    assert_eq!(log["version"], "2.1.0");
    let run = &log["runs"][0];
    let result = &run["results"][0];
    assert_eq!(result["ruleId"], "shape");
    assert_eq!(result["level"], "error");
    let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
    assert_eq!(run["tool"]["driver"]["rules"][index]["id"], "shape");
    let location = &result["locations"][0];
    assert_eq!(location["physicalLocation"]["artifactLocation"]["uri"], "a%20b/%C3%BCn%C3%AF.yaml");
    assert_eq!(location["physicalLocation"]["region"]["startLine"], 4);
    assert_eq!(location["logicalLocations"][0]["fullyQualifiedName"], "NetworkPolicy p spec.ingress");
}

#[test]
fn json_holds_findings_and_sums() {
    let loaded = load_bytes(
        "x.yaml",
        b"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {ingress: {}}\n",
    );
    let report: serde_json::Value =
        serde_json::from_str(&json(&lint(&loaded, &[]), &loaded, Severity::Info).unwrap()).unwrap();
    assert_eq!(report["findings"][0]["id"], "shape");
    assert_eq!(report["findings"][0]["severity"], "error");
    assert_eq!(report["findings"][0]["file"], "x.yaml");
    assert_eq!(report["findings"][0]["line"], 4);
    assert_eq!(report["findings"][0]["field"], "spec.ingress");
    assert_eq!(report["summary"]["error"], 1);
}

#[test]
fn untrusted_text_is_escaped() {
    let loaded = load_bytes(
        "x\u{1b}[2J.yaml",
        b"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: \"p\\e[31m\", \"\\e]0;x\": 1}\nspec: {podSelector: {matchLabels: {\"a\\nb\": c}}}\n",
    );
    let text = text(&lint(&loaded, &[]), &loaded, Severity::Info);
    assert!(text.lines().all(|line| !line.chars().any(char::is_control)), "{text:?}");
    assert!(text.contains("error[shape]"), "{text}");
}

#[test]
fn a_finding_can_be_disabled() {
    let loaded = load_bytes(
        "x.yaml",
        b"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {ingress: {}}\n",
    );
    assert_eq!(lint(&loaded, &["shape".to_owned()]), []);
}
