//! The API server stops, comes back, is missing at the start, or refuses requests.

use anyhow::Result;
use netpol_trace_tests::agent::Agent;
use netpol_trace_tests::record::Record;
use netpol_trace_tests::{cluster, eventually, require};
use serde_json::{Value, json};

use super::{ApiLab, in_sync, policy, source};

fn all_out_of_sync(records: &[Record]) -> bool {
    ["pods", "nodes", "namespaces", "networkpolicies", "services", "endpointslices"].iter().all(|name| {
        source(records, name).is_some_and(|source| source["synced"] == false && source["error"].is_string())
    })
}

/// Drops are recorded throughout: from the last known state, marked as stale, and from the current state once the server is back.
#[test]
fn the_server_dies_and_comes_back_during_drops() -> Result<()> {
    require!(cluster::can_run(&[]));
    let mut api_lab = ApiLab::start()?;
    let agent = api_lab.agent(&[])?;
    let before = api_lab.send(&agent)?;
    assert_eq!(before.text("/enrichment"), "complete", "{before}");
    api_lab.plane.server.kill()?;
    agent.wait_for("a status that says so of each source", all_out_of_sync)?;
    let without = api_lab.send(&agent)?;
    assert_eq!(without.text("/enrichment"), "stale", "{without}");
    assert_eq!(without.pod("destination"), "lab/server", "{without}");
    assert_eq!(without.isolated_by("ingress"), ["lab/deny-server"], "{without}");
    api_lab.plane.restart_server()?;
    agent.wait_for("a status in sync again", in_sync)?;
    api_lab.apply(&policy("deny-more", "server"))?;
    let after = eventually("the policy made since", || {
        let record = api_lab.send(&agent)?;
        Ok((record.isolated_by("ingress").len() == 2).then_some(record))
    })?;
    assert_eq!(after.text("/enrichment"), "complete", "{after}");
    api_lab.pair.stop_and_compare(agent, "denied").map(drop)
}

/// Without a server at the start records have only addresses, none of them `external`. They have names once the server is there.
#[test]
fn the_server_is_away_at_the_start() -> Result<()> {
    require!(cluster::can_run(&[]));
    let mut api_lab = ApiLab::start()?;
    api_lab.plane.server.kill()?;
    let agent = api_lab.agent(&[])?;
    assert!(!in_sync(&agent.records()));
    let record = api_lab.send(&agent)?;
    assert_eq!((record.text("/source/kind"), record.text("/destination/kind")), ("unknown", "unknown"), "{record}");
    assert_eq!(record.text("/enrichment"), "stale", "{record}");
    assert_eq!(record.text("/verdict/basis"), "addresses_only", "{record}");
    api_lab.plane.restart_server()?;
    agent.wait_for("a status in sync", in_sync)?;
    let record = api_lab.send(&agent)?;
    assert_eq!(record.isolated_by("ingress"), ["lab/deny-server"], "{record}");
    assert_eq!(record.text("/enrichment"), "complete", "{record}");
    api_lab.pair.stop_and_compare(agent, "denied").map(drop)
}

/// The agent rereads credentials that the server refuses.
#[test]
fn credentials_are_read_again() -> Result<()> {
    require!(cluster::can_run(&[]));
    let api_lab = ApiLab::start()?;
    let kubeconfig = api_lab.plane.kubeconfig_with("expired", "expired-token")?;
    let path = kubeconfig.display().to_string();
    let agent = Agent::start(&["--all-drops", "--node-name", "node-a", "--kubeconfig", &path])?;
    agent.wait_for("a status that says so", |records| {
        source(records, "pods")
            .is_some_and(|pods| pods["error"].to_string().contains("does not accept the credentials"))
    })?;
    std::fs::copy(api_lab.plane.kubeconfig(), &kubeconfig)?;
    agent.wait_for("all in sync with the new ones", in_sync)?;
    let record = api_lab.send(&agent)?;
    assert_eq!(record.isolated_by("ingress"), ["lab/deny-server"], "{record}");
    api_lab.pair.stop_and_compare(agent, "denied").map(drop)
}

