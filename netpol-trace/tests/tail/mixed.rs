//! Logs among other files, and logs with lines that no agent writes: `tail` shows what it can read and reports the rest.

use std::fs;
use std::process::Command;

use crate::files::{folder, gzip, run, subcommands};
use crate::log;

/// A file that is no log does not stop the reading of others, in any order.
#[test]
fn a_file_that_is_no_log_does_not_stop_others() {
    let dir = folder();
    let text = fs::read(log()).unwrap();
    fs::write(dir.path().join("drops.jsonl"), &text).unwrap();
    fs::write(dir.path().join("drops.jsonl.1"), b"\xfd7zXZ\0\0\0").unwrap();
    let alone = subcommands(&["drops.jsonl"]).map(|arguments| run(dir.path(), &arguments, b"").0);
    for (files, input, name) in [
        (&["drops.jsonl.1", "drops.jsonl"][..], &b""[..], "drops.jsonl.1"),
        (&["drops.jsonl*"], b"", "drops.jsonl.1"),
        (&["-", "drops.jsonl"], b"\xfd7zXZ\0\0\0", "standard input"),
        (&["-", "drops.jsonl"], b"hello\n", "standard input"),
    ] {
        for (arguments, alone) in subcommands(files).iter().zip(&alone) {
            let (stdout, stderr, code) = run(dir.path(), arguments, input);
            assert!(code == 2 && stderr.contains(&format!("{name} is not a log")), "{arguments:?} {code}: {stderr}");
            match arguments[0] {
                "verify-log" => {
                    assert!(stdout.starts_with("NOT complete") && stdout.contains("31 records"), "{stdout}")
                }
                _ => assert_eq!(&stdout, alone, "{arguments:?}"),
            }
            let rest = stderr.contains(" in 2 files (31 records read; the rest could not be read)\n");
            assert!(rest || arguments[0] != "tail", "{stderr}");
        }
    }
}

/// A folder is read as an agent's history; other files in it are reported.
#[test]
fn a_folder_with_other_files_is_not_taken_for_a_history() {
    let dir = folder();
    let text = fs::read(log()).unwrap();
    for name in ["foreign", "mixed", "torn"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("foreign/app.jsonl"), "{\"level\":\"info\"}\n").unwrap();
    fs::write(dir.path().join("mixed/drops.jsonl"), &text).unwrap();
    fs::write(dir.path().join("mixed/drops.jsonl.1.gz"), gzip(&text)).unwrap();
    for arguments in subcommands(&["foreign"]) {
        let (_, stderr, code) = run(dir.path(), &arguments, b"");
        assert!(code == 2 && stderr.contains("foreign/app.jsonl is not a log"), "{arguments:?} {code}: {stderr}");
    }
    for arguments in subcommands(&["mixed"]) {
        let (_, stderr, _) = run(dir.path(), &arguments, b"");
        assert!(stderr.contains("note: in mixed, 1 other file is not read"), "{arguments:?}: {stderr}");
    }
    // Half a line, left by a crash, is no error in a history with other files.
    fs::write(dir.path().join("torn/a.jsonl"), &text[..100]).unwrap();
    fs::write(dir.path().join("torn/b.jsonl"), &text).unwrap();
    let (_, stderr, code) = run(dir.path(), &["tail", "torn"], b"");
    assert_eq!(code, 0, "{stderr}");
}

/// A line that is too long is counted and reported with its line number, from files and from standard input.
#[test]
fn a_line_that_is_too_long_is_reported() {
    let dir = folder();
    let text = fs::read_to_string(log()).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    let long = [first, &"x".repeat(3 << 20), rest].join("\n");
    fs::write(dir.path().join("long.jsonl"), &long).unwrap();
    for (file, input, name) in [("long.jsonl", "", "long.jsonl"), ("-", &*long, "standard input")] {
        let (_, stderr, code) = run(dir.path(), &["tail", file], input.as_bytes());
        let expected = format!("note: 2 lines are not netpol-trace records and were skipped (first: {name}:2)\n");
        assert!(code == 0 && stderr.contains(&expected), "{stderr}");
        let (_, stderr, _) = run(dir.path(), &["suggest", file, "--manifests", "demo"], input.as_bytes());
        assert!(stderr.contains(&format!("{name}:2: longer than a record can be")), "{stderr}");
    }
}

