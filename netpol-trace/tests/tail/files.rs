//! Files that `tail` and the other subcommands for records read, and their messages for files that are no logs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::log;

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// Standard output, standard error and the exit code of a subcommand in `folder`.
pub fn run(folder: &Path, arguments: &[&str], input: &[u8]) -> (String, String, i32) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_netpol-trace"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("RUST_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A subcommand that has failed already does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input);
    let Output { stdout, stderr, status } = child.wait_with_output().unwrap();
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap(), status.code().unwrap())
}

/// The arguments of each subcommand that reads records, for `files`.
pub fn subcommands<'a>(files: &[&'a str]) -> [Vec<&'a str>; 4] {
    let with = |subcommand: &'a str, rest: &[&'a str]| [&[subcommand], files, rest].concat();
    let manifests = ["--manifests", "demo"];
    [with("tail", &[]), with("suggest", &manifests), with("replay", &manifests), with("verify-log", &[])]
}

/// A folder with the demo's manifests.
pub fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let demo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/demo/manifests").canonicalize().unwrap();
    std::os::unix::fs::symlink(demo, dir.path().join("demo")).unwrap();
    dir
}

#[test]
fn every_subcommand_reads_archives_patterns_and_standard_input_alike() {
    let dir = folder();
    let text = std::fs::read(log()).unwrap();
    std::fs::write(dir.path().join("plain.jsonl"), &text).unwrap();
    std::fs::write(dir.path().join("log.gz"), gzip(&text)).unwrap();
    std::fs::write(dir.path().join("log.zst"), zstd(&text)).unwrap();
    // The log in two parts, as rotation leaves it.
    let half = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(12).unwrap().0 + 1;
    std::fs::write(dir.path().join("drops.jsonl"), &text[half..]).unwrap();
    std::fs::write(dir.path().join("drops.jsonl.1.gz"), gzip(&text[..half])).unwrap();
    let of = |files: &[&str], input: &[u8]| subcommands(files).map(|arguments| run(dir.path(), &arguments, input));
    // Messages give a line's place with the file's name, which differs.
    let plain = of(&["plain.jsonl"], b"");
    for (files, input) in [
        (["log.gz"], Vec::new()),
        (["log.zst"], Vec::new()),
        (["-"], text.clone()),
        (["-"], gzip(&text)),
        (["-"], zstd(&text)),
        (["drops.jsonl*"], Vec::new()),
    ] {
        for ((plain, other), subcommand) in
            plain.iter().zip(of(&files, &input)).zip(["tail", "suggest", "replay", "verify-log"])
        {
            assert_eq!(other.2, plain.2, "{subcommand} {files:?}: {}", other.1);
            let same = |text: &str| {
                text.replace("plain.jsonl:31", "LINE")
                    .replace("log.gz:31", "LINE")
                    .replace("log.zst:31", "LINE")
                    .replace("standard input:31", "LINE")
                    .replace("drops.jsonl:18", "LINE")
            };
            assert_eq!(same(&other.0), same(&plain.0), "{subcommand} {files:?}");
        }
    }
    assert!(of(&["drops.jsonl*"], b"")[0].1.contains(" in 2 files (31 records read)"));
}

