//! Packet accounting: every packet that the agent matched is in its records or in a declared loss.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};

use crate::agent::{self, Run};
use crate::record::{Record, packets};

impl Run {
    /// The status with which the agent ended.
    pub fn stopped(&self) -> Result<&Record> {
        let last = self.records.last().context("the agent wrote nothing")?;
        anyhow::ensure!(last.text("/phase") == "stopped", "the last record is not the status `stopped`: {last}");
        Ok(last)
    }

    /// Packets that this run declares lost, including the estimate of recursion misses.
    pub fn lost(&self) -> Result<u64> {
        let stopped = self.stopped()?;
        let total = |name: &str| stopped.number(&format!("/totals/{name}")).with_context(|| format!("no {name}"));
        Ok(total("kernel/lost")? + total("kernel/recursion_misses")? + total("agent/lost")?)
    }

    /// Fails unless the agent exited with 0 and its last status adds up and agrees with its records.
    pub fn balance(&self) -> Result<()> {
        anyhow::ensure!(self.exit.success(), "the agent ended with {}; stderr:\n{}", self.exit, self.stderr);
        let wrong = imbalances(self)?;
        anyhow::ensure!(wrong.is_empty(), "{}\nlast status: {}", wrong.join("\n"), self.stopped()?);
        // The agent's own check must agree.
        let answer = self.verify_log()?;
        anyhow::ensure!(answer.status.success(), "verify-log: {}", String::from_utf8_lossy(&answer.stdout));
        Ok(())
    }

