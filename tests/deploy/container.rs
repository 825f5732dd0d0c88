//! The image of `cargo xtask image` in a real container runtime, started as a kubelet starts the DaemonSet's container.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use netpol_trace_tests::agent::{Run, SOON};
use netpol_trace_tests::cluster::built;
use netpol_trace_tests::cluster::programs::KUBECTL;
use netpol_trace_tests::containerd::{self, Container, Containerd, IMAGE, Sandbox};
use netpol_trace_tests::pair::{CLIENT, DENY, Pair, SERVER};
use netpol_trace_tests::record::Record;
use netpol_trace_tests::skip::missing;
use netpol_trace_tests::{bpf, can_run_lab, eventually, require, traffic};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::render::{Objects, kustomize};

/// The memory limit that docs/scaling.md gives for a small cluster.
const MEMORY_LIMIT_MIB: u64 = 64;
const PACKETS: u64 = 3;
const NODE_NAME: &str = "node-a";
/// What Kubernetes hides from containers and makes read-only (its `securitycontext` package).
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A lab whose node runs a pod of an overlay in containerd.
pub struct ImageLab {
    pub pair: Pair,
    pub containerd: Containerd,
    pub sandbox: Sandbox,
    /// The DaemonSet's container.
    container: Value,
    image: String,
    /// The folders of its volumes, by name.
    volumes: TempDir,
}

impl ImageLab {
    pub fn start(objects: &Objects, archive: &Path) -> Result<ImageLab> {
        let pair = Pair::start(DENY)?;
        let containerd = Containerd::start(pair.lab.node(), &[archive])?;
        let pod = &objects["DaemonSet netpol-trace"]["spec"]["template"]["spec"];
        let container = pod["containers"][0].clone();
        let sandbox = containerd.sandbox("agent", pod["hostNetwork"] == true)?;
        let volumes = tempfile::tempdir()?;
        for volume in pod["volumes"].as_array().context("volumes")? {
            fs::create_dir(volumes.path().join(volume["name"].as_str().context("a name")?))?;
        }
        let config = objects["ConfigMap netpol-trace"]["data"]["config.yaml"].as_str().context("a config file")?;
        fs::write(volumes.path().join("config/config.yaml"), config)?;
        let image = container["image"].as_str().context("an image")?.to_owned();
        Ok(ImageLab { pair, containerd, sandbox, container, image, volumes })
    }

    /// The CRI configuration that a kubelet makes of the DaemonSet's container, with other arguments. `profile` is a seccomp profile of type
    /// Localhost.
    pub fn container_config(&self, arguments: &[String], profile: Option<&Path>) -> Result<Value> {
        let security = &self.container["securityContext"];
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
        let seccomp = match profile {
            None => json!({ "profile_type": "RuntimeDefault" }),
            Some(file) => json!({ "profile_type": "Localhost", "localhost_ref": file }),
        };
        let mount = |mount: &Value| {
            json!({
                "container_path": mount["mountPath"], "readonly": mount["readOnly"] == true,
                "host_path": self.volumes.path().join(mount["name"].as_str().unwrap_or_default()),
            })
        };
        let mut mounts: Vec<Value> =
            self.container["volumeMounts"].as_array().context("mounts")?.iter().map(mount).collect();
        // Manifests stand in for the API server.
        mounts.push(json!({ "container_path": "/manifests", "readonly": true, "host_path": self.pair.manifests() }));
        Ok(json!({
            "image": { "image": self.image },
            "args": arguments,
            // Protocol buffers have bytes as base64 in JSON.
            "envs": [{ "key": "NODE_NAME", "value": BASE64_STANDARD.encode(NODE_NAME) }],
            "mounts": mounts,
            "linux": {
                "resources": { "memory_limit_in_bytes": (MEMORY_LIMIT_MIB << 20).to_string() },
                "security_context": {
                    "capabilities": {
                        "add_capabilities": security["capabilities"]["add"],
                        "drop_capabilities": security["capabilities"]["drop"],
                    },
                    "namespace_options": { "network": self.sandbox.network(), "pid": "CONTAINER" },
                    "run_as_user": { "value": security["runAsUser"] },
                    "run_as_group": { "value": security["runAsGroup"] },
                    "privileged": security["privileged"],
                    "readonly_rootfs": security["readOnlyRootFilesystem"],
                    "no_new_privs": security["allowPrivilegeEscalation"] == false,
                    "seccomp": seccomp,
                    "masked_paths": MASKED,
                    "readonly_paths": READ_ONLY,
                },
            },
        }))
    }

