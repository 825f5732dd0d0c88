//! Tests the invariants of ARCHITECTURE.md that source text shows. Needs no root and no kernel.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file that can be read in one go, comments and golden texts included.
const MAX_LINES: usize = 460;
/// Folders of the agent that compute and do nothing else.
const PURE: [&str; 4] = ["model", "packet", "policy", "record"];
/// Names in code that a pure module does not use.
const IMPURE: [&str; 22] = [
    "tokio",
    "std::fs",
    "fs::",
    "std::env",
    "std::process",
    "std::thread",
    "thread::",
    "std::os",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "stdin()",
    "stdout()",
    "stderr()",
    "println!",
    "eprintln!",
    "Instant::now",
    "SystemTime",
    "Timestamp::now",
    "libc",
    "rustix",
];

/// A file of the checkout, by its path from the root.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The lines of the program's code, without comments and without the tests at the file's end.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let until = self.text.find("\n#[cfg(test)]\nmod ").unwrap_or(self.text.len());
        let lines = self.text.get(..until).unwrap_or_default().lines();
        lines.map(|line| line.split("//").next().unwrap_or_default()).enumerate().map(|(n, line)| (n + 1, line))
    }

    /// True if this is the module `name` of the agent, or below it.
    fn in_module(&self, name: &str) -> bool {
        let below = self.path.strip_prefix("netpol-trace/src/").and_then(|path| path.strip_prefix(name));
        below.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    }

    fn is_tests(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Every text file of the checkout in path order, without build output.
fn files() -> Vec<Source> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            // In a Git worktree `.git` is a file.
            if name == "target" || name == ".git" {
                continue;
            }
            if path.is_dir() {
                walk(&path, found);
            } else {
                found.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(root(), &mut paths);
    let mut files: Vec<Source> = paths
        .into_iter()
        .filter_map(|path| {
            let text = String::from_utf8(fs::read(&path).ok()?).ok()?;
            Some(Source { path: path.strip_prefix(root()).ok()?.to_str()?.to_owned(), text })
        })
        .collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

fn rust_files() -> Vec<Source> {
    files().into_iter().filter(|file| file.path.ends_with(".rs")).collect()
}

fn agent_files() -> Vec<Source> {
    rust_files().into_iter().filter(|file| file.path.starts_with("netpol-trace/src/") && !file.is_tests()).collect()
}

fn none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

/// True if `line` has `word`, and not as the end of a longer name.
fn has(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

/// The agent's lines outside the module `only` that have one of `words`.
fn outside(only: &str, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for file in agent_files().iter().filter(|file| !file.in_module(only)) {
        for (number, line) in file.code().filter(|(_, line)| words.iter().any(|word| has(line, word))) {
            found.push(format!("{}:{number}: {}", file.path, line.trim()));
        }
    }
    found
}

#[test]
fn only_kernel_names_aya() {
    assert!(agent_files().iter().any(|file| file.in_module("kernel") && file.text.contains("aya::")));
    none("aya or bpf(2) outside kernel/", outside("kernel", &["aya", "SYS_bpf"]));
}

#[test]
fn only_cluster_names_the_kube_client() {
    assert!(agent_files().iter().any(|file| file.in_module("cluster") && file.text.contains("k8s_openapi")));
    none(
        "the kube client or k8s-openapi outside cluster/",
        outside("cluster", &["k8s_openapi", "kube::", "kube_runtime", "kube_client"]),
    );
}

#[test]
fn model_packet_policy_and_record_are_pure() {
    let mut found = Vec::new();
    for module in PURE {
        let files = agent_files();
        let mut files = files.iter().filter(|file| file.in_module(module)).peekable();
        assert!(files.peek().is_some(), "no module {module}");
        for file in files {
            for (number, line) in file.code() {
                for word in IMPURE.iter().filter(|word| has(line, word)) {
                    found.push(format!("{}:{number}: {word}", file.path));
                }
            }
        }
    }
    none("a pure module reaches outside", found);
}

#[test]
fn files_can_be_read_in_one_go() {
    let long = rust_files().into_iter().filter(|file| file.text.lines().count() > MAX_LINES);
    none(&format!("over {MAX_LINES} lines"), long.map(|file| file.path).collect());
}

#[test]
fn no_mod_rs() {
    let found = rust_files().into_iter().filter(|file| file.path.ends_with("/mod.rs"));
    none("foo.rs and foo/, not foo/mod.rs", found.map(|file| file.path).collect());
}

/// No file has the path of a home folder or a checkout.
#[test]
fn no_path_of_one_machine() {
    let mut found = Vec::new();
    for file in files() {
        for (number, line) in file.text.lines().enumerate() {
            // In pieces, so that this file has no such path.
            for dir in ["root", "home", "work", "Users"] {
                let path = format!("/{dir}/");
                let begins = line.match_indices(&path).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || "_}./*-".contains(c))
                });
                if begins {
                    found.push(format!("{}:{}: {}", file.path, number + 1, line.trim()));
                }
            }
        }
    }
    none("a path of one machine", found);
}

#[test]
fn the_readme_names_every_command() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let cli = fs::read_to_string(root().join("netpol-trace/src/cli.rs")).unwrap();
    let variants = cli.split_once("enum Command {").unwrap().1.split_once("\n}").unwrap().0;
    let variants = variants.lines().map(str::trim).filter(|line| line.starts_with(char::is_uppercase));
    let subcommands: Vec<String> =
        variants.map(|line| subcommand(line.split(['(', ',', ' ']).next().unwrap())).collect();
    assert!(subcommands.iter().any(|name| name == "agent"), "{subcommands:?}");
    let unnamed = subcommands.into_iter().filter(|name| !readme.contains(&format!("| `netpol-trace {name}` |")));
    none("commands missing in README.md", unnamed.collect());
}

