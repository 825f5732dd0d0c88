//! `cargo xtask compatibility`: writes docs/compatibility.md, which says for each kernel how every mechanism's drops are recorded.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::setup::{self, Need};
use crate::{image, machine, test, vm};

/// Run one test per mechanism on this kernel and in virtual machines, and write the results to docs/compatibility.md.
///
/// Sections of other kernels stay as they are. The exit code is 1 when a row is wrong.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Version prefixes of Debian kernels to boot, or `here` for this machine's own
    #[arg(value_name = "KERNEL", default_values = [HERE].iter().chain(&vm::KERNELS))]
    kernels: Vec<String>,
    /// Read this output of the lab's `rows::` tests instead of running them
    #[arg(long, value_name = "FILE", conflicts_with = "kernels")]
    log: Option<PathBuf>,
    /// The file has only some rows: the kernel's other rows, and sections of its other builds, stay as they are
    #[arg(long, requires = "log")]
    part: bool,
}

/// This machine's own kernel.
const HERE: &str = "here";
const DOCUMENT: &str = "docs/compatibility.md";
/// The beginning of the last line of a complete run.
const END: &str = "test result: ";
const INTRODUCTION: &str = "# What is seen on which kernel

Made by `cargo xtask compatibility`; do not edit. Each row is a test in `tests/lab/rows`: a real enforcer drops real packets in
network namespaces, and the test compares the records with the enforcer's own counter.

- Recall: of the packets that a mechanism dropped, the part that has a record with the right mechanism, hook, action, cause, and
  both addresses.
- Precision: of the packets whose record has cause `policy`, the part that a policy's enforcer dropped. In rows without a policy,
  every packet with cause `policy` counts against it.
- A skipped row gives the reason: the kernel lacks the mechanism, or does not show its drops. In the second case the test checks that no
  packet got cause `policy`.

## What a kernel does not show

| kernel | not shown | what records have instead |
|---|---|---|
| before 5.16 | nothing: its nftables has no egress hook on a device | |
| before 5.17 | the drop reason | only drops in the code of enforcers are recorded; other drops, and those of a \
cgroup's ingress program, are not |
| before 6.6 | drops by Open vSwitch | nothing: they look like delivered packets. `netpol-trace doctor` and `status` records have \
\"no coverage\" where there is a datapath |
| before 6.6 | nothing: it has no TCX; drops by programs at clsact are seen | |
| before 6.7 | nothing: it has no netkit | |
| before 6.7, except some updates of 6.1 | whether nftables or iptables-legacy freed a packet: both do it at the same call site | mechanism `netfilter`, unless the agent can read the \
rules of the packet's network namespace |
| in lockdown, or without BPF trampolines | the packets that REJECT sends; from 6.10 on IPv4's ICMP errors are shown | the action by the \
rules: `unknown` where a rule that drops and a rule that rejects may have matched |

## What to know when you compare

- A record stands for packets, not connections. If an ICMP error rejects a SYN while `connect` holds the client's socket, the client
  sends a second SYN: two packets, and both are dropped.
- The kernel limits how many ICMP errors it sends (`net.ipv4.icmp_ratelimit`, `net.ipv4.icmp_msgs_per_sec`). With trampolines a
  packet of a REJECT rule has action `reject` even if the kernel did not send the error. Where only sent errors are shown, a packet without
  one has the action by the rules.
- kube-router 2.10.0, like others, drops packets that conntrack finds invalid in the hook where it rejects the others. Where the packets that
  REJECT sends are not shown, the rules alone can't tell which of the two happened: `unknown`.
- A kernel's section can be of several runs. A row that is missing was not run on that build.
- A drop by a netkit device's program has no drop reason of its own; the call site identifies it. A pod's packets meet that program before the tc
  hook, which sees only packets that the program passes to the node's side.
- Open vSwitch is tested as the datapath alone: flows made by `ovs-dpctl`, without a daemon. A flow without actions drops the packet.
";