#[test]
fn what_is_no_log_is_named_and_is_no_answer() {
    let dir = folder();
    let record = std::fs::read_to_string(log()).unwrap().lines().nth(1).unwrap().to_owned();
    for (name, bytes, expected) in [
        (
            "elf",
            b"\x7fELF\x02\x01\x01\0".to_vec(),
            "elf is not a log of netpol-trace: binary data: a program or core dump (ELF)",
        ),
        (
            "noise",
            vec![0, 1, 2, 0xff, b'\n', 0, 0xfe],
            "noise is not a log of netpol-trace: none of its 2 lines is a record; the first is binary data",
        ),
        ("text", b"hello\n".to_vec(), "text is not a log of netpol-trace: its only line is text, not a JSON object"),
        (
            "other",
            b"{\"level\":\"info\"}\n{}\n".to_vec(),
            "none of its 2 lines is a record; the first is JSON of another program",
        ),
        ("pretty", b"{\n \"schema\": \"netpol-trace/v1\"\n}\n".to_vec(), "the first is JSON over several lines"),
        ("array", format!("[{record}]").into_bytes(), "its only line is a JSON array"),
        (
            "prefixed",
            format!("[pod/agent-x/agent] {record}").into_bytes(),
            "its only line is a record behind other text",
        ),
        (
            "long",
            vec![b'x'; 3 << 20],
            "long is not a log of netpol-trace: its only line is longer than a record can be",
        ),
        (
            "later",
            record.replace("\"kind\":\"drop\"", "\"kind\":\"drop\",\"cause\":7").into_bytes(),
            "later has nothing that this version of netpol-trace can read: its only line is a record with a kind or value",
        ),
        (
            "cri",
            format!("2026-11-21T12:50:02.1Z stdout F {record}\n").into_bytes(),
            "its only line is a line of a container runtime's log file (CRI)",
        ),
        ("inner.gz", gzip(b"hello\nyou\n"), "inner.gz is not a log of netpol-trace: none of its 2 lines is a record"),
    ] {
        std::fs::write(dir.path().join(name), bytes).unwrap();
        for arguments in subcommands(&[name]) {
            let (stdout, stderr, code) = run(dir.path(), &arguments, b"");
            assert!(code == 2 && stderr.contains(expected), "{arguments:?} {code}: {stderr}");
            assert!(
                !stdout.contains("Nothing to change") && !stderr.contains("at line"),
                "{arguments:?}: {stdout}{stderr}"
            );
        }
    }
    // From standard input.
    for (input, expected) in [
        (&b"hello\n"[..], "standard input is not a log of netpol-trace: its only line is text"),
        (b"\x7fELF\x02\x01\x01\0", "standard input is not a log of netpol-trace: binary data"),
    ] {
        for arguments in subcommands(&["-"]) {
            let (_, stderr, code) = run(dir.path(), &arguments, input);
            assert!(code == 2 && stderr.contains(expected), "{arguments:?} {code}: {stderr}");
        }
    }
    std::fs::create_dir(dir.path().join("empty-folder")).unwrap();
    for (name, expected) in [
        ("empty-folder", "empty-folder is a folder without records (*.jsonl)"),
        ("no-such*", "no file matches no-such*"),
        ("nowhere.jsonl", "nowhere.jsonl cannot be read: no such file"),
    ] {
        for arguments in subcommands(&[name]) {
            let (stdout, stderr, code) = run(dir.path(), &arguments, b"");
            assert!(code == 2 && stdout.is_empty() && stderr.contains(expected), "{arguments:?} {code}: {stderr}");
        }
    }
}

#[test]
fn the_beginning_of_a_truncated_archive_counts() {
    let dir = folder();
    let packed = gzip(&std::fs::read(log()).unwrap());
    let kept = packed.len() * 3 / 4;
    std::fs::write(dir.path().join("cut.gz"), &packed[..kept]).unwrap();
    let mut outputs = Vec::new();
    for arguments in subcommands(&["cut.gz"]) {
        let (stdout, stderr, code) = run(dir.path(), &arguments, b"");
        let digits = kept.to_string();
        let expected = format!(
            "cut.gz is a gzip archive cut off after {},{} bytes",
            &digits[..digits.len() - 3],
            &digits[digits.len() - 3..]
        );
        assert!(code == 2 && stderr.contains(&expected), "{arguments:?} {code}: {stderr}");
        outputs.push(stdout);
    }
    assert!(outputs[0].contains(" DROP "), "{}", outputs[0]);
    assert!(outputs[1].contains("kind: NetworkPolicy"), "{}", outputs[1]);
    assert!(outputs[2].contains("recorded connection"), "{}", outputs[2]);
    assert!(outputs[3].contains("NOT complete"), "{}", outputs[3]);
}

/// An archive does not grow: `tail --follow` reads it once and ends.
#[test]
fn an_archive_is_read_and_not_followed() {
    let dir = folder();
    let text = std::fs::read(log()).unwrap();
    std::fs::write(dir.path().join("drops.gz"), gzip(&text)).unwrap();
    std::fs::write(dir.path().join("drops.jsonl"), &text).unwrap();
    let (stdout, stderr, code) = run(dir.path(), &["tail", "-f", "-o", "json", "drops.gz"], b"");
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stdout, run(dir.path(), &["tail", "-o", "json", "drops.jsonl"], b"").0);
    assert!(stderr.contains("note: drops.gz is compressed, so it is read and not followed"), "{stderr}");
    // The last line may lack its end, in a pipe too.
    let cut = text.trim_ascii_end();
    assert_eq!(run(dir.path(), &["tail", "-o", "json", "-"], cut).0, stdout);
}