/// The subcommand of a variant: `VerifyLog` is `verify-log`.
fn subcommand(variant: &str) -> String {
    let mut name = String::new();
    for c in variant.chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.extend(c.to_lowercase());
    }
    name
}

/// The part of ARCHITECTURE.md under a heading.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let start = text.find(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    let body = &text[start + heading.len() + 5..];
    &body[..body.find("\n## ").unwrap_or(body.len())]
}

/// Each invariant is a list item that ends with the test that keeps it: ``(`test_name`)``.
#[test]
fn every_invariant_has_its_test() {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let tests: BTreeSet<String> = rust_files()
        .iter()
        .flat_map(|file| file.text.split("#[test]").skip(1).map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|after| {
            let name = after.split_once("fn ")?.1.split('(').next()?;
            Some(name.to_owned())
        })
        .collect();
    let items = section(&architecture, "Invariants").split("\n- ").skip(1);
    let mut count = 0;
    for item in items {
        let name = item.trim_end().strip_suffix("`)").and_then(|item| item.rsplit("(`").next());
        let name = name.unwrap_or_else(|| panic!("this invariant names no test: {item}"));
        assert!(tests.contains(name), "no test {name}: {item}");
        count += 1;
    }
    assert!(count >= 5, "only {count} invariants were found");
}

/// The folders (or single files) at the top of `netpol-trace/src`, each with those that it may import. Data flows down this list: from the
/// model to the subcommands.
const EDGES: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("text", &[]),
    ("memory", &[]),
    ("backoff", &[]),
    ("lock", &[]),
    ("netlink", &[]),
    ("storage", &[]),
    ("packet", &["model"]),
    // packet: the aggregate stage decodes each event once, so that single packets and counts both leave it as a `Packet`.
    ("kernel", &["model", "memory", "netlink", "packet", "lock"]),
    ("cluster", &["model", "text", "backoff", "lock"]),
    ("telemetry", &["cluster"]),
    ("inventory", &["model", "netlink", "lock"]),
    ("policy", &["model", "text", "cluster"]),
    ("record", &["model", "text"]),
    ("history", &["record", "storage"]),
    ("metrics", &["model", "text", "record", "lock"]),
    ("sink", &["model", "backoff", "lock", "cluster", "record", "history", "metrics", "storage"]),
    ("pipeline", &["model", "packet", "kernel", "cluster", "inventory", "policy", "record", "sink"]),
    ("config", &["model", "cluster", "pipeline"]),
    ("http", &["cluster", "metrics", "lock"]),
    (
        "agent",
        &[
            "model",
            "memory",
            "storage",
            "lock",
            "kernel",
            "cluster",
            "inventory",
            "record",
            "history",
            "metrics",
            "sink",
            "pipeline",
            "config",
            "http",
        ],
    ),
    ("audit", &["model", "text", "record"]),
    ("missing", &[]),
    ("recorded", &["model", "text", "cluster", "policy", "record"]),
    ("tail", &["model", "text", "storage", "backoff", "lock", "cluster", "record", "history", "missing", "recorded"]),
    ("doctor", &["text", "cluster", "inventory"]),
    (
        "cli",
        &[
            "model",
            "text",
            "storage",
            "kernel",
            "cluster",
            "telemetry",
            "inventory",
            "policy",
            "record",
            "sink",
            "config",
            "http",
            "agent",
            "audit",
            "missing",
            "tail",
            "recorded",
            "doctor",
        ],
    ),
];

/// Returns the folder at the top of the agent's sources that a file belongs to.
fn top_folder(path: &str) -> Option<&str> {
    let name = path.strip_prefix("netpol-trace/src/")?.split('/').next()?;
    Some(name.strip_suffix(".rs").unwrap_or(name))
}

#[test]
fn top_folders_import_downwards() {
    let mut found = Vec::new();
    let mut used = BTreeSet::new();
    for file in agent_files() {
        let Some(from) = top_folder(&file.path).filter(|from| !matches!(*from, "lib" | "main")) else { continue };
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == from) else {
            found.push(format!("{}: {from} is not in EDGES", file.path));
            continue;
        };
        for (number, line) in file.code() {
            for (at, _) in line.match_indices("crate::") {
                let rest = &line[at + "crate::".len()..];
                let to = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
                if to != from && EDGES.iter().any(|(name, _)| *name == to) {
                    used.insert((from.to_owned(), to.to_owned()));
                    if !allowed.contains(&to) {
                        found.push(format!("{}:{number}: {from} must not import {to}", file.path));
                    }
                }
            }
        }
    }
    for (from, allowed) in EDGES {
        for to in allowed.iter().filter(|to| !used.contains(&(from.to_string(), to.to_string()))) {
            found.push(format!("EDGES allows {from} -> {to}, which no file needs"));
        }
    }
    none("imports between top folders", found);
}

/// ARCHITECTURE.md has one line for each top folder, and none for one that is gone.
#[test]
fn every_top_folder_has_its_line() {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let table = section(&architecture, "Folders");
    let listed: BTreeSet<&str> =
        table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name)).collect();
    let folders: BTreeSet<&str> = EDGES.iter().map(|(name, _)| *name).collect();
    assert_eq!(listed, folders);
    assert!(architecture.len() <= 14 * 1024, "{} bytes: one page, not a catalogue", architecture.len());
}
