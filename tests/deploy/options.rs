//! Tries every option of the agent in the image, confined as the DaemonSet's container is: the agent starts, and every output is written.
//!
//! The options, formats, hooks and kinds of output come from the program's own tables. The test fails if no case has one of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use netpol_trace::config::{self, read::RUNTIME_KEYS};
use netpol_trace::record::format::Format;
use netpol_trace::sink::spec;
use netpol_trace_tests::bpf_fs::BpfFs;
use netpol_trace_tests::collector::{Collector, certificates};
use netpol_trace_tests::containerd::Container;
use netpol_trace_tests::{eventually, has_program, require};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::container::{ImageLab, given};

/// A group that the container's process is in.
const GROUP: u32 = 4711;
/// What the cases are given to read, and where they write.
const GIVEN: &str = "/given";
const RECORDS: &str = "/records";
/// The kubeconfig of a cluster that does not exist: nothing listens at port 1.
const KUBECONFIG: &str = r#"{"apiVersion":"v1","kind":"Config","current-context":"none",
"clusters":[{"name":"c","cluster":{"server":"https://127.0.0.1:1","insecure-skip-tls-verify":true}}],
"users":[{"name":"u","user":{"token":"t"}}],
"contexts":[{"name":"away","context":{"cluster":"c","user":"u"}}]}"#;
/// The settings of the config file that have no option.
const LISTS: &str = r#"
include: {namespaces: ["*"], causes: [policy, unknown], cidrs: [0.0.0.0/0, "::/0"]}
exclude: {namespaces: [none], causes: [not_policy], cidrs: [192.0.2.0/24]}
labels: [app]
dns-names: ["*.example.com"]
"#;

/// One start of the agent.
struct Case {
    name: &'static str,
    arguments: Vec<String>,
    /// Lines of its config file.
    config: &'static str,
}

fn case(name: &'static str, config: &'static str, arguments: &[&str]) -> Case {
    let mut arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    // Every case has its own files, and ends as soon as it has started.
    arguments.push(format!("--config={GIVEN}/{name}.yaml"));
    arguments.push(format!("--history-dir={RECORDS}/{name}/history"));
    arguments.push("--duration=1ms".into());
    Case { name, arguments, config }
}

fn cases(plain: &Collector, tls: &Collector) -> Vec<Case> {
    let file = |name: &str, options: &str| format!("--output=file:{RECORDS}/{name}.jsonl{options}");
    let rotated = file("rotated", &format!(",format=native,max-size=4KiB,max-age=1h,keep=2,group={GROUP}"));
    let (ecs, ocsf, otel) = (file("ecs", ",format=ecs"), file("ocsf", ",format=ocsf"), file("otel", ",format=otel"));
    let http = format!("--output=otlp:http://{},token-file={GIVEN}/token", plain.address);
    let https = format!("--output=otlp:https://{},ca-file={GIVEN}/ca.pem", tls.address);
    let manifests = "--manifests=/manifests";
    let group = format!("--history-group={GROUP}");
    vec![
        case(
            "outputs",
            LISTS,
            &[manifests, "--output=stdout,format=native", &rotated, &ecs, &ocsf, &otel, &http, &https, &group],
        ),
        case(
            "kernel",
            "cluster-name: c\nall-drops: true\nring-kib: 64\nmax-records-per-second: 10\naggregation-window: 1s\n\
             history-mib: 1\n",
            &[
                manifests,
                "--hooks=kfree_skb,tc",
                "--survive-restart",
                "--pin-dir=/pins/netpol-trace",
                "--state-dir=/var/lib/netpol-trace",
                "--node-name=node-a",
                "--listen=127.0.0.1:9477",
                &format!("--metrics-token-file={GIVEN}/token"),
                "--output=stdout",
            ],
        ),
        case("ecs", "hooks: [kfree_skb]\n", &[manifests, "--format=ecs"]),
        case("ocsf", "hooks: tc\n", &[manifests, "--format=ocsf"]),
        case("otel", "", &[manifests, "--format=otel"]),
        case("native", "", &[manifests, "--format=native"]),
        case(
            "api",
            "",
            &[
                &format!("--kubeconfig={GIVEN}/kubeconfig"),
                "--context=away",
                "--peers=auto",
                "--output=stdout",
                "--output=events",
                "--listen=127.0.0.1:9477",
                "--metrics-rbac",
                "--tail-listen=127.0.0.1:9478",
                "--agents-namespace=netpol-trace",
            ],
        ),
        case("watch", "", &[&format!("--kubeconfig={GIVEN}/kubeconfig"), "--context=away", "--peers=watch"]),
        case("lookup", "", &[&format!("--kubeconfig={GIVEN}/kubeconfig"), "--context=away", "--peers=lookup"]),
    ]
}

