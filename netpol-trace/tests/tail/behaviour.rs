//! `tail` as a process: exit codes, messages on stderr, closed pipes and signals.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};

use crate::log;

fn tail(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netpol-trace"));
    command.arg("tail").args(arguments).env_remove("NO_COLOR").env_remove("RUST_LOG");
    command
}

fn on_log(arguments: &[&str]) -> (String, String, Option<i32>) {
    let Output { stdout, stderr, status } =
        tail(&[&[log().to_str().unwrap()], arguments].concat()).stdin(Stdio::null()).output().unwrap();
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap(), status.code())
}

#[test]
fn a_file_with_selections() {
    let (all, notes, code) = on_log(&[]);
    assert_eq!(code, Some(0));
    for expected in [
        "note: 1 line is not a netpol-trace record and was skipped (",
        "log.jsonl:31)",
        "note: 1 record came more than once and is shown once",
        "note: 2 duplicates hidden: other nodes' agents recorded the same events",
        "drops (",
        "log.jsonl (31 records read)",
    ] {
        assert!(notes.contains(expected), "{expected}: {notes}");
    }
    assert!(!all.contains('\x1b'), "colours without a terminal");
    let (pod, ..) = on_log(&["--pod", "staging/api-84d6c9b7f-h5k2n"]);
    let drops: Vec<_> = pod.lines().filter(|line| line.contains(" DROP ")).collect();
    assert!(!drops.is_empty() && drops.iter().all(|line| line.contains("staging/api-84d6c9b7f-h5k2n")), "{pod}");
    assert!(pod.contains(" LOST "), "{pod}");
    let (same, ..) = on_log(&["-n", "staging", "--pod", "api-84d6c9b7f-h5k2n"]);
    assert_eq!(same, pod);
    let (labels, ..) = on_log(&["-n", "staging", "-l", "app=api", "-o", "json"]);
    assert!(labels.lines().filter(|line| line.contains("\"drop\"")).all(|line| line.contains("\"app\":\"api\"")));
    let (_, notes, code) = on_log(&["--since", "1s"]);
    assert!(
        code == Some(0) && notes.contains("the newest record in the input is from 2026-11-21T12:50:04Z"),
        "{notes}"
    );
}

#[test]
fn mistakes_are_named() {
    for (arguments, expected) in [
        (vec!["--pod", "x"], "NAMESPACE/NAME"),
        (vec!["--cause", "fate"], "expected one of policy"),
        (vec!["-l", "a=(b"], "without its )"),
    ] {
        let (_, stderr, code) = on_log(&arguments);
        assert!(code == Some(2) && stderr.contains(expected), "{arguments:?}: {stderr}");
    }
    let missing = tail(&["/nonexistent.jsonl"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nonexistent.jsonl"));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child =
        tail(&["-", "-o", "json"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut input = child.stdin.take().unwrap();
    input.write_all(&std::fs::read(log()).unwrap()).unwrap();
    // Its input stays open: it ends because nobody reads its output.
    let Output { stderr, status, .. } = child.wait_with_output().unwrap();
    drop(input);
    assert!(status.success(), "{status} {}", String::from_utf8_lossy(&stderr));
    assert!(!String::from_utf8_lossy(&stderr).contains("roken"));
}

/// Reads lines of a child's stdout until one contains `word`.
fn until(child: &mut Child, word: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in BufReader::new(child.stdout.as_mut().unwrap()).lines().map_while(Result::ok) {
        lines.push(line);
        if lines.last().is_some_and(|line| line.contains(word)) {
            return lines;
        }
    }
    panic!("ended before {word:?}: {lines:?}");
}

#[test]
fn a_file_that_grows_is_followed_until_ctrl_c() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let log = std::fs::read_to_string(log()).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    std::fs::write(&path, lines[..2].join("\n") + "\n").unwrap();
    let mut child = tail(&[path.to_str().unwrap(), "-f", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until(&mut child, "05db8ac4/2\"");
    // It reports what it waits for.
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut waiting = String::new();
    stderr.read_line(&mut waiting).unwrap();
    assert!(waiting.contains("waiting for drops from") && waiting.contains("Ctrl-C"), "{waiting}");
    // Half a line, the rest of it, and then another file of the same name.
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(&lines[3].as_bytes()[..100]).unwrap();
    file.write_all(&lines[3].as_bytes()[100..]).unwrap();
    file.write_all(b"\n").unwrap();
    until(&mut child, "05db8ac4/4\"");
    std::fs::rename(&path, dir.path().join("old")).unwrap();
    std::fs::write(&path, lines[5].to_owned() + "\n").unwrap();
    until(&mut child, "05db8ac4/6\"");
    // SAFETY: a child that has not been waited for.
    unsafe { libc::kill(i32::try_from(child.id()).unwrap(), libc::SIGINT) };
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success());
    let expected = format!("netpol-trace tail: 3 drops in {} (4 records read)\n", path.display());
    assert_eq!(rest, expected);
}
