use jiff::Timestamp;

use super::change;
use crate::cluster::{Change, Index, Kind, Scope, manifests};
use crate::record::Body;

fn objects(yaml: &str) -> Vec<crate::cluster::Object> {
    let loaded = manifests::load_bytes("test.yaml", yaml.as_bytes());
    assert_eq!(loaded.error().map(ToString::to_string), None);
    loaded.objects.into_iter().map(|located| located.object).collect()
}

fn pods() -> String {
    let pod = |i: u32, app: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {app}-{i}, namespace: x, labels: {{app: {app}}}, ownerReferences: [{{apiVersion: apps/v1, kind: StatefulSet, name: {app}, uid: u, controller: true}}]}}, status: {{podIP: 10.0.{}.{i}}}}}\n",
            app.len()
        )
    };
    (0..3).map(|i| pod(i, "web")).chain((0..2).map(|i| pod(i, "db"))).collect()
}

const POLICY: &str = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: x, generation: 1}, spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 80}]}, {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]}}";

/// Returns the records of `changes`, one after the other, on an index that has the pods and no policy.
fn records_of(changes: &[(&str, &str)]) -> Vec<serde_json::Value> {
    let mut index = Index::default();
    let at = |s: i64| Timestamp::from_second(1_000 + s).unwrap();
    index.apply(
        vec![
            Change::Replace(Kind::Policy.into(), Vec::new()),
            Change::Replace(Kind::Pod.into(), objects(&pods())),
            Change::Replace(
                Kind::Namespace.into(),
                objects("{apiVersion: v1, kind: Namespace, metadata: {name: x, labels: {team: a, env: prod}}}"),
            ),
        ],
        at(0),
    );
    assert_eq!(index.take_events(), (Vec::new(), 0), "the first lists are no changes");
    let mut records = Vec::new();
    for (i, (kind, yaml)) in changes.iter().enumerate() {
        let scope = Scope::from(if *kind == "policies" { Kind::Policy } else { Kind::Namespace });
        index.apply(vec![Change::Replace(scope, objects(yaml))], at(1 + i as i64));
        let (events, lost) = index.take_events();
        assert_eq!(lost, 0);
        records.extend(
            events.iter().map(|event| serde_json::to_value(Body::PolicyChange(Box::new(change(event)))).unwrap()),
        );
    }
    records
}

#[test]
fn a_change_says_what_it_removed_added_and_isolates() {
    let edited = POLICY.replace("generation: 1", "generation: 2").replace("port: 80", "port: 8080");
    let elsewhere = edited.replace("generation: 2", "generation: 3").replace("app: web", "app: db");
    let records = records_of(&[
        ("policies", POLICY),
        ("policies", POLICY),
        ("policies", &edited),
        ("policies", &elsewhere),
        ("policies", ""),
    ]);
    let both = serde_json::json!([
        {"rule": "ingress[0]", "allows": "from pods app=api: 80/TCP"},
        {"rule": "ingress[1]", "allows": "from 10.0.0.0/8 except 10.1.0.0/16: all ports"},
    ]);
    let web = serde_json::json!([{"direction": "ingress", "pods": 3, "workloads": ["StatefulSet/web"]}]);
    let db = serde_json::json!([{"direction": "ingress", "pods": 2, "workloads": ["StatefulSet/db"]}]);
    assert_eq!(
        records,
        [
            serde_json::json!({"kind": "policy_change", "change": "created", "namespace": "x", "policy": "p", "generation": 1,
                "rules_added": both, "newly_isolates": web}),
            serde_json::json!({"kind": "policy_change", "change": "edited", "namespace": "x", "policy": "p",
                "generation_before": 1, "generation": 2,
                "rules_removed": [{"rule": "ingress[0]", "allows": "from pods app=api: 80/TCP"}],
                "rules_added": [{"rule": "ingress[0]", "allows": "from pods app=api: 8080/TCP"}]}),
            serde_json::json!({"kind": "policy_change", "change": "edited", "namespace": "x", "policy": "p",
                "generation_before": 2, "generation": 3,
                "fields": [{"field": "spec.podSelector", "before": "app=web", "after": "app=db"}],
                "newly_isolates": db, "no_longer_isolates": web}),
            serde_json::json!({"kind": "policy_change", "change": "deleted", "namespace": "x", "policy": "p", "generation_before": 3,
                "rules_removed": [
                    {"rule": "ingress[0]", "allows": "from pods app=api: 8080/TCP"},
                    {"rule": "ingress[1]", "allows": "from 10.0.0.0/8 except 10.1.0.0/16: all ports"}],
                "no_longer_isolates": db}),
        ],
        "the same list again is no change"
    );
}