    /// Runs `netpol-trace verify-log` on these records.
    pub fn verify_log(&self) -> Result<Output> {
        let mut command = Command::new(agent::binary()?);
        command.args(["verify-log", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().context("start verify-log")?;
        let mut input = child.stdin.take().context("its standard input")?;
        for record in &self.records {
            writeln!(input, "{record}")?;
        }
        drop(input);
        Ok(child.wait_with_output()?)
    }

    /// Fails unless the packets that a rule counted are in these records or declared lost.
    pub fn account_for<'a>(
        &self,
        what: &str,
        counted: u64,
        records: impl IntoIterator<Item = &'a Record>,
    ) -> Result<()> {
        let (recorded, lost) = (packets(records), self.lost()?);
        anyhow::ensure!(
            recorded <= counted && counted <= recorded + lost,
            "{what}: nft counted {counted} packets, the records hold {recorded}, declared lost {lost}"
        );
        Ok(())
    }
}

/// The causes that are written without `--all-drops`.
pub const WRITTEN: &[&str] =
    &["policy", "disagrees", "enforcer_unavailable", "service_without_endpoints", "connection_unknown", "unknown"];

/// What does not add up in a run that ended cleanly, one line each.
pub fn imbalances(run: &Run) -> Result<Vec<String>> {
    let stopped = run.stopped()?;
    let total = |name: &str| stopped.number(&format!("/totals/{name}")).with_context(|| format!("no totals/{name}"));
    let (seen, matched) = (total("kernel/seen")?, total("kernel/matched")?);
    let (emitted, aggregated, kernel_lost) =
        (total("kernel/emitted")?, total("kernel/aggregated")?, total("kernel/lost")?);
    let (read, written, filtered) = (total("agent/read")?, total("agent/written")?, total("agent/filtered")?);
    let (held, agent_lost) = (total("agent/held")?, total("agent/lost")?);
    let declared: u64 = run
        .records
        .iter()
        .filter(|record| record.kind() == "loss" && record.value()["estimate"] != true)
        // Losses of connections and answers (tc hook) are not losses of dropped packets.
        .filter(|record| record.value()["of"].is_null())
        .filter_map(|record| record.number("/count"))
        .sum();

    let mut wrong = Vec::new();
    let mut equal = |what: &str, left: u64, right: u64| {
        if left != right {
            wrong.push(format!("{what}: {left} is not {right}"));
        }
    };
    equal("kernel: matched = emitted + aggregated + lost", matched, emitted + aggregated + kernel_lost);
    equal("agent: read = written + held + lost", read, written + held + agent_lost);
    equal("between: read = emitted + aggregated", read, emitted + aggregated);
    equal("held at the end", held, 0);
    equal("packets in records = written - filtered", packets(&run.records), written.saturating_sub(filtered));
    // The kernel counts packets of the other causes without making a record.
    for cause in WRITTEN {
        let of_cause = packets(run.records.iter().filter(|record| record.cause() == *cause));
        let counted = stopped.number(&format!("/causes/{cause}")).unwrap_or_default();
        equal(&format!("packets in records with cause {cause} = causes"), of_cause, counted);
    }
    equal("loss records = lost", declared, kernel_lost + agent_lost);
    if seen < matched {
        wrong.push(format!("kernel: seen {seen} is less than matched {matched}"));
    }
    for (expected, record) in (1..).zip(&run.records) {
        if record.number("/seq") != Some(expected) {
            wrong.push(format!("seq: expected {expected}: {record}"));
        }
    }
    let ids: BTreeSet<&str> = run.records.iter().map(|record| record.text("/id")).collect();
    if ids.len() != run.records.len() {
        wrong.push("ids are not unique".to_owned());
    }
    if let Some(stray) = run.records.iter().find(|record| record.text("/run") != stopped.text("/run")) {
        wrong.push(format!("another run's record: {stray}"));
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn run(lines: &[&str]) -> Run {
        let records = lines.iter().map(|line| Record::parse(line).unwrap()).collect();
        Run { records, stderr: String::new(), exit: ExitStatus::from_raw(0) }
    }

    const DROP: &str =
        r#"{"schema":"netpol-trace/v1","kind":"drop","run":"a","id":"a/1","seq":1,"count":3,"cause":"policy"}"#;
    const STOPPED: &str = r#"{"schema":"netpol-trace/v1","kind":"status","run":"a","id":"a/2","seq":2,"phase":"stopped",
        "totals":{"kernel":{"seen":9,"matched":4,"emitted":1,"aggregated":3,"lost":0,"recursion_misses":0},
        "agent":{"read":4,"written":4,"filtered":1,"held":0,"lost":0}},"causes":{"policy":3,"not_policy":1}}"#;

    #[test]
    fn a_good_run_balances() {
        assert_eq!(imbalances(&run(&[DROP, STOPPED])).unwrap(), [""; 0]);
    }

    #[test]
    fn lost_connections_are_not_lost_packets() {
        let loss = |of: &str| {
            let line = r#"{"schema":"netpol-trace/v1","kind":"loss","run":"a","id":"a/2","seq":2,"count":7"#;
            let stopped = STOPPED.replacen("a/2", "a/3", 1).replacen("\"seq\":2", "\"seq\":3", 1);
            imbalances(&run(&[DROP, &format!("{line}{of}}}"), &stopped])).unwrap()
        };
        assert_eq!(loss(r#","of":"connections""#), [""; 0]);
        assert_ne!(loss(""), [""; 0], "a lost packet was not noticed");
    }

    #[test]
    fn a_change_of_any_term_is_noticed() {
        for (from, to) in [
            ("\"matched\":4", "\"matched\":5"),
            ("\"seen\":9", "\"seen\":3"),
            ("\"read\":4", "\"read\":5"),
            ("\"filtered\":1", "\"filtered\":0"),
            ("\"held\":0", "\"held\":1"),
            ("\"policy\":3", "\"policy\":2"),
            ("\"seq\":2", "\"seq\":3"),
            ("a/2", "a/1"),
            ("\"run\":\"a\"", "\"run\":\"b\""),
        ] {
            let changed = STOPPED.replacen(from, to, 1);
            assert_ne!(imbalances(&run(&[DROP, &changed])).unwrap(), [""; 0], "{from} -> {to} was not noticed");
        }
        assert!(imbalances(&run(&[DROP])).is_err(), "no `stopped`");
    }
}
