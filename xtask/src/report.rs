//! Steps, each with its name, result and time, and the sum at the end.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::machine;

/// How many tests passed, failed, and were skipped with which reason. A step without tests of its own counts as one.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
    pub skips: Vec<String>,
}

impl Tally {
    pub fn passed() -> Tally {
        Tally { passed: 1, ..Tally::default() }
    }

    pub fn failed() -> Tally {
        Tally { failed: 1, ..Tally::default() }
    }

    pub fn skipped(why: impl Into<String>) -> Tally {
        Tally { skips: vec![why.into()], ..Tally::default() }
    }

    pub fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skips.extend(other.skips);
    }

    /// Reads a line of a test program's output: libtest's sums, and the skips that the tests themselves tell
    /// (`NAME: skipped: WHY`), which libtest counts as passed.
    fn read(&mut self, line: &str) {
        let number = |text: &str, unit: &str| {
            text.split(';').find_map(|part| part.trim().strip_suffix(unit)?.trim().rsplit(' ').next()?.parse().ok())
        };
        if let Some(sums) = line.strip_prefix("test result: ") {
            self.passed += number(sums, "passed").unwrap_or(0);
            self.failed += number(sums, "failed").unwrap_or(0);
            let ignored: usize = number(sums, "ignored").unwrap_or(0);
            self.skips.extend((0..ignored).map(|_| "marked `#[ignore]`".to_owned()));
        } else if let Some((test, why)) = line.split_once(": skipped: ") {
            // After `test NAME ... ` when the program runs its tests one by one.
            let test = test.rsplit(' ').next().unwrap_or(test);
            self.skips.push(format!("{test}: {why}"));
        }
    }

    /// Skips that tests told stand among libtest's passed ones.
    fn settle(&mut self) {
        let told = self.skips.iter().filter(|skip| !skip.starts_with("marked")).count();
        self.passed = self.passed.saturating_sub(told);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skips.len())
    }
}

/// Runs a test program, shows its output and counts its tests.
///
/// # Errors
/// When it can't be started. That it fails is part of the count.
pub fn count(command: &mut Command) -> Result<Tally> {
    let shown = machine::show(command);
    let (reader, writer) = std::io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("can't run {shown}"))?;
    // The command holds the pipe's writing end; the reader must see its end when the child is gone.
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut tally = Tally::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.read(&line);
    }
    tally.settle();
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
    done: Vec<(String, Tally, Duration)>,
}

impl Steps {
    pub fn new() -> Steps {
        Steps { start: Instant::now(), done: Vec::new() }
    }

    /// Runs one step. An error counts as failed and is shown; later steps run all the same.
    pub fn step(&mut self, name: &str, work: impl FnOnce() -> Result<Tally>) {
        println!("\n=== {name}");
        let _ = std::io::stdout().flush();
        let start = Instant::now();
        let tally = work().unwrap_or_else(|error| {
            println!("error: {error:#}");
            Tally::failed()
        });
        let took = start.elapsed();
        println!("--- {name}: {tally} ({})", seconds(took));
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
                // A crate without tests or examples.
                _ => continue,
            };
            println!("{mark:<8}{name:<width$}  {:>7}  {tally}", seconds(took));
            sum.add(tally);
        }
        for skip in &sum.skips {
            println!("skipped: {skip}");
        }
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

    fn check(output: &str, passed: usize, failed: usize, skips: &[&str]) {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.read(line));
        tally.settle();
        assert_eq!(tally, Tally { passed, failed, skips: skips.iter().map(|s| (*s).to_owned()).collect() });
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
        );
    }

    #[test]
    fn a_told_skip_is_not_a_pass() {
        check(
            "demo::drops: skipped: the lab needs root\n\
             test demo::drops ... ok\n\
             test lab::nft ... lab::nft: skipped: no nft\n\
             test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            1,
            0,
            &["demo::drops: the lab needs root", "lab::nft: no nft", "marked `#[ignore]`"],
        );
    }
}