pub fn run(args: &Args) -> Result<ExitCode> {
    let logs = match &args.log {
        Some(path) => vec![fs::read_to_string(path).with_context(|| path.display().to_string())?],
        None => run_rows(&args.kernels)?,
    };
    let mut seen = BTreeMap::new();
    for log in &logs {
        if !log.contains(END) {
            bail!("the tests did not run to their end; the last line is: {}", log.lines().last().unwrap_or_default());
        }
        let rows = parse(log);
        if rows.is_empty() {
            bail!("the tests' output has no row; the last line is: {}", log.lines().last().unwrap_or_default());
        }
        seen.extend(rows);
    }
    let path = machine::root().join(DOCUMENT);
    let mut sections = sections(&fs::read_to_string(&path).unwrap_or_default());
    let mut good = true;
    for (kernel, rows) in &mut seen {
        if args.part {
            let mut others = sections.get(kernel).map(|text| rows_of(text)).unwrap_or_default();
            others.retain(|other| !rows.iter().any(|row| row.name == other.name));
            rows.append(&mut others);
            rows.sort_by(|a, b| a.name.cmp(&b.name));
        } else {
            // This build of the kernel replaces the section of an earlier one.
            sections.retain(|other, _| line(other) != line(kernel));
        }
        let text = section(rows);
        println!("Linux {kernel}\n\n{text}");
        good &= rows.iter().all(RowResult::is_good);
        sections.insert(kernel.clone(), text);
    }
    let mut document = INTRODUCTION.to_owned();
    for (kernel, text) in sections {
        write!(document, "\n## Linux {kernel}\n\n{text}")?;
    }
    fs::create_dir_all(path.parent().unwrap_or(&path))?;
    fs::write(&path, document)?;
    println!("Written to {DOCUMENT}");
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The output of the rows' tests on each kernel.
fn run_rows(kernels: &[String]) -> Result<Vec<String>> {
    setup::ensure(&[Need::Build, Need::Lab])?;
    let programs = test::build()?;
    let release = if kernels.iter().any(|kernel| kernel != HERE) { Some(image::release()?) } else { None };
    let lab =
        programs.iter().find(|program| program.target == "lab").context("cargo built no test program of the lab")?;
    let mut logs = Vec::new();
    for kernel in kernels {
        let mut command = if kernel == HERE {
            let mut command = Command::new(&lab.path);
            command.arg("rows::");
            command
        } else {
            let agent = release.as_deref().context("the release for virtual machines")?;
            match vm::command(kernel, agent, &programs, &["rows::"])? {
                Ok(command) => command,
                Err(why) => bail!("no virtual machine with kernel {kernel}: {why}"),
            }
        };
        println!("Kernel {kernel} …");
        let output = command.stdin(Stdio::null()).output().context("can't run the rows")?;
        logs.push([output.stderr, output.stdout].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat());
    }
    Ok(logs)
}

/// The result of one row's test, or why there is none.
#[derive(Debug, Clone, PartialEq)]
struct RowResult {
    name: String,
    expected: Vec<String>,
    counted: u64,
    recorded: u64,
    right: u64,
    wrongly_policy: u64,
    skipped: Option<String>,
    /// The test failed before it had figures to compare.
    failed: bool,
}

impl RowResult {
    /// A row without figures: skipped or failed.
    fn without(name: &str) -> RowResult {
        RowResult {
            name: short(name),
            expected: Vec::new(),
            counted: 0,
            recorded: 0,
            right: 0,
            wrongly_policy: 0,
            skipped: None,
            failed: false,
        }
    }

    fn is_good(&self) -> bool {
        let all_right = self.right == self.counted && self.recorded == self.counted && self.wrongly_policy == 0;
        !self.failed && (self.skipped.is_some() || all_right)
    }

    fn is_policy(&self) -> bool {
        self.expected.get(3).is_some_and(|cause| cause == "policy")
    }
}

/// Reads rows by kernel. A skip or a failure belongs to the kernel of the rows in the same log.
fn parse(log: &str) -> BTreeMap<String, Vec<RowResult>> {
    let mut kernels: BTreeMap<String, Vec<RowResult>> = BTreeMap::new();
    let mut skips: Vec<RowResult> = Vec::new();
    for line in log.lines() {
        if let Some((_, json)) = line.split_once("row: ")
            && let Ok(value) = serde_json::from_str::<Value>(json)
        {
            let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
            let number = |name: &str| value[name].as_u64().unwrap_or_default();
            kernels.entry(text("kernel")).or_default().push(RowResult {
                name: short(&text("row")),
                expected: ["mechanism", "hook", "action", "cause"].map(text).to_vec(),
                counted: number("counted"),
                recorded: number("recorded"),
                right: number("right"),
                wrongly_policy: number("wrongly_policy"),
                ..RowResult::without("")
            });
        } else if let Some((test, why)) = line.split_once(": skipped: ")
            // With one thread the line begins with libtest's `test NAME ... `.
            && let Some(at) = test.rfind("rows::")
        {
            skips.push(RowResult { skipped: Some(why.chars().take(120).collect()), ..RowResult::without(&test[at..]) });
        } else if let Some(name) = line.strip_prefix("test rows::").and_then(|line| line.strip_suffix(" ... FAILED")) {
            skips.push(RowResult { failed: true, ..RowResult::without(name) });
        }
    }
    if let Some(rows) = kernels.values_mut().next_back() {
        skips.retain(|skip| !rows.iter().any(|row| row.name == skip.name));
        rows.append(&mut skips);
    }
    for rows in kernels.values_mut() {
        rows.sort_by(|a, b| a.name.cmp(&b.name));
    }
    kernels
}

/// The part of a release that a distribution's updates don't change: version and flavour.
fn line(release: &str) -> (Vec<&str>, &str) {
    let version = release.split(|c: char| !c.is_ascii_digit()).take(2).collect();
    (version, release.rsplit_once('-').map_or("", |(_, flavour)| flavour))
}

fn short(name: &str) -> String {
    name.rsplit_once("rows::").map_or(name, |(_, row)| row).replace("::", ": ").replace('_', " ")
}

fn section(rows: &[RowResult]) -> String {
    let mut text = "| mechanism | dropped | recorded right | recall | called policy | rightly | precision |\n\
                    |---|---|---|---|---|---|---|\n"
        .to_owned();
    let mut mechanisms: BTreeMap<&str, Vec<&RowResult>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.skipped.is_none() && !row.failed) {
        let name = row.expected.first().map(String::as_str).filter(|name| !name.is_empty());
        let without = if row.is_policy() { "one of several" } else { "healthy traffic" };
        mechanisms.entry(name.unwrap_or(without)).or_default().push(row);
    }
    for (mechanism, rows) in mechanisms {
        let sum = |of: fn(&RowResult) -> u64| rows.iter().map(|row| of(row)).sum::<u64>();
        let (counted, right) = (sum(|row| row.counted), sum(|row| row.right));
        let rightly = sum(|row| if row.is_policy() { row.right } else { 0 });
        let called = rightly
            + sum(|row| if row.is_policy() { row.recorded - row.right.min(row.recorded) } else { 0 })
            + sum(|row| row.wrongly_policy);
        let name = if mechanism == "unknown" { "none (the kernel itself)" } else { mechanism };
        let _ = writeln!(
            text,
            "| {name} | {counted} | {right} | {} | {called} | {rightly} | {} |",
            percent(right, counted),
            percent(rightly, called)
        );
    }
    text += "\n| row | expected: mechanism, hook, action, cause | dropped | recorded | right | result |\n|---|---|---|---|---|---|\n";
    for row in rows {
        let expected = row.expected.iter().map(|part| if part.is_empty() { "any" } else { part }).collect::<Vec<_>>();
        let result = match &row.skipped {
            Some(why) => format!("skipped: {}", why.replace('|', "/")),
            None if row.failed => "FAILED".to_owned(),
            None if row.is_good() => "ok".to_owned(),
            None => format!("WRONG, {} wrongly called a policy's", row.wrongly_policy),
        };
        let expected =
            if expected.iter().all(|part| *part == "any") { "no record".to_owned() } else { expected.join(", ") };
        let expected = if row.expected.is_empty() { String::new() } else { expected };
        let (counted, recorded, right) = (row.counted, row.recorded, row.right);
        let _ = writeln!(text, "| {} | {expected} | {counted} | {recorded} | {right} | {result} |", row.name);
    }
    text
}