    /// Starts the agent with the DaemonSet's arguments.
    fn agent(&self, name: &str) -> Result<Container> {
        let arguments = self.container["args"].as_array().context("arguments")?.iter().filter_map(Value::as_str);
        // A kubelet inserts the pod's address.
        let arguments = arguments.map(|argument| argument.replace("$(POD_IP)", "127.0.0.1"));
        let more = ["--manifests", "/manifests", "--all-drops"].into_iter().chain(SOON).map(String::from);
        let config = self.container_config(&arguments.chain(more).collect::<Vec<_>>(), None)?;
        let agent = self.containerd.start_container(&self.sandbox, name, config)?;
        self.wait_for(&agent, "its start", |record| record.text("/phase") == "started")?;
        Ok(agent)
    }

    /// Sends packets that the lab's policy drops, and waits for their records.
    fn send(&self, agent: &Container) -> Result<()> {
        for _ in 0..PACKETS {
            traffic::udp(&self.pair.client()?.netns, CLIENT.into(), [(SERVER, 5000).into()], 32)?;
        }
        self.wait_for(agent, "a drop", |record| self.is_ours(record))
    }

    /// Stops the agent as a kubelet does, checks its packet accounting, and checks that every packet that the policy dropped is in a record
    /// with the cause `policy`.
    fn stop_and_compare(&self, agent: &Container) -> Result<Run> {
        self.containerd.stop_container(agent, 15)?;
        let code = i32::try_from(self.containerd.exit_code(agent)?.context("an end")?)?;
        let stderr = agent.lines("stderr")?.join("\n");
        let run = Run { records: records(agent)?, stderr, exit: ExitStatus::from_raw(code << 8) };
        run.balance()?;
        let drops: Vec<&Record> = run.records.iter().filter(|record| self.is_ours(record)).collect();
        run.account_for("denied", self.pair.counted("denied")?, drops.iter().copied())?;
        let named = |record: &&Record| record.cause() == "policy" && record.pod("destination") == "lab/server";
        assert!(drops.iter().all(named), "{drops:?}");
        Ok(run)
    }

    fn is_ours(&self, record: &Record) -> bool {
        record.is_drop() && self.pair.lab.owns(record) && record.number("/destination/port") == Some(5000)
    }

    fn wait_for(&self, agent: &Container, what: &str, done: impl Fn(&Record) -> bool) -> Result<()> {
        eventually(what, || {
            if let Some(code) = self.containerd.exit_code(agent)? {
                anyhow::bail!("the agent ended with {code}: {}", agent.lines("stderr")?.join("\n"));
            }
            Ok(records(agent)?.iter().any(&done).then_some(()))
        })
        .with_context(|| format!("stderr: {:?}", agent.lines("stderr")))
    }

    /// Runs `doctor` in the DaemonSet's container. Returns its exit code and findings.
    fn doctor(&self, name: &str, profile: Option<&Path>) -> Result<(i64, Vec<Value>)> {
        let arguments = ["doctor", "--output", "json"].map(String::from);
        let config = self.container_config(&arguments, profile)?;
        let doctor = self.containerd.start_container(&self.sandbox, name, config)?;
        let code = eventually("doctor's end", || self.containerd.exit_code(&doctor))?;
        let text = doctor.lines("stdout")?.join("\n");
        let findings = serde_json::from_str(&text).with_context(|| format!("{:?}", doctor.lines("stderr")))?;
        Ok((code, findings))
    }
}

fn records(agent: &Container) -> Result<Vec<Record>> {
    agent.lines("stdout")?.iter().map(|line| Record::parse(line)).collect()
}

fn finding<'a>(findings: &'a [Value], check: &str) -> Result<&'a Value> {
    findings.iter().find(|finding| finding["check"] == check).with_context(|| format!("no {check} in {findings:?}"))
}

/// The objects of an overlay and the image's archive.
pub fn given(overlay: &str) -> Result<(Objects, PathBuf)> {
    can_run_lab()?;
    let kubectl = built(&KUBECTL)?;
    let archive = std::env::var_os(IMAGE);
    let archive =
        archive.ok_or_else(|| missing(format!("no image: cargo xtask image, and {IMAGE} with the archive's path")))?;
    containerd::can_run()?;
    Ok((kustomize(&kubectl, overlay)?, archive.into()))
}

