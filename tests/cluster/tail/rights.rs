//! The developer role by itself: it shows the namespace's drops, and has no right that leads to more rights.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::cluster::api::Api;
use netpol_trace_tests::{eventually, require};
use serde_json::{Value, json};

use super::{READER, TailNode, account, accounts, bind, can_run_kubelet, reader, stderr};

const AGENTS: &str = "rights-agents";
/// Verb, group, resource and subresource, in any namespace and in the whole cluster.
/// <https://kubernetes.io/docs/concepts/security/rbac-good-practices/#privilege-escalation-risks>
const ESCALATIONS: [(&str, &str, &str, &str); 31] = [
    ("get", "", "secrets", ""),
    ("list", "", "secrets", ""),
    ("watch", "", "secrets", ""),
    ("create", "", "serviceaccounts", "token"),
    ("impersonate", "", "users", ""),
    ("impersonate", "", "groups", ""),
    ("impersonate", "", "serviceaccounts", ""),
    ("bind", "rbac.authorization.k8s.io", "roles", ""),
    ("bind", "rbac.authorization.k8s.io", "clusterroles", ""),
    ("escalate", "rbac.authorization.k8s.io", "roles", ""),
    ("escalate", "rbac.authorization.k8s.io", "clusterroles", ""),
    ("create", "rbac.authorization.k8s.io", "rolebindings", ""),
    ("create", "rbac.authorization.k8s.io", "clusterrolebindings", ""),
    ("create", "", "pods", ""),
    ("patch", "", "pods", ""),
    ("get", "", "pods", "exec"),
    ("create", "", "pods", "exec"),
    ("create", "", "pods", "attach"),
    ("get", "", "pods", "log"),
    ("patch", "", "pods", "ephemeralcontainers"),
    ("create", "apps", "deployments", ""),
    ("patch", "apps", "daemonsets", ""),
    ("create", "batch", "jobs", ""),
    ("create", "", "serviceaccounts", ""),
    ("create", "", "persistentvolumes", ""),
    ("patch", "", "namespaces", ""),
    ("get", "", "nodes", "proxy"),
    ("create", "", "nodes", "proxy"),
    ("update", "certificates.k8s.io", "certificatesigningrequests", "approval"),
    ("create", "admissionregistration.k8s.io", "validatingwebhookconfigurations", ""),
    ("*", "*", "*", ""),
];

/// Asks the API server whether an account may do something.
fn may(
    api: &Api,
    namespace: Option<&str>,
    (verb, group, resource, subresource): (&str, &str, &str, &str),
) -> Result<bool> {
    let attributes = json!({
        "namespace": namespace, "verb": verb, "group": group, "resource": resource, "subresource": subresource,
    });
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": { "resourceAttributes": attributes },
    });
    let answer = api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review)?;
    answer.pointer("/status/allowed").and_then(Value::as_bool).with_context(|| format!("no answer: {answer}"))
}

/// All rights of an account in a namespace, without those that every account has.
fn rules(api: &Api, namespace: &str) -> Result<BTreeSet<String>> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": { "namespace": namespace },
    });
    let answer = api.post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", &review)?;
    ensure!(answer.pointer("/status/incomplete") == Some(&json!(false)), "{answer}");
    let rules = answer.pointer("/status/resourceRules").and_then(Value::as_array).context("rules")?;
    let words = |rule: &Value, field: &str| {
        let words: Vec<&str> = rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        words.join(",")
    };
    let rules = rules.iter().filter(|rule| !words(rule, "resources").starts_with("self"));
    let line = |rule: &Value| {
        format!("{} {} {}", words(rule, "verbs"), words(rule, "resources"), words(rule, "resourceNames"))
    };
    Ok(rules.map(|rule| line(rule).trim_end().to_owned()).collect())
}

