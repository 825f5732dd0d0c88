//! `--queries`: answers in order, one per line; a bad line fails alone.

use std::io::Write;

use expect_test::expect;
use serde_json::Value;

use crate::run::explain;

const CLUSTER: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: x}}
- {apiVersion: v1, kind: Pod, metadata: {name: a, namespace: x, labels: {app: a}}}
- {apiVersion: v1, kind: Pod, metadata: {name: b, namespace: x, labels: {app: b}}, status: {podIP: 10.1.0.2}}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: p, namespace: x}
  spec:
    podSelector: {matchLabels: {app: b}}
    ingress: [{from: [{podSelector: {matchLabels: {app: a}}}], ports: [{port: 80}]}]
";

fn ask(lines: &str) -> (String, i32) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(CLUSTER.as_bytes()).unwrap();
    let run = explain(&["--manifests", file.path().to_str().unwrap(), "--queries", "-"], lines);
    assert_eq!(run.err, "");
    (run.out, run.code)
}

#[test]
fn answers_come_in_order_and_a_bad_line_costs_only_itself() {
    let (out, code) = ask(concat!(
        r#"{"id":1,"from":{"pod":"x/a"},"to":{"pod":"x/b"},"protocol":"TCP","port":80}"#,
        "\n",
        r#"{"id":"two","from":{"pod":"x/a"},"to":{"ip":"10.1.0.2"},"protocol":"UDP","port":80}"#,
        "\n",
        "not json\n",
        "\n",
        r#"{"id":[3],"from":{"pod":"x/none"},"to":{"pod":"x/b"},"protocol":"TCP","port":80}"#,
        "\n",
        r#"{"id":4,"from":{"pod":"x/a"},"to":{"pod":"x/b"},"protocol":"TCP","port":80000}"#,
        "\n",
        r#"{"id":5,"from":{"pod":"x/a"},"to":{"pod":"x/b"},"protocol":"GRE","port":80}"#,
        "\n",
        r#"{"id":6,"from":{"pod":"x/a"},"to":{"ip":"10.1.0"},"protocol":"TCP","port":80}"#,
        "\n",
        r#"{"from":{"ip":"8.8.8.8"},"to":{"pod":"x/b"},"protocol":"TCP","port":80}"#,
    ));
    assert_eq!(code, 0);
    expect![[r#"
        {"id":1,"verdict":{"result":"allowed","basis":"networkpolicy_v1","egress":{"result":"allowed","isolated_by":[]},"ingress":{"result":"allowed","isolated_by":[{"namespace":"x","name":"p"}],"allowed_by":{"policy":"x/p","rule":"ingress[0]"}}}}
        {"id":"two","verdict":{"result":"denied","basis":"networkpolicy_v1","egress":{"result":"allowed","isolated_by":[]},"ingress":{"result":"denied","isolated_by":[{"namespace":"x","name":"p"}],"nearest":{"policy":"x/p","rule":"ingress[0]","misses":[{"field":"ingress[0].ports[0]","want":"80/TCP","have":"80/UDP"}]}}}}
        {"id":null,"error":"expected ident at line 1 column 2"}
        {"id":[3],"error":"from: no pod \"x/none\" in the input"}
        {"id":4,"error":"invalid value: integer `80000`, expected u16 at line 1 column 77"}
        {"id":5,"error":"unknown protocol \"GRE\": expected TCP, UDP, SCTP or ICMP"}
        {"id":6,"error":"invalid IP address syntax at line 1 column 48"}
        {"id":null,"verdict":{"result":"denied","basis":"networkpolicy_v1","egress":{"result":"allowed","isolated_by":[]},"ingress":{"result":"denied","isolated_by":[{"namespace":"x","name":"p"}],"nearest":{"policy":"x/p","rule":"ingress[0]","misses":[{"field":"ingress[0].from[0]","want":"pods app=a in namespace x","have":"8.8.8.8 (outside of the cluster)"}]}}}}
    "#]].assert_eq(&out);
}

#[test]
fn one_question_as_json() {
    let run = explain(&["--manifests", "-", "--from", "8.8.8.8", "--to", "x/b", "--port", "80", "-o", "json"], CLUSTER);
    assert_eq!((run.err.as_str(), run.code), ("", 1));
    expect![[r#"
        {
          "from": "8.8.8.8",
          "to": "x/b",
          "result": "denied",
          "answers": [
            {
              "from": "8.8.8.8",
              "to": "x/b",
              "port": "80/TCP",
              "verdict": {
                "result": "denied",
                "basis": "networkpolicy_v1",
                "egress": {
                  "result": "allowed",
                  "isolated_by": []
                },
                "ingress": {
                  "result": "denied",
                  "isolated_by": [
                    {
                      "namespace": "x",
                      "name": "p"
                    }
                  ],
                  "nearest": {
                    "policy": "x/p",
                    "rule": "ingress[0]",
                    "misses": [
                      {
                        "field": "ingress[0].from[0]",
                        "want": "pods app=a in namespace x",
                        "have": "8.8.8.8 (outside of the cluster)"
                      }
                    ]
                  }
                }
              },
              "hint": {
                "code": "ip-block",
                "message": "x/p ingress[0].from[0] selects pods, and 8.8.8.8 is not a pod: add to ingress[0].from the item {ipBlock: {cidr: 8.8.8.8/32}}"
              },
              "egress": [],
              "ingress": [
                {
                  "policy": "x/p",
                  "rules": [
                    {
                      "rule": "ingress[0]",
                      "result": "no_match",
                      "peers": [
                        {
                          "field": "ingress[0].from[0]",
                          "wants": "podSelector app=a",
                          "result": "no_match",
                          "misses": [
                            {
                              "field": "ingress[0].from[0]",
                              "want": "pods app=a in namespace x",
                              "have": "8.8.8.8 (outside of the cluster)"
                            }
                          ]
                        }
                      ],
                      "ports": [
                        {
                          "field": "ingress[0].ports[0]",
                          "wants": "80/TCP",
                          "result": "match"
                        }
                      ]
                    }
                  ]
                }
              ]
            }
          ]
        }
    "#]].assert_eq(&run.out);
}

#[test]
fn a_line_without_end_is_cut_off() {
    let (out, code) = ask(&format!("{}\n{{\"id\":2}}\n", "x".repeat(3 << 20)));
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((code, lines.len()), (0, 2));
    assert!(lines[0]["error"].as_str().unwrap().contains("longer"));
    assert_eq!(lines[1]["id"], 2);
}

#[test]
fn every_line_is_answered() {
    let line = |i: usize| {
        format!(
            "{{\"id\":{i},\"from\":{{\"pod\":\"x/a\"}},\"to\":{{\"pod\":\"x/b\"}},\"protocol\":\"TCP\",\"port\":{}}}\n",
            79 + i % 3
        )
    };
    let (out, _) = ask(&(0..5000).map(line).collect::<String>());
    for (i, answer) in out.lines().enumerate() {
        let answer: Value = serde_json::from_str(answer).unwrap();
        assert_eq!(answer["id"], i);
        assert_eq!(answer["verdict"]["result"], if i % 3 == 1 { "allowed" } else { "denied" });
    }
    assert_eq!(out.lines().count(), 5000);
}