/// In the node's network namespace, with all rights of the manifests: every dropped packet is in a record on stdout, within the memory limit
/// of docs/scaling.md. The agent stops cleanly, the next one knows it, and after SIGKILL nothing stays in the kernel.
#[test]
fn the_image_records_drops_in_the_nodes_network() -> Result<()> {
    let (objects, archive) = require!(given("overlays/host-network"));
    let image_lab = ImageLab::start(&objects, &archive)?;
    let first = image_lab.agent("first")?;
    image_lab.send(&first)?;
    let run = image_lab.stop_and_compare(&first)?;
    let started = run.records.iter().find(|record| record.text("/phase") == "started").context("a start")?;
    assert_eq!(started.text("/node"), NODE_NAME, "{started}");
    // Both hooks and the rulesets are active in this overlay.
    for name in ["kfree_skb", "tc", "rulesets"] {
        let hook = started.list("/hooks").iter().find(|hook| hook["name"] == name).context(name)?;
        assert!(!["off", "refused", "unreadable"].contains(&hook["state"].as_str().unwrap_or_default()), "{started}");
    }

    let second = image_lab.agent("second")?;
    image_lab.send(&second)?;
    let successor = records(&second)?;
    assert_eq!(
        successor.iter().find(|r| r.text("/phase") == "started").context("a start")?.text("/previous_run"),
        run.records[0].text("/run")
    );
    let processes = second.processes()?;
    let mut objects = BTreeSet::new();
    for pid in &processes {
        objects.extend(bpf::objects(*pid)?);
    }
    assert!(objects.iter().any(|(kind, _)| *kind == "prog"), "{processes:?}: {objects:?}");
    let memory = second.most_memory()?;
    println!("at most {memory:.1} MiB of {MEMORY_LIMIT_MIB}");
    image_lab.containerd.stop_container(&second, 0)?;
    assert_eq!(image_lab.containerd.exit_code(&second)?, Some(137), "killed");
    eventually("the agent's BPF objects are gone", || {
        Ok(objects.iter().all(|(kind, id)| !bpf::exists(kind, id)).then_some(()))
    })?;
    image_lab.containerd.remove(&image_lab.sandbox)
}

/// In a network namespace of its own, with the fewest rights of the manifests.
#[test]
fn the_image_records_drops_from_a_pods_network() -> Result<()> {
    let (objects, archive) = require!(given("overlays/restricted"));
    let image_lab = ImageLab::start(&objects, &archive)?;
    let agent = image_lab.agent("agent")?;
    image_lab.send(&agent)?;
    comes_out(&agent)?;
    image_lab.stop_and_compare(&agent)?;
    image_lab.containerd.remove(&image_lab.sandbox)
}

/// Copies the program out of the container as README says: `kubectl exec` runs it inside, and it prints itself.
fn comes_out(container: &Container) -> Result<()> {
    let pid = container.processes()?.first().context("the agent's process")?.to_string();
    let mut inside = Command::new("nsenter");
    inside.args(["--target", &pid, "--mount", "--pid", "--root", "--", "/netpol-trace", "print-binary"]);
    let output = inside.output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == fs::read(format!("/proc/{pid}/exe"))?, "{} bytes, not the program", output.stdout.len());
    Ok(())
}

/// Doctor is right about the seccomp profile: the runtime's default one allows bpf(2), and one that does not is reported.
#[test]
fn doctor_in_the_image_knows_the_seccomp_profile() -> Result<()> {
    let (objects, archive) = require!(given("overlays/host-network"));
    let image_lab = ImageLab::start(&objects, &archive)?;
    let (code, findings) = image_lab.doctor("default", None)?;
    assert_eq!(code, 0, "{findings:#?}");
    let seccomp = finding(&findings, "seccomp")?;
    assert_eq!(seccomp["status"], "ok", "{seccomp}");
    assert_eq!(finding(&findings, "hook")?["status"], "ok", "{findings:#?}");

    let profile = image_lab.volumes.path().join("no-bpf.json");
    let refuse = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
    });
    fs::write(&profile, refuse.to_string())?;
    let (code, findings) = image_lab.doctor("no-bpf", Some(&profile))?;
    assert_eq!(code, 1, "{findings:#?}");
    assert_eq!(finding(&findings, "seccomp")?["status"], "fail", "{findings:#?}");
    assert_eq!(finding(&findings, "hook")?["remedy"], "see `seccomp`", "{findings:#?}");
    image_lab.containerd.remove(&image_lab.sandbox)
}