/// A log without drops is a result, exit code 0. An empty log is none.
#[test]
fn a_log_without_drops_differs_from_an_empty_one() {
    let dir = folder();
    let first = std::fs::read_to_string(log()).unwrap().lines().next().unwrap().to_owned() + "\n";
    std::fs::write(dir.path().join("quiet.jsonl"), &first).unwrap();
    for empty in ["empty.jsonl", "empty.gz"] {
        std::fs::write(dir.path().join(empty), if empty == "empty.gz" { gzip(b"") } else { Vec::new() }).unwrap();
        let [tail, suggest, replay, verify] = subcommands(&[empty]).map(|arguments| run(dir.path(), &arguments, b""));
        assert_eq!(
            tail,
            (
                String::new(),
                format!("netpol-trace tail: no drops in {empty} (0 records read, so this says nothing about drops)\n"),
                0
            )
        );
        for (subcommand, (stdout, stderr, code)) in [("suggest", suggest), ("replay", replay)] {
            assert_eq!((stdout.as_str(), code), ("", 2), "{stderr}");
            assert_eq!(stderr, format!("netpol-trace {subcommand}: {empty} is empty: it has no record\n"));
        }
        assert!(verify.2 == 1 && verify.0.starts_with("NOT complete: there is no record.\n"), "{verify:?}");
    }
    let [tail, suggest, replay, _] = subcommands(&["quiet.jsonl"]).map(|arguments| run(dir.path(), &arguments, b""));
    assert!(
        tail.2 == 0 && tail.1.ends_with("netpol-trace tail: no drops in quiet.jsonl (1 record read)\n"),
        "{tail:?}"
    );
    assert_eq!(
        suggest,
        ("# No drop by policy in quiet.jsonl (1 record read): nothing to suggest.\n".to_owned(), String::new(), 0)
    );
    assert_eq!(
        replay,
        ("No drop by policy in quiet.jsonl (1 record read): nothing to evaluate.\n".to_owned(), String::new(), 0)
    );
}

/// For a pod that is in no record, `tail` names the pods that are.
#[test]
fn a_pod_that_is_not_there_is_named_with_those_that_are() {
    let dir = folder();
    let text = std::fs::read_to_string(log()).unwrap();
    std::fs::write(dir.path().join("drops.jsonl"), &text).unwrap();
    let tail = |arguments: &[&str]| run(dir.path(), &[&["tail", "drops.jsonl"], arguments].concat(), b"");
    let (stdout, stderr, code) = tail(&["--pod", "staging/db-9", "--since", "87600h"]);
    assert_eq!(code, 0, "{stderr}");
    // A policy change of its namespace may concern the pod and is shown; agents' own records are not.
    assert!(
        ["DROP", "LOST", "AGENT"].iter().all(|word| !stdout.contains(word)) && stdout.contains("POLICY"),
        "{stdout}"
    );
    for expected in [
        "note: in the records: no pod staging/db-9; staging has ",
        "note: the agent of another node (worker-1) lost ",
        "; nobody knows if any was to or from staging/db-9",
        "netpol-trace tail: no drops to or from staging/db-9 in the last 87600 h in drops.jsonl (31 records read)\n",
    ] {
        assert!(stderr.contains(expected), "{expected}: {stderr}");
    }
    let (stdout, stderr, _) = tail(&["-n", "stagin"]);
    assert_eq!(stdout, "");
    assert!(stderr.contains("no namespace stagin; the namespaces are "), "{stderr}");
    let (stdout, stderr, _) = tail(&["-n", "staging", "-l", "app=dbx"]);
    assert!(!stdout.contains("DROP"), "{stdout}");
    assert!(stderr.contains("no pod with app=dbx in namespace staging; there are app=api, app=db"), "{stderr}");
    // The ways to name a pod. Losses of its node's agent are shown.
    let names = [
        &["--pod", "staging/db-0"][..],
        &["-n", "staging", "--pod", "pod/db-0"],
        &["-n", "staging", "--pod", "po db-0"],
    ];
    let shown = names.map(tail);
    assert!(
        shown[0].0.contains(" DROP ") && shown[0].0.contains(" LOST ") && !shown[0].1.contains("lost"),
        "{:?}",
        shown[0]
    );
    assert!(shown[1] == shown[0] && shown[2] == shown[0], "{shown:?}");
    let (_, stderr, code) = tail(&["--pod", "pod/db-0"]);
    assert!(code == 2 && stderr.contains("expected NAMESPACE/NAME, or NAME together with -n NAMESPACE"), "{stderr}");
}
