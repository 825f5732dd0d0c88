//! Removes each verb of the agent's RBAC rules in turn, and compares the effect with docs/security.md.

use anyhow::Result;
use netpol_trace_tests::agent::Agent;
use netpol_trace_tests::cluster::api::Api;
use netpol_trace_tests::pair::SERVER;
use netpol_trace_tests::record::Record;
use netpol_trace_tests::{cluster, eventually, require};

use super::failure::{RIGHTS, account_with};
use super::{ApiLab, NODE, in_sync, pod};

/// Runs the agent without one verb, in one mode.
fn works(api_lab: &ApiLab, lacking: &str, verb: &str, peers: &str) -> Result<[bool; 2]> {
    let name = format!("no-{verb}-{lacking}");
    account_with(api_lab, &name, &|resource, v| (resource, v) != (lacking, verb))?;
    let kubeconfig = api_lab.plane.account_kubeconfig("lab", &name)?;
    let api = Api::connect(&kubeconfig)?;
    let other = if lacking == "namespaces" { "services" } else { "namespaces" };
    eventually("the account's rights", || Ok(api.get(&format!("/api/v1/{other}?limit=1")).ok()))?;
    let kubeconfig = kubeconfig.display().to_string();
    let agent = Agent::start(&["--all-drops", "--node-name", NODE, "--peers", peers, "--kubeconfig", &kubeconfig])?;
    let refused = format!("may not {verb} {lacking}");
    let is_refused = |records: &[Record]| {
        let status = records.iter().rfind(|record| record.kind() == "status");
        let sources = status.map(|status| status.list("/sources").iter()).into_iter().flatten();
        sources.filter_map(|source| source["error"].as_str()).any(|error| error.contains(&refused))
    };
    // Either all sources are in sync or one has an error. Verbs that only lookups use are missed at the first lookup.
    agent.wait_for("the sources' word", |records| in_sync(records) || is_refused(records))?;
    let record = api_lab.send(&agent)?;
    let named = record.pod("destination") == "lab/server";
    let run = agent.stop()?;
    run.balance()?;
    let synced = in_sync(&run.records);
    assert!(synced || is_refused(&run.records), "{:?}", run.stopped()?);
    assert_eq!(synced, !run.stderr.contains(&refused), "{}", run.stderr);
    Ok([synced, named])
}

/// The page's table: with all pods watched, and with pods of other nodes looked up.
#[test]
fn each_verb_is_for_what_the_page_says() -> Result<()> {
    require!(cluster::can_run(&[]));
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/security.md"))?;
    let api_lab = ApiLab::start()?;
    api_lab.apply(&super::node("node-b", "172.18.0.3", "10.244.2.0/24"))?;
    // Elsewhere, so that lookups are needed.
    api_lab.delete(&pod("server", NODE, &[]))?;
    api_lab.apply(&pod("server", "node-b", &[SERVER.into()]))?;
    let mut missing = Vec::new();
    for (_, resource, verbs) in RIGHTS {
        for verb in verbs {
            let words = |[synced, named]: [bool; 2]| match (synced, named) {
                (true, true) => "all works",
                (true, false) => "in sync, not named",
                (false, true) => "out of sync",
                (false, false) => "out of sync, not named",
            };
            let lookup = words(works(&api_lab, resource, verb, "lookup")?);
            // The modes differ for pods and nodes.
            let watch = match resource {
                "pods" | "nodes" => words(works(&api_lab, resource, verb, "watch")?),
                _ => lookup,
            };
            let row = format!("| {verb} {resource} | {watch} | {lookup} |");
            if !page.contains(&row) {
                missing.push(row);
            }
        }
    }
    assert!(missing.is_empty(), "docs/security.md has not the rows\n{}", missing.join("\n"));
    Ok(())
}