impl Case {
    /// Its options with their values, including those of the config file.
    fn options(&self) -> Vec<(String, String)> {
        let given = self.arguments.iter().filter_map(|argument| argument.strip_prefix("--"));
        let given = given.map(|argument| argument.split_once('=').unwrap_or((argument, "")));
        let of_file = self.config.lines().filter_map(|line| line.split_once(": "));
        given.chain(of_file).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

/// The entries of the program's tables that no case has.
fn left_out(cases: &[Case]) -> Vec<String> {
    let given: BTreeSet<(String, String)> = cases.iter().flat_map(Case::options).collect();
    let has =
        |name: &str, fits: &dyn Fn(&str) -> bool| given.iter().any(|(option, value)| option == name && fits(value));
    let mut left_out = Vec::new();
    let mut demand = |what: String, is_there: bool| left_out.extend((!is_there).then_some(what));
    for (name, values) in config::options() {
        demand(format!("--{name}"), has(&name, &|_| true));
        for value in values {
            // Alone or in a list.
            let is_value = |given: &str| given.trim_matches(['[', ']']) == value;
            demand(format!("--{name}={value}"), has(&name, &is_value));
        }
    }
    demand("no hooks".into(), cases.iter().any(|case| case.options().iter().all(|(name, _)| name != "hooks")));
    demand("two hooks".into(), has("hooks", &|value| value.contains(',')));
    for format in Format::ALL.iter().copied() {
        demand(format!("--format={format:?}"), has("format", &|value| value == format.as_str()));
        let option = format!(",format={}", format.as_str());
        demand(format!("file{option}"), has("output", &|value| value.starts_with("file:") && value.contains(&option)));
    }
    for kind in spec::KINDS {
        demand(kind.into(), has("output", &|value| value.starts_with(kind)));
    }
    for option in spec::OPTIONS {
        for kind in option.of {
            let text = format!(",{}=", option.name);
            demand(format!("{kind}{text}"), has("output", &|value| value.starts_with(kind) && value.contains(&text)));
        }
    }
    for (key, ..) in RUNTIME_KEYS {
        let (key, below) = key.split_once('.').unwrap_or((key, ""));
        let is_there =
            |case: &Case| case.config.lines().any(|line| line.starts_with(&format!("{key}:")) && line.contains(below));
        demand(key.into(), cases.iter().any(is_there));
    }
    left_out
}

/// Folders of the node that the container mounts besides those of the DaemonSet.
struct MountedFolders {
    pins: BpfFs,
    given: TempDir,
    records: TempDir,
}

impl MountedFolders {
    fn new() -> Result<MountedFolders> {
        let node = MountedFolders { pins: BpfFs::mount()?, given: tempfile::tempdir()?, records: tempfile::tempdir()? };
        certificates(node.given.path())?;
        fs::write(node.given.path().join("token"), "secret\n")?;
        fs::write(node.given.path().join("kubeconfig"), KUBECONFIG)?;
        Ok(node)
    }

    fn start(&self, image_lab: &ImageLab, case: &Case) -> Result<Container> {
        fs::write(self.given.path().join(format!("{}.yaml", case.name)), case.config)?;
        let arguments: Vec<String> = ["agent".to_owned()].into_iter().chain(case.arguments.iter().cloned()).collect();
        let mut config = image_lab.container_config(&arguments, None)?;
        let mounts = config["mounts"].as_array_mut().context("mounts")?;
        for (place, folder, readonly) in [
            ("/pins", self.pins.path(), false),
            (GIVEN, self.given.path(), true),
            (RECORDS, self.records.path(), false),
        ] {
            mounts.push(json!({ "container_path": place, "host_path": folder, "readonly": readonly }));
        }
        // Without CAP_CHOWN a process can give files only to its own groups: the pod's supplementalGroups.
        config["linux"]["security_context"]["supplemental_groups"] = json!([GROUP]);
        image_lab.containerd.start_container(&image_lab.sandbox, case.name, config)
    }

    /// The last record of a case's history: the status `stopped`, which lists every output.
    fn stopped(&self, case: &Case) -> Result<Value> {
        let folder = self.records.path().join(case.name).join("history");
        let files: Vec<PathBuf> = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        let text = fs::read_to_string(files.iter().max().context("a segment")?)?;
        let stopped: Value = serde_json::from_str(text.lines().next_back().context("a record")?)?;
        ensure!(stopped["phase"] == "stopped", "{stopped}");
        Ok(stopped)
    }
}

fn stderr(container: &Container) -> String {
    container.lines("stderr").map(|lines| lines.join("\n")).unwrap_or_default()
}

#[test]
fn every_option_works_in_the_image() -> Result<()> {
    let (objects, archive) = require!(given("overlays/host-network"));
    require!(has_program("openssl", "openssl"));
    // Mounted before the runtime starts, which does not see later mounts.
    let node = MountedFolders::new()?;
    let image_lab = ImageLab::start(&objects, &archive)?;
    let (plain, tls) = image_lab
        .pair
        .lab
        .node()
        .run(|| anyhow::Ok((Collector::start(&[])?, Collector::start_tls(node.given.path())?)))?;
    let cases = cases(&plain, &tls);
    let left_out = left_out(&cases);
    assert!(left_out.is_empty(), "no case of {} has {left_out:?}: add them to one", file!());

    for case in &cases {
        let container = node.start(&image_lab, case)?;
        let code = eventually(case.name, || image_lab.containerd.exit_code(&container))?;
        let context = || format!("{}: {}", case.name, stderr(&container));
        ensure!(code == 0, "exit code {code}, {}", context());
        let stopped = node.stopped(case).with_context(context)?;
        let outputs = case.arguments.iter().filter(|argument| argument.starts_with("--output=")).count().max(1);
        let sinks = stopped["sinks"].as_array().context("sinks")?;
        assert_eq!(sinks.len(), outputs + 1, "{}: {stopped}", context());
        for sink in sinks {
            let written = sink["records"].as_u64() > Some(0) && sink["records_lost"] == 0 && sink["error"].is_null();
            assert!(written, "{sink}\n{}", context());
        }
        let lines = container.lines("stdout")?;
        assert!(!lines.is_empty() && lines.iter().all(|line| line.starts_with('{')), "{lines:?}\n{}", context());
    }
    for collector in [&plain, &tls] {
        assert!(!collector.taken().0.is_empty(), "{} received nothing", collector.address);
    }
    let heads = plain.taken().1;
    assert!(heads.iter().all(|head| head.to_lowercase().contains("authorization: bearer secret")), "{heads:?}");
    for name in ["rotated", "ecs", "ocsf", "otel"] {
        let file = node.records.path().join(format!("{name}.jsonl"));
        ensure!(fs::metadata(&file)?.len() > 0, "{}", file.display());
    }
    image_lab.containerd.remove(&image_lab.sandbox)
}

/// Without `ca-file=` the program uses the authorities that it contains: the output opens, and does not trust an unknown certificate.
#[test]
fn https_needs_no_files_of_a_system() -> Result<()> {
    let (objects, archive) = require!(given("overlays/host-network"));
    require!(has_program("openssl", "openssl"));
    let node = MountedFolders::new()?;
    let image_lab = ImageLab::start(&objects, &archive)?;
    let tls = image_lab.pair.lab.node().run(|| Collector::start_tls(node.given.path()))?;
    let output = format!("--output=otlp:https://{}", tls.address);
    let mut case = case("https", "", &["--manifests=/manifests", "--output=stdout", &output]);
    // Without --duration: at its end the agent would wait for the receiver.
    case.arguments.retain(|argument| !argument.starts_with("--duration"));
    let container = node.start(&image_lab, &case)?;
    let started = eventually("its start", || {
        ensure!(image_lab.containerd.exit_code(&container)?.is_none(), "{}", stderr(&container));
        Ok(container.lines("stdout")?.into_iter().next())
    })?;
    let started: Value = serde_json::from_str(&started)?;
    assert_eq!(started["sinks"][1]["error"], Value::Null, "{started}");
    assert!(tls.taken().0.is_empty(), "the agent sent to a receiver that it can't trust");
    image_lab.containerd.stop_container(&container, 0)?;

    // The message names a group that the pod is not in, and the remedy.
    let output = format!("--output=file:{RECORDS}/other.jsonl,group={}", GROUP + 1);
    let other = self::case("other", "", &["--manifests=/manifests", &output]);
    let container = node.start(&image_lab, &other)?;
    assert_eq!(eventually("its end", || image_lab.containerd.exit_code(&container))?, 1);
    let message = stderr(&container);
    assert!(message.contains("can't be given to group 4712") && message.contains("supplementalGroups"), "{message}");
    image_lab.containerd.remove(&image_lab.sandbox)
}

/// The check of the table works: without any one case something is left out.
#[test]
fn what_no_case_has_is_found() -> Result<()> {
    let folder = tempfile::tempdir()?;
    require!(has_program("openssl", "openssl"));
    certificates(Path::new(folder.path()))?;
    let (plain, tls) = (Collector::start(&[])?, Collector::start_tls(folder.path())?);
    let count = cases(&plain, &tls).len();
    assert_eq!(left_out(&cases(&plain, &tls)), Vec::<String>::new());
    for at in 0..count {
        let mut cases = cases(&plain, &tls);
        let name = cases.remove(at).name;
        assert!(!left_out(&cases).is_empty(), "nothing is left out without {name}");
    }
    Ok(())
}