/// The rows of a kernel's section.
fn rows_of(section: &str) -> Vec<RowResult> {
    let lines = section.lines().skip_while(|line| !line.starts_with("| row |")).skip(2);
    lines.filter_map(row_of).collect()
}

fn row_of(line: &str) -> Option<RowResult> {
    let cells: Vec<&str> = line.strip_prefix("| ")?.strip_suffix(" |")?.split('|').map(str::trim).collect();
    let [name, expected, counted, recorded, right, result] = cells.as_slice() else { return None };
    let expected = match *expected {
        "" => Vec::new(),
        "no record" => vec![String::new(); 4],
        words => words.split(", ").map(|word| if word == "any" { "" } else { word }.to_owned()).collect(),
    };
    let wrong = result.strip_prefix("WRONG, ").and_then(|rest| rest.split(' ').next());
    Some(RowResult {
        name: (*name).to_owned(),
        expected,
        counted: counted.parse().ok()?,
        recorded: recorded.parse().ok()?,
        right: right.parse().ok()?,
        wrongly_policy: wrong.and_then(|number| number.parse().ok()).unwrap_or(0),
        skipped: result.strip_prefix("skipped: ").map(str::to_owned),
        failed: *result == "FAILED",
    })
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.0} %", 100.0 * part as f64 / whole as f64) }
}