#[test]
fn a_namespaces_labels_are_reported_when_they_change() {
    let records = records_of(&[(
        "namespaces",
        "{apiVersion: v1, kind: Namespace, metadata: {name: x, labels: {team: b, tier: front}}}",
    )]);
    assert_eq!(
        records,
        [serde_json::json!({"kind": "policy_change", "change": "namespace_labels", "namespace": "x", "fields": [
            {"field": "metadata.labels[env]", "before": "prod"},
            {"field": "metadata.labels[team]", "before": "a", "after": "b"},
            {"field": "metadata.labels[tier]", "after": "front"}]})]
    );
}

#[test]
fn the_record_of_a_huge_policy_fits_a_line() {
    let rule = |i: u32| {
        let peers = (0..60).map(|p| format!("{{podSelector: {{matchLabels: {{app-{p}: {}}}}}}}", "v".repeat(63)));
        format!("{{from: [{}], ports: [{{port: {i}}}]}}", peers.collect::<Vec<_>>().join(", "))
    };
    let rules = (1..200).map(rule).collect::<Vec<_>>().join(", ");
    let policy = format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: x}}, spec: {{podSelector: {{}}, ingress: [{rules}]}}}}"
    );
    let mut index = Index::default();
    index.apply(vec![Change::Replace(Kind::Policy.into(), Vec::new())], Timestamp::UNIX_EPOCH);
    index.apply(vec![Change::Replace(Kind::Policy.into(), objects(&policy))], Timestamp::UNIX_EPOCH);
    let (events, _) = index.take_events();
    let record = crate::record::Record {
        schema: crate::record::SCHEMA.into(),
        id: "a/1".to_owned(),
        fingerprint: None,
        run: "a".into(),
        seq: 1,
        time: events[0].at,
        cluster: None,
        node: None,
        body: Body::PolicyChange(Box::new(change(&events[0]))),
    };
    let mut line = Vec::new();
    crate::record::format::line(crate::record::format::Format::Native, &record, &mut line).unwrap();
    assert!(line.len() <= crate::record::format::MAX_LINE, "{}", line.len());
    let records: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(records["truncated"], true);
    assert!(records["rules_added"].as_array().is_some_and(|rules| rules.len() >= 8));
}

/// A LIST after a lost watch has another policy of the same name; agents whose watch went on have seen it go and come. The same two
/// changes, so that their fingerprints are equal.
#[test]
fn a_policy_that_was_made_anew_between_two_lists_is_two_changes() {
    let of = |uid: &str, app: &str| {
        let policy = POLICY.replace("name: p,", &format!("name: p, uid: {uid},"));
        policy.replace("app: web", &format!("app: {app}"))
    };
    // Also where nothing but the uid differs.
    for app in ["web", "db"] {
        let (old, new) = (of("old", "web"), of("new", app));
        let listed = records_of(&[("policies", &old), ("policies", &new)]);
        let watched = records_of(&[("policies", &old), ("policies", ""), ("policies", &new)]);
        let key = |change: &serde_json::Value| {
            ["change", "uid", "generation_before", "generation"].map(|key| change.get(key).cloned())
        };
        assert_eq!(listed.iter().map(key).collect::<Vec<_>>(), watched.iter().map(key).collect::<Vec<_>>());
        let kinds: Vec<_> = listed.iter().map(|change| (&change["change"], &change["uid"])).collect();
        assert_eq!(
            serde_json::json!(kinds),
            serde_json::json!([["created", "old"], ["deleted", "old"], ["created", "new"]])
        );
    }
}