/// Counts in a log are untrusted input: sums saturate.
#[test]
fn counts_that_no_agent_writes_stop_nobody() {
    let dir = folder();
    let text = fs::read_to_string(log()).unwrap().replace("\"count\":1,", &format!("\"count\":{},", u64::MAX));
    fs::write(dir.path().join("drops.jsonl"), text).unwrap();
    for arguments in subcommands(&["drops.jsonl"]).into_iter().chain([vec!["tail", "--summary", "drops.jsonl"]]) {
        let (stdout, stderr, code) = run(dir.path(), &arguments, b"");
        assert!(code < 3 && !stdout.is_empty() && !stderr.contains("panicked"), "{arguments:?} {code}: {stderr}");
    }
}

/// The first record gives the time of a log that begins with half a line (copytruncate).
#[test]
fn the_first_record_says_when_a_log_begins() {
    let dir = folder();
    let text = fs::read_to_string(log()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let (older, newer) = lines.split_at(12);
    fs::write(dir.path().join("older"), older.join("\n") + "\n").unwrap();
    fs::write(dir.path().join("newer"), format!("half a line\n{}\n", newer.join("\n"))).unwrap();
    fs::write(dir.path().join("whole"), &text).unwrap();
    let sums = |files: &[&str]| {
        let (stdout, ..) = run(dir.path(), &[&["verify-log"], files].concat(), b"");
        stdout.lines().nth(1).unwrap().to_owned()
    };
    assert_eq!((sums(&["newer", "older"]), sums(&["older", "newer"])), (sums(&["whole"]), sums(&["whole"])));
}

/// `tail` shows records and keeps its exit code when standard error can't be written.
#[test]
fn standard_error_that_can_not_be_written_changes_no_answer() {
    for (file, expected) in [(log(), 0), ("/bin/sh".into(), 2)] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut tail = Command::new(env!("CARGO_BIN_EXE_netpol-trace"));
        let output = tail.arg("tail").arg(&file).stderr(full).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(expected), expected == 2));
    }
}

/// Arguments that can't name a pod or a namespace are usage errors.
#[test]
fn names_that_can_not_be_are_mistakes_and_no_answers() {
    let dir = folder();
    fs::copy(log(), dir.path().join("drops.jsonl")).unwrap();
    for (arguments, expected) in [
        (&["--pod", "deploy/api"][..], "-n NAMESPACE -l KEY=VALUE; for a namespace called deploy, use -n deploy"),
        (&["-n", "staging", "--pod", "Services/db"], "only pods can be named"),
        (&["-n", ""], "is a shell variable not set?"),
        (&["-n", "ns/staging"], "remove what is before the slash"),
        (&["-n", "Staging"], "lower-case letters"),
        (&["-n", "staging,qa-test"], "the name of one namespace"),
        (&["db-0"], "db-0 cannot be read: no such file (a pod's drops: netpol-trace tail --pod db-0 -n NAMESPACE)"),
    ] {
        let (stdout, stderr, code) = run(dir.path(), &[&["tail", "drops.jsonl"], arguments].concat(), b"");
        assert!(code == 2 && stdout.is_empty() && stderr.contains(expected), "{arguments:?} {code}: {stderr}");
        assert!(!stderr.contains("no drops"), "{stderr}");
    }
    // A namespace may have a kind's name.
    let (_, stderr, code) = run(dir.path(), &["tail", "drops.jsonl", "-n", "deploy", "--pod", "api"], b"");
    assert!(code == 0 && stderr.contains("no drops to or from deploy/api"), "{stderr}");
}
