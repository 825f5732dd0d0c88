//! `netpol-trace lint` as a process: exit codes and streams.

use std::io::Write;
use std::process::{Command, Output, Stdio};

const BAD: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}\nspec: {podSelector: {}, ingress: [{from: []}]}\n";
const GOOD: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}\nspec: {podSelector: {}, ingress: [{}]}\n";

fn lint(input: &str, arguments: &[&str]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_netpol-trace"))
        .arg("lint")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A run that doesn't read its input closes it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn exit_codes_say_clean_findings_or_bad_usage() {
    for (input, arguments, code) in [
        (GOOD, ["-"].as_slice(), 0),
        (BAD, &["-"], 1),
        (BAD, &["-", "--fail-on", "error"], 0),
        (BAD, &["-", "--disable", "empty-peers"], 0),
        (BAD, &["-", "--output", "sarif"], 1),
        ("kind: [", &["-"], 1),
        (GOOD, &["/does/not/exist"], 2),
        (GOOD, &["-", "/does/not/exist"], 2),
        (GOOD, &["-", "--disable", "no-such-id"], 2),
        (GOOD, &[], 2),
    ] {
        let output = lint(input, arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

#[test]
fn the_first_line_is_the_finding() {
    let output = lint(BAD, &["-"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        text.lines().next(),
        Some("-:4: warning[empty-peers]: `from: []` is no restriction: the rule lets everybody in")
    );
    let output = lint("", &["/does/not/exist"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "netpol-trace: /does/not/exist: No such file or directory (os error 2)\n"
    );
}
