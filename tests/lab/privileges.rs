//! Removes each capability of the DaemonSet in turn, from uid 0 without other capabilities as in a container, and compares the effect with
//! docs/security.md.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use netpol_trace_tests::agent::{self, Agent, Run};
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::record::Record;
use netpol_trace_tests::{can_run_lab, has_program, iptables, require, traffic};

/// By number: setpriv's names for the newer ones depend on the libcap-ng that it was built with.
const NET_ADMIN: u8 = 12;
const NET_RAW: u8 = 13;
pub const SYSLOG: u8 = 34;
pub const PERFMON: u8 = 38;
pub const BPF: u8 = 39;
/// All that the manifests in deploy/ add, with hostNetwork.
const ALL: [u8; 5] = [BPF, PERFMON, SYSLOG, NET_ADMIN, NET_RAW];

/// The agent as uid 0 with only these capabilities, which no later exec can widen.
pub fn confined(capabilities: &[u8], arguments: &[&str]) -> Result<Command> {
    let added: String = capabilities.iter().map(|number| format!(",+cap_{number}")).collect();
    let mut command = Command::new("setpriv");
    command.arg(format!("--bounding-set=-all{added}")).args(["--inh-caps=-all", "--no-new-privs"]);
    command.arg(agent::binary()?).args(arguments);
    Ok(command)
}

pub fn can_confine() -> Result<()> {
    can_run_lab()?;
    has_program("setpriv", "util-linux")
}

/// A run of the agent in the node's namespace, as with hostNetwork, with one drop by policy.
fn run_with(capabilities: &[u8]) -> Result<Run> {
    let pair = Pair::start(DENY)?;
    // So that there is a table of each kind to read.
    iptables::load(pair.lab.node(), "legacy", "-A INPUT -p udp --dport 9 -j DROP")?;
    let manifests = pair.manifests().to_string_lossy().into_owned();
    let command = confined(
        capabilities,
        &["agent", "--aggregation-window", "1s", "--all-drops", "--hooks", "kfree_skb,tc", "--manifests", &manifests],
    )?;
    let agent = pair.lab.node().run(move || Agent::spawn(command))?;
    let started = agent.wait_for("its start", |records| records.iter().any(|r| r.text("/phase") == "started"));
    if started.is_err() {
        return agent.finish();
    }
    traffic::udp(&pair.client()?.netns, CLIENT.into(), [(SERVER, 5000).into()], 32)?;
    agent.wait_for("the drop", |records| records.iter().any(dropped))?;
    agent.stop()
}

fn dropped(record: &Record) -> bool {
    record.is_drop() && record.number("/destination/port") == Some(5000)
}

/// The state of a hook, or of the rulesets, in the first status.
fn state<'a>(run: &'a Run, name: &str) -> Result<&'a str> {
    let status = run.records.iter().find(|record| record.text("/phase") == "started").context("a start")?;
    let hook = status
        .list("/hooks")
        .iter()
        .find(|hook| hook["name"] == name)
        .with_context(|| format!("hook {name}: {status}"))?;
    hook["state"].as_str().context("a state")
}

fn the_drop(run: &Run) -> Result<&Record> {
    run.records.iter().find(|record| dropped(record)).context("the drop's record")
}

/// What works, in the page's columns: drops, their location, rulesets, tc.
fn works(run: &Run) -> Result<[bool; 4]> {
    let Ok(record) = the_drop(run) else { return Ok([false; 4]) };
    let rulesets = state(run, "rulesets")? == "read";
    Ok([true, !record.text("/kernel/location").is_empty(), rulesets, !["off", "refused"].contains(&state(run, "tc")?)])
}

/// Whether this kernel shows its addresses to processes with perf's capability, and to everybody.
fn symbols_are_for_all() -> bool {
    let number = |name: &str| -> Option<i32> {
        std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?.trim().parse().ok()
    };
    number("kptr_restrict") == Some(0) && number("perf_event_paranoid").is_some_and(|paranoid| paranoid <= 1)
}

#[test]
fn each_capability_is_for_what_the_page_says() -> Result<()> {
    require!(can_confine());
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/security.md"))?;
    let rows = [
        ("none", 0),
        ("NET_RAW", NET_RAW),
        ("NET_ADMIN", NET_ADMIN),
        ("SYSLOG", SYSLOG),
        ("PERFMON", PERFMON),
        ("BPF", BPF),
    ];
    for (name, without) in rows {
        let capabilities: Vec<u8> = ALL.into_iter().filter(|capability| *capability != without).collect();
        if without == SYSLOG && symbols_are_for_all() {
            continue;
        }
        let run = run_with(&capabilities)?;
        let [drops, place, rulesets, tc] = works(&run)
            .with_context(|| format!("without {name}: {}", run.stderr))?
            .map(|works| if works { "yes" } else { "no" });
        let row = format!("| {name} | {drops} | {place} | {rulesets} | {tc} |");
        assert!(page.contains(&row), "docs/security.md has not the row\n{row}\nstderr:\n{}", run.stderr);
        if drops == "no" {
            assert_eq!(run.exit.code(), Some(1), "{}", run.stderr);
            assert!(run.stderr.contains(&format!("CAP_{name}")), "the message names what is missing:\n{}", run.stderr);
            super::lifecycle::quiet(&run.stderr);
        } else {
            run.balance()?;
            assert_eq!(the_drop(&run)?.cause(), "policy");
        }
    }
    Ok(())
}

/// A filter that refuses bpf(2) as the profiles of older container runtimes do, and lets everything else through.
fn refuse_bpf() -> std::io::Result<()> {
    const NUMBER_AT: u32 = 0;
    let number = u32::try_from(libc::SYS_bpf).unwrap_or(u32::MAX);
    let permission = u32::try_from(libc::EPERM).unwrap_or(1);
    let op = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, NUMBER_AT),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | permission),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter live until the calls return; both calls are allowed between fork and exec.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0
    };
    if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn doctor_knows_a_seccomp_profile_that_refuses_bpf() -> Result<()> {
    require!(can_confine());
    let doctor = |filter: bool| -> Result<(Option<i32>, Vec<serde_json::Value>)> {
        let mut command = confined(&ALL, &["doctor", "--output", "json"])?;
        if filter {
            // SAFETY: refuse_bpf makes two system calls and touches nothing else.
            unsafe { command.pre_exec(refuse_bpf) };
        }
        let output = command.output()?;
        Ok((output.status.code(), serde_json::from_slice(&output.stdout)?))
    };
    let seccomp = |findings: &[serde_json::Value]| findings.iter().find(|f| f["check"] == "seccomp").cloned();
    let (code, findings) = doctor(false)?;
    assert_eq!(code, Some(0), "{findings:?}");
    let (code, findings) = doctor(true)?;
    assert_eq!(code, Some(1), "{findings:?}");
    let finding = seccomp(&findings).context("a finding about seccomp")?;
    assert_eq!(finding["status"], "fail", "{finding}");
    let hook = findings.iter().find(|f| f["check"] == "hook").context("a finding about the hook")?;
    assert_eq!(hook["remedy"], "see `seccomp`", "{hook}");
    Ok(())
}
