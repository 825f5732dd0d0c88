//! Runs the program.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use expect_test::Expect;

/// The output of a run and its exit code.
pub struct Run {
    pub out: String,
    pub err: String,
    pub code: i32,
}

pub fn explain(arguments: &[&str], input: &str) -> Run {
    let mut child = Command::new(env!("CARGO_BIN_EXE_netpol-trace"))
        .arg("explain")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that answers before it has read everything closes its end: that is no failure of the test.
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    _ = writer.join().unwrap();
    Run {
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
        code: output.status.code().unwrap(),
    }
}

/// `"staging/api -> staging/db 3306/TCP"`; the exit code comes last.
pub fn check(manifests: &str, question: &str, expected: Expect) {
    let run = explain(&arguments("-", question), manifests);
    expected.assert_eq(&format!("{}{}exit {}\n", run.err, run.out, run.code));
}

pub fn check_files(manifests: &Path, question: &str, expected: Expect) {
    let run = explain(&arguments(manifests.to_str().unwrap(), question), "");
    expected.assert_eq(&format!("{}{}exit {}\n", run.err, run.out, run.code));
}

fn arguments<'a>(manifests: &'a str, question: &'a str) -> Vec<&'a str> {
    let words: Vec<&str> = question.split(' ').filter(|word| *word != "->").collect();
    let mut arguments = vec!["--manifests", manifests, "--from", words[0], "--to", words[1]];
    if let Some(port) = words.get(2) {
        arguments.extend(["--port", port]);
    }
    arguments
}