fn set(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

fn no_escalation(api: &Api, whose: &str) -> Result<()> {
    for namespace in [Some("staging"), Some("qa-test"), Some(AGENTS), Some("kube-system"), None] {
        for right in ESCALATIONS {
            ensure!(!may(api, namespace, right)?, "{whose} may {right:?} in {namespace:?}");
        }
    }
    for path in ["/api/v1/namespaces/kube-system/secrets", "/api/v1/secrets"] {
        let error = format!("{:#}", api.get(path).err().with_context(|| format!("{whose} may get {path}"))?);
        ensure!(error.contains("forbidden"), "{error}");
    }
    Ok(())
}

#[test]
fn a_developer_sees_their_drops_and_has_no_other_right() -> Result<()> {
    require!(can_run_kubelet());
    let node = TailNode::start(AGENTS, "rights-node")?;
    let plane = node.plane;
    let kubeconfig = node.developer("rights-dev")?;
    // With an operator's rights.
    account(plane, "staging", "deployer")?;
    bind(plane, "rights-deployer", None, ("ClusterRole", "cluster-admin"), ("staging", "deployer"))?;
    reader(plane, "qa-test")?;

    // The role alone shows the namespace's drops.
    let output = node.tail(&kubeconfig, &["-n", "staging", "--service-account"])?;
    let drops = super::records(&output)?.iter().filter(|record| record.is_drop()).count();
    ensure!(drops > 0, "{}", stderr(&output));

    // Compare all rights with the list of escalations.
    let developer = Api::connect(&kubeconfig)?;
    let token = format!("create serviceaccounts/token {READER}");
    ensure!(rules(&developer, "staging")? == set(&["get drops", &token]), "{:?}", rules(&developer, "staging")?);
    let reach = set(&["get,create pods/portforward", "list pods"]);
    ensure!(rules(&developer, AGENTS)? == reach, "{:?}", rules(&developer, AGENTS)?);
    ensure!(rules(&developer, "qa-test")?.is_empty(), "{:?}", rules(&developer, "qa-test")?);
    no_escalation(&developer, "the developer")?;

    // Request tokens of other accounts, in the namespace and elsewhere.
    let asked = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
    let path = |namespace: &str, name: &str| format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
    for (namespace, name) in
        [("staging", "deployer"), ("staging", "rights-dev"), ("qa-test", READER), (AGENTS, "agent")]
    {
        let made = developer.post(&path(namespace, name), &asked);
        let error = format!("{:#}", made.err().with_context(|| format!("a token of {namespace}/{name}"))?);
        ensure!(error.contains("forbidden"), "{error}");
    }
    // The developer may request tokens of one account, for any audience, and these give no other right.
    let made = developer.post(&path("staging", READER), &asked)?;
    let token = made.pointer("/status/token").and_then(Value::as_str).context("a token")?;
    let as_reader = Api::connect(&plane.kubeconfig_with("rights-reader", token)?)?;
    ensure!(rules(&as_reader, "staging")? == set(&["get drops"]), "{:?}", rules(&as_reader, "staging")?);
    ensure!(rules(&as_reader, AGENTS)?.is_empty(), "{:?}", rules(&as_reader, AGENTS)?);
    no_escalation(&as_reader, "the reader's account")?;

    without_account(&node)?;
    with_rights(&node)
}

/// A namespace without the account: the message says what to do.
fn without_account(node: &TailNode) -> Result<()> {
    const EMPTY: &str = "rights-empty";
    node.plane.namespace(EMPTY, &json!({}))?;
    let developer = ("staging", "rights-dev");
    bind(node.plane, "rights-dev", Some(EMPTY), ("ClusterRole", "netpol-trace-developer"), developer)?;
    let kubeconfig = node.plane.account_kubeconfig(developer.0, developer.1)?;
    let words = format!("there is no service account {READER} in namespace {EMPTY}");
    eventually("the binding", || {
        let output = node.tail(&kubeconfig, &["-n", EMPTY, "--service-account"])?;
        let remedy = format!("kubectl apply -n {EMPTY} -k deploy/kustomize/developer-namespace");
        Ok((stderr(&output).contains(&words) && stderr(&output).contains(&remedy)).then_some(()))
    })
}

/// The account has another binding, whose rights every developer then has: the agents report this instead of answering.
fn with_rights(node: &TailNode) -> Result<()> {
    let trusted = accounts::token(node.plane, "qa-test", READER, Some("netpol-trace"))?;
    let ask = || {
        accounts::ask(
            (std::net::Ipv4Addr::LOCALHOST, node.listener).into(),
            "/v1/records?namespace=qa-test",
            Some(&trusted),
        )
    };
    ensure!(ask()?.starts_with("HTTP/1.1 200"), "{}", ask()?);
    bind(node.plane, "rights-trap", None, ("ClusterRole", "cluster-admin"), ("qa-test", READER))?;
    let refused = eventually("the refusal", || {
        // A new token, because the API server's answers are cached for half a minute.
        let token = accounts::token(node.plane, "qa-test", READER, Some("netpol-trace"))?;
        let address = (std::net::Ipv4Addr::LOCALHOST, node.listener).into();
        let answer = accounts::ask(address, "/v1/records?namespace=qa-test", Some(&token))?;
        Ok(Some(answer).filter(|answer| answer.starts_with("HTTP/1.1 403")))
    })?;
    ensure!(refused.contains(&format!("qa-test:{READER} may get secrets")), "{refused}");
    Ok(())
}
