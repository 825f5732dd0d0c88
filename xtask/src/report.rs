//! Runs steps and reports the name, result and time of each, and the sum at the end.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::machine;
use crate::skips::{self, Machine, Skip};

/// Counts of tests. A step without tests of its own counts as one.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
    pub skips: Vec<Skip>,
    /// Names of the tests that ran, each with its program's: `lab::demo::records_hold_exactly_the_expected_drops`.
    ran: BTreeSet<String>,
    /// Tests that skipped themselves since the last sum. libtest counts them as passed.
    uncounted: usize,
}

impl Tally {
    pub fn passed() -> Tally {
        Tally { passed: 1, ..Tally::default() }
    }

    pub fn failed() -> Tally {
        Tally { failed: 1, ..Tally::default() }
    }

    pub fn skipped(name: &str, reason: impl Into<String>) -> Tally {
        Tally { skips: vec![Skip { name: name.to_owned(), reason: reason.into() }], ..Tally::default() }
    }

    pub fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skips.extend(other.skips);
        self.ran.extend(other.ran);
    }

    /// Reads a line that the test program `target` printed: libtest's results and sums, and the line of a test that skips
    /// itself (`TEST: skipped: REASON`), which libtest counts as passed.
    fn read(&mut self, target: &str, line: &str) {
        let number = |text: &str, unit: &str| {
            text.split(';').find_map(|part| part.trim().strip_suffix(unit)?.trim().rsplit(' ').next()?.parse().ok())
        };
        if let Some(sums) = line.strip_prefix("test result: ") {
            let passed: usize = number(sums, "passed").unwrap_or(0);
            self.passed += passed.saturating_sub(std::mem::take(&mut self.uncounted));
            self.failed += number(sums, "failed").unwrap_or(0);
            return;
        }
        let skip = line.split_once(": skipped: ").map(|(before, reason)| {
            // With one thread the line begins with libtest's `test NAME ... `.
            (before.rsplit(' ').next().unwrap_or(before), reason)
        });
        if let Some((name, reason)) = skip {
            self.uncounted += 1;
            self.skips.push(Skip { name: name.to_owned(), reason: reason.to_owned() });
        } else if let Some((test, result)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            let name = format!("{target}::{test}");
            if result.starts_with("ignored") {
                self.skips.push(Skip { name, reason: "marked `#[ignore]`".to_owned() });
            } else {
                self.ran.insert(name);
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skips.len())
    }
}

/// Runs the test program `target`, shows its output and counts its tests.
///
/// # Errors
/// If the program can't be started. A program that fails counts as a failed test.
pub fn count(target: &str, command: &mut Command) -> Result<Tally> {
    let shown = machine::show(command);
    let (reader, writer) = std::io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("can't run {shown}"))?;
    // The command holds the pipe's writing end. Without these the reader would wait for it after the child has exited.
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let target = target.replace('-', "_");
    let mut tally = Tally::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.read(&target, &line);
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        println!("{shown}: {status}");
        tally.failed += 1;
    }
    Ok(tally)
}

/// The steps of a run.
#[derive(Debug)]
pub struct Steps {
    start: Instant,
    machine: Machine,
    done: Vec<(String, Tally, Duration)>,
    /// Listed skips, each with why the list allows it, and listed tests that ran.
    notes: Vec<String>,
}

impl Steps {
    /// Steps on this machine. `whole` is false when a filter chose some of the tests.
    pub fn new(whole: bool) -> Steps {
        Steps { start: Instant::now(), machine: Machine::Here { whole }, done: Vec::new(), notes: Vec::new() }
    }

    /// Runs one step. An error counts as failed and is shown; later steps run all the same.
    pub fn step(&mut self, name: &str, work: impl FnOnce() -> Result<Tally>) {
        let machine = self.machine.clone();
        self.step_on(&machine, name, work);
    }

