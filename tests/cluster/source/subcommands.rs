//! The subcommands that evaluate policies, on a live cluster.

use std::process::{Command, Output};

use anyhow::Result;
use netpol_trace_tests::{agent, cluster, require};

use super::{ApiLab, policy};

fn run(api_lab: &ApiLab, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(agent::binary()?);
    command.args(arguments).arg("--kubeconfig").arg(api_lab.plane.kubeconfig());
    Ok(command.output()?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn explain_lint_suggest_and_doctor_read_the_live_cluster() -> Result<()> {
    require!(cluster::can_run(&[]));
    let api_lab = ApiLab::start()?;
    let ends = ["--from", "lab/client", "--to", "lab/server", "--port", "5000/UDP"];
    let explained = run(&api_lab, &[&["explain"][..], &ends].concat())?;
    let out = text(&explained.stdout);
    assert_eq!(explained.status.code(), Some(1), "{out}{}", text(&explained.stderr));
    assert!(out.contains("DENIED") && out.contains("lab/deny-server"), "{out}");

    // The verdict with an edited policy on top.
    let dir = tempfile::tempdir()?;
    let mut open = policy("deny-server", "server");
    open["spec"]["ingress"] = serde_json::json!([{}]);
    let file = dir.path().join("open.json");
    std::fs::write(&file, open.to_string())?;
    let file = file.display().to_string();
    let edited = run(&api_lab, &[&["explain", "--manifests", &file][..], &ends].concat())?;
    assert_eq!(edited.status.code(), Some(0), "{}{}", text(&edited.stdout), text(&edited.stderr));

    let suggested = run(&api_lab, &[&["suggest"][..], &ends].concat())?;
    assert_eq!(suggested.status.code(), Some(0), "{}", text(&suggested.stderr));
    assert!(text(&suggested.stdout).contains("kind: NetworkPolicy"), "{}", text(&suggested.stdout));

    api_lab.apply(&policy("typo", "sever"))?;
    let linted = run(&api_lab, &["lint"])?;
    let out = text(&linted.stdout);
    assert_eq!(linted.status.code(), Some(1), "{out}{}", text(&linted.stderr));
    assert!(out.contains("lab/networkpolicies/typo: ") && out.contains("a live cluster"), "{out}");

    let doctor = run(&api_lab, &["doctor", "-o", "json"])?;
    let findings: serde_json::Value = serde_json::from_slice(&doctor.stdout)?;
    let api = findings.as_array().into_iter().flatten().find(|finding| finding["check"] == "api_server");
    assert!(api.is_some_and(|f| f["status"] == "ok" && f["found"].to_string().contains("as admin")), "{api:?}");
    Ok(())
}

#[test]
fn a_cluster_that_cannot_be_read_is_an_error_that_says_why() -> Result<()> {
    require!(cluster::can_run(&[]));
    let api_lab = ApiLab::start()?;
    api_lab.plane.server.kill()?;
    let ends = ["--from", "lab/client", "--to", "lab/server", "--port", "80"];
    let away = run(&api_lab, &[&["explain"][..], &ends].concat())?;
    assert_eq!(away.status.code(), Some(2));
    // Refused or reset: the port may not be closed yet.
    assert!(text(&away.stderr).contains("cannot read the cluster: "), "{}", text(&away.stderr));
    assert!(text(&away.stderr).contains("Connection re"), "{}", text(&away.stderr));
    let context = run(&api_lab, &[&["explain", "--context", "nowhere"][..], &ends].concat())?;
    assert_eq!(context.status.code(), Some(2));
    assert!(text(&context.stderr).contains("nowhere"), "{}", text(&context.stderr));
    Ok(())
}
