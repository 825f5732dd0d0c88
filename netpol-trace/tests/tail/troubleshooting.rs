//! docs/troubleshooting.md: every command on the page, run on the page's manifests, prints the page's output.
//! `UPDATE_EXPECT=1` writes the present output into the page.

use std::path::{Path, PathBuf};
use std::process::Command;

const FILE: &str = "<!-- file: ";

#[test]
fn the_page_says_what_the_commands_print() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = root.join("docs/troubleshooting.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root.join("tests/demo/manifests").canonicalize().unwrap(), dir.path().join("demo"))
        .unwrap();
    std::fs::copy(crate::log(), dir.path().join("drops.jsonl")).unwrap();
    write_files(&text, dir.path());
    let now = with_outputs(&text, dir.path());
    assert!(now.matches("\n$ netpol-trace ").count() > 7, "the page has lost its commands");
    expect_test::expect_file![page].assert_eq(&now);
}

/// Writes each block of YAML into the file that the comment before it names.
fn write_files(text: &str, dir: &Path) {
    for part in text.split(FILE).skip(1) {
        let (name, rest) = part.split_once(" -->\n```yaml\n").expect("a block of YAML after the name of its file");
        let path: PathBuf = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, rest.split_once("```").unwrap().0).unwrap();
    }
}

/// The page with each command's present output.
fn with_outputs(text: &str, dir: &Path) -> String {
    let mut now = String::new();
    let mut in_console = false;
    for line in text.lines() {
        if line == "```console" {
            in_console = true;
        } else if line.starts_with("```") {
            in_console = false;
        }
        if in_console && line != "```console" && !line.starts_with("$ ") {
            continue;
        }
        now += line;
        now.push('\n');
        if let Some(command) = line.strip_prefix("$ ").filter(|_| in_console) {
            now += &printed(command, dir);
        }
    }
    now
}

fn printed(command: &str, dir: &Path) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_netpol-trace")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let shell = format!("exec 2>&1; {command}");
    let output = Command::new("sh")
        .args(["-c", &shell])
        .current_dir(dir)
        .env("PATH", path)
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(!printed.is_empty() && !printed.contains("Usage:"), "{command}: {printed}");
    printed.lines().map(|line| line.to_owned() + "\n").collect()
}