    /// Runs one step whose tests run on another machine. Skips that are not on the list of that machine count as failed.
    pub fn step_on(&mut self, machine: &Machine, name: &str, work: impl FnOnce() -> Result<Tally>) {
        println!("\n=== {name}");
        let _ = std::io::stdout().flush();
        let start = Instant::now();
        let mut tally = work().unwrap_or_else(|error| {
            println!("error: {error:#}");
            Tally::failed()
        });
        let checked = skips::check(machine, &tally.skips, &tally.ran);
        tally.skips = checked.listed;
        tally.failed += checked.unlisted.len();
        checked.unlisted.iter().for_each(|message| println!("{message}"));
        let took = start.elapsed();
        println!("--- {name}: {tally} ({})", seconds(took));
        self.notes.extend(tally.skips.iter().map(|Skip { name, reason }| format!("skipped: {name}: {reason}")));
        self.notes.extend(checked.stale.iter().map(|note| format!("note: {note}")));
        self.notes.extend(checked.unlisted);
        self.done.push((name.to_owned(), tally, took));
    }

    /// Prints the steps with their times, the skips with their reasons, and as the last line the sum.
    pub fn finish(self) -> ExitCode {
        let mut sum = Tally::default();
        println!("\n=== Summary ({} in all)", seconds(self.start.elapsed()));
        let width = self.done.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
        for (name, tally, took) in self.done {
            let mark = match &tally {
                Tally { failed: 1.., .. } => "FAILED",
                Tally { passed: 1.., .. } => "ok",
                Tally { skips, .. } if !skips.is_empty() => "skipped",
                // A test program without tests.
                _ => continue,
            };
            println!("{mark:<8}{name:<width$}  {:>7}  {tally}", seconds(took));
            sum.add(tally);
        }
        self.notes.iter().for_each(|note| println!("{note}"));
        println!("{sum}");
        if sum.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f32())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(output: &str, passed: usize, failed: usize, skips: &[(&str, &str)], ran: &[&str]) {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.read("lab", line));
        let skips =
            skips.iter().map(|(name, reason)| Skip { name: (*name).into(), reason: (*reason).into() }).collect();
        let ran = ran.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(tally, Tally { passed, failed, skips, ran, uncounted: 0 });
    }

    #[test]
    fn libtest_sums_are_added() {
        check(
            "running 3 tests\n\
             test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.00s",
            13,
            2,
            &[],
            &[],
        );
    }

    /// libtest ends the line of a test that skipped itself with `ok`, so the test is among those that ran too.
    #[test]
    fn a_skip_is_not_a_pass() {
        check(
            "lab::demo::drops: skipped: the lab needs root\n\
             test demo::drops ... ok\n\
             test tc::old ... ignored\n\
             test rows::nft ... lab::rows::nft: skipped: no nft\n\
             ok\n\
             test rows::ip ... FAILED\n\
             test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            1,
            1,
            &[
                ("lab::demo::drops", "the lab needs root"),
                ("lab::tc::old", "marked `#[ignore]`"),
                ("lab::rows::nft", "no nft"),
            ],
            &["lab::demo::drops", "lab::rows::ip"],
        );
    }

    #[test]
    fn an_unlisted_skip_fails_the_run() {
        let mut steps = Steps::new(true);
        steps.step_on(&Machine::vm("6.12", false), "a step", || Ok(Tally::skipped("lab::tc::old", "no reason")));
        let [(_, tally, _)] = &steps.done[..] else { panic!("{steps:?}") };
        assert_eq!((tally.failed, tally.skips.len()), (1, 0));
        assert_eq!(steps.finish(), ExitCode::FAILURE);
    }

    #[test]
    fn a_listed_skip_does_not() {
        let mut steps = Steps::new(true);
        let skip = || Ok(Tally::skipped("lab::rows::netkit::netkit_to_a_pod", "no netkit"));
        steps.step_on(&Machine::vm("6.1", false), "a step", skip);
        let [(_, tally, _)] = &steps.done[..] else { panic!("{steps:?}") };
        assert_eq!((tally.failed, tally.skips.len()), (0, 1));
        assert_eq!(steps.finish(), ExitCode::SUCCESS);
    }
}
