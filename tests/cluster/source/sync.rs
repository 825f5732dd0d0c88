//! The agent knows the API server's objects from the start, and their changes at once.

use anyhow::Result;
use netpol_trace_tests::{cluster, eventually, require};
use serde_json::json;

use super::{ApiLab, in_sync, pod, policy, source};
use netpol_trace_tests::pair::SERVER;

/// Records have both endpoints and the policy with its generation; then a new policy, an edited one, a deleted one, and new labels.
#[test]
fn objects_and_their_changes_are_known() -> Result<()> {
    require!(cluster::can_run(&[]));
    let api_lab = ApiLab::start()?;
    let agent = api_lab.agent(&[])?;
    assert!(in_sync(&agent.records()), "the first status: {:?}", agent.records());
    let first = api_lab.send(&agent)?;
    assert_eq!((first.pod("source"), first.pod("destination")), ("lab/client".into(), "lab/server".into()), "{first}");
    assert_eq!(first.isolated_by("ingress"), ["lab/deny-server"], "{first}");
    assert_eq!((first.cause(), first.text("/enrichment")), ("policy", "complete"), "{first}");
    assert!(!first.text("/destination/pod/uid").is_empty(), "{first}");

    api_lab.apply(&policy("deny-more", "server"))?;
    eventually("both policies", || {
        let isolated = api_lab.send(&agent)?.isolated_by("ingress");
        Ok((isolated == ["lab/deny-more", "lab/deny-server"]).then_some(()))
    })?;
    api_lab.apply(&policy("deny-more", "another"))?;
    eventually("the edited policy, which isolates others", || {
        Ok((api_lab.send(&agent)?.isolated_by("ingress") == ["lab/deny-server"]).then_some(()))
    })?;
    let mut labelled = pod("server", "node-a", &[SERVER.into()]);
    labelled["metadata"]["labels"] = json!({ "app": "another" });
    api_lab.apply(&labelled)?;
    eventually("the pod's new label", || {
        Ok((api_lab.send(&agent)?.isolated_by("ingress") == ["lab/deny-more"]).then_some(()))
    })?;
    api_lab.delete(&policy("deny-more", "another"))?;
    eventually("no policy", || Ok(api_lab.send(&agent)?.isolated_by("ingress").is_empty().then_some(())))?;
    api_lab.pair.stop_and_compare(agent, "denied").map(drop)
}

/// A watch whose resourceVersion the server has compacted lists again: deleted objects are gone, new ones are there.
#[test]
fn a_watch_that_is_too_old_lists_again() -> Result<()> {
    require!(cluster::can_run(&[]));
    let mut api_lab = ApiLab::start()?;
    api_lab.apply(&pod("gone", "node-a", &["10.244.1.77".parse()?]))?;
    let agent = api_lab.agent(&[])?;
    assert_eq!(source(&agent.records(), "pods").map(|s| s["objects"]["Pod"].clone()), Some(json!(3)));
    // The agent is stopped while the server restarts, after which the server has no earlier events.
    agent.signal(nix::sys::signal::Signal::SIGSTOP)?;
    api_lab.plane.restart_server()?;
    api_lab.delete(&policy("deny-server", "server"))?;
    api_lab.delete(&pod("gone", "node-a", &[]))?;
    api_lab.apply(&policy("deny-instead", "server"))?;
    api_lab.plane.restart_server()?;
    agent.signal(nix::sys::signal::Signal::SIGCONT)?;
    eventually("the policies as they are now", || {
        Ok((api_lab.send(&agent)?.isolated_by("ingress") == ["lab/deny-instead"]).then_some(()))
    })?;
    // A change of a pod shows that the pods' watch works too.
    let mut labelled = pod("server", "node-a", &[SERVER.into()]);
    labelled["metadata"]["labels"]["round"] = json!("second");
    api_lab.apply(&labelled)?;
    eventually("the pod's new label", || {
        let record = api_lab.send(&agent)?;
        Ok((record.text("/destination/pod/labels/round") == "second").then_some(()))
    })?;
    let run = agent.stop()?;
    run.balance()?;
    assert!(in_sync(&run.records), "{:?}", run.stopped()?);
    let pods = source(&run.records, "pods").unwrap_or_default();
    assert_eq!(pods["objects"]["Pod"], 2, "{pods}");
    Ok(())
}

/// The agent watches the other policy APIs where their CRDs exist, also if they are installed later.
#[test]
fn policies_of_other_apis_make_a_verdict_less_than_final() -> Result<()> {
    require!(cluster::can_run(&[]));
    let api_lab = ApiLab::start()?;
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "ciliumnetworkpolicies.cilium.io" },
        "spec": {
            "group": "cilium.io", "scope": "Namespaced",
            "names": { "kind": "CiliumNetworkPolicy", "plural": "ciliumnetworkpolicies", "singular": "ciliumnetworkpolicy",
                       "listKind": "CiliumNetworkPolicyList" },
            "versions": [{ "name": "v2", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } }],
        },
    });
    api_lab.apply(&crd)?;
    let other = json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": { "namespace": "lab", "name": "theirs" }, "spec": {},
    });
    eventually("the CRD is served", || Ok(api_lab.apply(&other).ok()))?;
    let agent = api_lab.agent(&[])?;
    agent.wait_for("the watch of Cilium's policies", |records| {
        source(records, "ciliumnetworkpolicies.cilium.io")
            .is_some_and(|s| s["synced"] == true && s["objects"]["CiliumNetworkPolicy"] == 1)
    })?;
    // No NetworkPolicy isolates the server now, so another API's policy may drop.
    api_lab.delete(&policy("deny-server", "server"))?;
    let record = eventually("a record without a v1 policy", || {
        let record = api_lab.send(&agent)?;
        Ok(record.isolated_by("ingress").is_empty().then_some(record))
    })?;
    assert_ne!(record.text("/verdict/basis"), "networkpolicy_v1", "{record}");
    api_lab.pair.stop_and_compare(agent, "denied").map(drop)
}