/// Group, resource and verbs of the rights that the agent uses.
pub const RIGHTS: [(&str, &str, &[&str]); 6] = [
    ("", "pods", &["get", "list", "watch"]),
    ("", "nodes", &["list", "watch"]),
    ("", "namespaces", &["list", "watch"]),
    ("", "services", &["list", "watch"]),
    ("discovery.k8s.io", "endpointslices", &["list", "watch"]),
    ("networking.k8s.io", "networkpolicies", &["list", "watch"]),
];

/// A ServiceAccount without the rights on one resource, for each resource in turn: the message names it and the rule to add, and the rest
/// works.
#[test]
fn each_missing_right_is_named_and_the_rest_works() -> Result<()> {
    require!(cluster::can_run(&[]));
    let api_lab = ApiLab::start()?;
    for (group, lacking, verbs) in RIGHTS {
        let name = format!("without-{lacking}");
        account(&api_lab, &name, lacking)?;
        let kubeconfig = api_lab.plane.account_kubeconfig("lab", &name)?.display().to_string();
        // The authorizer sees the binding by a watch of its own.
        let api = netpol_trace_tests::cluster::api::Api::connect(kubeconfig.as_ref())?;
        let other = if lacking == "pods" { "nodes" } else { "pods" };
        eventually("the account's rights", || Ok(api.get(&format!("/api/v1/{other}?limit=1")).ok()))?;
        let arguments = ["--all-drops", "--node-name", "node-a", "--kubeconfig", &kubeconfig];
        let agent = Agent::start(&arguments)?;
        let is = |source: &Value, good: bool| (source["synced"] == good) && source["error"].is_null() == good;
        agent.wait_for(&format!("only {lacking} out of sync"), |records| {
            RIGHTS.iter().all(|(_, r, _)| source(records, r).is_some_and(|source| is(&source, *r != lacking)))
        })?;
        let error = source(&agent.records(), lacking).map(|s| s["error"].to_string()).unwrap_or_default();
        let rule = format!("{{apiGroups: [\\\"{group}\\\"], resources: [{lacking}], verbs: [{}]}}", verbs.join(", "));
        assert!(
            error.contains(&format!("may not list {lacking}")) || error.contains(&format!("may not watch {lacking}")),
            "{error}"
        );
        assert!(error.contains(&rule), "{rule} in {error}");
        assert!(error.contains(&format!("system:serviceaccount:lab:{name}")), "{error}");
        let record = api_lab.send(&agent)?;
        assert_eq!(record.text("/enrichment"), "stale", "without {lacking}: {record}");
        let named = !record.pod("destination").is_empty();
        assert_eq!(named, lacking != "pods", "without {lacking}: {record}");
        let denied = record.isolated_by("ingress") == ["lab/deny-server"];
        assert_eq!(denied, !["pods", "networkpolicies"].contains(&lacking), "without {lacking}: {record}");
        // Once the right is granted, the agent recovers.
        if lacking == "nodes" {
            account(&api_lab, &name, "nothing")?;
            agent.wait_for("all in sync after the grant", in_sync)?;
        }
        let run = agent.stop()?;
        run.balance()?;
        assert!(run.stderr.contains("may not"), "the log says it too: {}", run.stderr);
    }
    Ok(())
}

/// Makes a ServiceAccount of namespace lab with all of [`RIGHTS`] except those on one resource.
pub fn account(api_lab: &ApiLab, name: &str, lacking: &str) -> Result<()> {
    account_with(api_lab, name, &|resource, _| resource != lacking)
}

/// Makes a ServiceAccount of namespace lab with the [`RIGHTS`], by resource and verb, for which `has` is true.
pub fn account_with(api_lab: &ApiLab, name: &str, has: &dyn Fn(&str, &str) -> bool) -> Result<()> {
    let rule = |(group, resource, verbs): &(&str, &str, &[&str])| {
        let verbs: Vec<&str> = verbs.iter().copied().filter(|verb| has(resource, verb)).collect();
        (!verbs.is_empty()).then(|| json!({ "apiGroups": [group], "resources": [resource], "verbs": verbs }))
    };
    let rules: Vec<Value> = RIGHTS.iter().filter_map(rule).collect();
    let metadata = json!({ "namespace": "lab", "name": name });
    api_lab.apply(&json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata }))?;
    api_lab.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": name }, "rules": rules,
    }))?;
    api_lab.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
        "subjects": [{ "kind": "ServiceAccount", "namespace": "lab", "name": name }],
    }))?;
    Ok(())
}