/// The sections of the document, by kernel.
fn sections(document: &str) -> BTreeMap<String, String> {
    let parts = document.split("\n## Linux ").skip(1);
    parts
        .filter_map(|part| part.split_once("\n\n"))
        .map(|(kernel, text)| (kernel.to_owned(), text.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"test rows::tc::a ... row: {"row":"lab::rows::tc::a","mechanism":"tc","hook":"ingress","action":"drop","cause":"policy","counted":6,"recorded":6,"right":5,"wrongly_policy":0,"kernel":"6.18.1"}
row: {"row":"lab::rows::tc::b","mechanism":"tc","hook":"","action":"","cause":"not_policy","counted":3,"recorded":3,"right":2,"wrongly_policy":1,"kernel":"6.18.1"}
test rows::x::c_d ... lab::rows::x::c_d: skipped: no such thing
ok
test rows::x::e ... FAILED
"#;

    #[test]
    fn a_wrong_packet_shows_in_both_figures() {
        let seen = parse(LOG);
        let text = section(&seen["6.18.1"]);
        assert!(text.contains("| tc | 9 | 7 | 78 % | 7 | 5 | 71 % |"), "{text}");
        assert!(text.contains("| x: c d |  | 0 | 0 | 0 | skipped: no such thing |"), "{text}");
        assert!(text.contains("| x: e |  | 0 | 0 | 0 | FAILED |"), "{text}");
        let good: Vec<_> = seen["6.18.1"].iter().filter(|row| row.is_good()).map(|row| &*row.name).collect();
        assert_eq!(good, ["x: c d"]);
    }

    #[test]
    fn rows_that_stay_are_read_back() {
        let rows = &parse(LOG)["6.18.1"];
        assert_eq!(&rows_of(&section(rows)), rows);
    }

    #[test]
    fn other_kernels_stay() {
        let old = format!("{INTRODUCTION}\n## Linux 6.1\n\n| a |\n\n## Linux 6.18.1\n\n| b |\n");
        assert_eq!(
            sections(&old),
            BTreeMap::from([("6.1".into(), "| a |\n".into()), ("6.18.1".into(), "| b |\n".into())])
        );
    }
}
