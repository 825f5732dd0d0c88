//! A container runtime of the test's own: containerd in the lab's node, asked through its CRI as a kubelet asks it.
//!
//! It runs in PID and mount namespaces of its own, so that all of its containers and mounts end with it, however that ends.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::daemon::{Daemon, Lifetime};
use crate::cluster::programs::CRI;
use crate::cluster::{built, unpacked};
use crate::eventually;
use crate::netns::Netns;
use crate::skip::missing;

/// Names an image of the agent, as `cargo xtask image` makes it.
pub const IMAGE: &str = "NETPOL_TRACE_IMAGE";

/// What holds a pod's namespaces. The runtime wants an image for it.
const PAUSE: &str = "localhost/pause:1";
/// The pods' network, where they have one of their own.
const NETWORK: &str = r#"{
  "cniVersion": "1.0.0", "name": "lab",
  "plugins": [{ "type": "ptp", "ipam": { "type": "host-local", "dataDir": "DIR/ipam", "subnet": "10.99.0.0/24" } }]
}"#;
const PLUGINS: &str = "/usr/lib/cni";

/// A running containerd; it ends with this.
#[derive(Debug)]
pub struct Containerd {
    daemon: Daemon,
    dir: TempDir,
}

/// A pod's sandbox and what its containers are made of.
#[derive(Debug)]
pub struct Sandbox {
    id: String,
    config: Value,
}

/// A container that was started.
#[derive(Debug)]
pub struct Container {
    pub id: String,
    log: PathBuf,
}

/// What a container runtime requires of this machine.
pub fn can_run() -> Result<()> {
    let packages = unpacked("containerd");
    if !packages.join("usr/bin/containerd").is_file() {
        return Err(missing("no containerd here: `cargo xtask setup` unpacks it into the cache, on Debian"));
    }
    for program in ["runc", "buildah"] {
        crate::has_program(program, program)?;
    }
    if !Path::new(PLUGINS).join("ptp").is_file() {
        return Err(missing("no CNI plugins here: apt-get install containernetworking-plugins"));
    }
    built(&CRI).map(drop)
}

impl Containerd {
    /// Starts one in a node, with the images of these archives and one that holds a pod's namespaces.
    pub fn start(node: &Netns, archives: &[&Path]) -> Result<Containerd> {
        let dir = tempfile::Builder::new().prefix("netpol-trace-containerd-").tempdir()?;
        let place = dir.path().display();
        fs::create_dir(dir.path().join("cni"))?;
        fs::write(dir.path().join("cni/lab.conflist"), NETWORK.replace("DIR", &place.to_string()))?;
        // Without the right to lower it a score can't be set.
        let config = format!(
            r#"version = 2
root = "{place}/root"
state = "{place}/state"
[grpc]
address = "{place}/socket"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
netns_mounts_under_state_dir = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{PLUGINS}"
conf_dir = "{place}/cni"
"#
        );
        fs::write(dir.path().join("config.toml"), config)?;
        let arguments = ["--pid", "--fork", "--kill-child=KILL", "--mount", "--mount-proc", "containerd", "--config"];
        let mut arguments: Vec<String> = arguments.map(String::from).into();
        arguments.push(format!("{place}/config.toml"));
        let path = search_path().to_string_lossy().into_owned();
        let log = dir.path().join("log");
        let daemon = Daemon::start_with(
            Path::new("unshare"),
            &arguments,
            &log,
            Lifetime::OfThisProgram,
            Some(node),
            &[("PATH", path)],
        )?;
        let containerd = Containerd { daemon, dir };
        eventually("containerd's answer", || {
            containerd.daemon.check()?;
            let status = containerd.call("Status", &json!({})).ok();
            let conditions = status.as_ref().and_then(|status| status["status"]["conditions"].as_array());
            Ok(conditions.is_some_and(|all| all.iter().all(|one| one["status"] == true)).then_some(()))
        })
        .with_context(|| containerd.daemon.log())?;
        let pause = containerd.pause_image()?;
        for archive in archives.iter().copied().chain([pause.as_path()]) {
            let mut import = Command::new(unpacked("containerd").join("usr/bin/ctr"));
            import.arg("--address").arg(containerd.socket()).args(["--namespace", "k8s.io", "images", "import"]);
            succeed(import.arg(archive))?;
        }
        Ok(containerd)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// A program that waits, on nothing.
    fn pause_image(&self) -> Result<PathBuf> {
        let place = |name: &str| self.dir.path().join(name);
        fs::write(place("pause.c"), "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n")?;
        succeed(Command::new("cc").args(["-static", "-o"]).arg(place("pause")).arg(place("pause.c")))?;
        let buildah = |arguments: &[&str]| {
            let mut command = Command::new("buildah");
            command.args(["--storage-driver", "vfs", "--root"]).arg(place("images"));
            succeed(command.arg("--runroot").arg(place("images.run")).args(arguments))
        };
        let container = buildah(&["from", "scratch"])?;
        buildah(&["copy", "--quiet", &container, &place("pause").to_string_lossy(), "/pause"])?;
        buildah(&["config", "--entrypoint", "[\"/pause\"]", &container])?;
        buildah(&["commit", "--quiet", &container, PAUSE])?;
        let archive = place("pause.oci.tar");
        buildah(&["push", "--quiet", PAUSE, &format!("oci-archive:{}:{PAUSE}", archive.display())])?;
        Ok(archive)
    }

    /// One call of its CRI.
    pub fn call(&self, method: &str, request: &Value) -> Result<Value> {
        let mut command = Command::new(built(&CRI)?);
        command.arg(self.socket()).arg(method).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start cri")?;
        child.stdin.take().context("its standard input")?.write_all(request.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        serde_json::from_slice(&output.stdout).with_context(|| format!("{method}'s answer"))
    }

    /// A pod's sandbox. With the host network the pod is in the node that containerd runs in.
    pub fn sandbox(&self, name: &str, host_network: bool) -> Result<Sandbox> {
        let network = if host_network { "NODE" } else { "POD" };
        let config = json!({
            "metadata": { "name": name, "namespace": "netpol-trace", "uid": name },
            "log_directory": self.dir.path().join("logs"),
            "linux": {
                "cgroup_parent": cgroup_parent(),
                "security_context": { "namespace_options": { "network": network, "pid": "CONTAINER" } },
            },
        });
        let answer = self.call("RunPodSandbox", &json!({ "config": config }))?;
        Ok(Sandbox { id: answer["podSandboxId"].as_str().context("a sandbox's id")?.to_owned(), config })
    }

    /// Starts a container of a CRI `ContainerConfig`.
    pub fn start_container(&self, sandbox: &Sandbox, name: &str, mut config: Value) -> Result<Container> {
        config["metadata"] = json!({ "name": name });
        config["log_path"] = format!("{name}.log").into();
        let request = json!({ "pod_sandbox_id": sandbox.id, "config": config, "sandbox_config": sandbox.config });
        let answer = self.call("CreateContainer", &request)?;
        let id = answer["containerId"].as_str().context("a container's id")?.to_owned();
        self.call("StartContainer", &json!({ "container_id": id }))?;
        Ok(Container { id, log: self.dir.path().join(format!("logs/{name}.log")) })
    }

    /// SIGTERM, and SIGKILL after so many seconds; with 0 SIGKILL at once.
    pub fn stop_container(&self, container: &Container, seconds: u32) -> Result<()> {
        self.call("StopContainer", &json!({ "container_id": container.id, "timeout": seconds })).map(drop)
    }

    /// How it ended; `None` while it runs.
    pub fn exit_code(&self, container: &Container) -> Result<Option<i64>> {
        let status = self.call("ContainerStatus", &json!({ "container_id": container.id }))?;
        let ended = status["status"]["state"] == "CONTAINER_EXITED";
        // JSON of protocol buffers leaves out zeros.
        Ok(ended.then(|| status["status"]["exitCode"].as_i64().unwrap_or_default()))
    }

    /// Ends a pod with all that is in it.
    pub fn remove(&self, sandbox: &Sandbox) -> Result<()> {
        let request = json!({ "pod_sandbox_id": sandbox.id });
        self.call("StopPodSandbox", &request)?;
        self.call("RemovePodSandbox", &request).map(drop)
    }
}

impl Sandbox {
    /// `NODE` or `POD`.
    pub fn network(&self) -> &Value {
        &self.config["linux"]["security_context"]["namespace_options"]["network"]
    }
}

impl Container {
    /// The lines of one of its streams so far; the runtime writes long ones in parts.
    pub fn lines(&self, stream: &str) -> Result<Vec<String>> {
        let text = fs::read_to_string(&self.log).with_context(|| self.log.display().to_string())?;
        let mut lines = vec![String::new()];
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let mut words = line.splitn(4, ' ').skip(1);
            let (of, part, rest) = (words.next(), words.next(), words.next().unwrap_or_default());
            if of == Some(stream) {
                lines.last_mut().context("a line")?.push_str(rest);
                if part == Some("F") {
                    lines.push(String::new());
                }
            }
        }
        lines.pop();
        Ok(lines)
    }

    /// Its processes, as this program sees them.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let text = fs::read_to_string(self.cgroup()?.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// The most memory that it was charged for, in MiB: program file, kernel maps and all.
    pub fn most_memory(&self) -> Result<f64> {
        let cgroup = self.cgroup()?;
        let names = ["memory.max_usage_in_bytes", "memory.peak"];
        let text = names.iter().find_map(|name| fs::read_to_string(cgroup.join(name)).ok()).context("no peak here")?;
        Ok(text.trim().parse::<f64>()? / f64::from(1 << 20))
    }

    /// Its memory cgroup, of either version.
    fn cgroup(&self) -> Result<PathBuf> {
        let roots = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(Path::new);
        let mut places = roots.iter().map(|root| root.join(&cgroup_parent()[1..]).join(&self.id));
        places.find(|place| place.is_dir()).context("no memory cgroup of the container")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let controllers = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for root in controllers.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let place = root.join(&cgroup_parent()[1..]);
            // A cgroup goes when its last process has.
            let _ = eventually("an empty cgroup", || {
                fs::read_dir(&place)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .for_each(|child| drop(fs::remove_dir(child.path())));
                let _ = fs::remove_dir(&place);
                Ok((!place.exists()).then_some(()))
            });
        }
    }
}

/// Of all containers of this program.
fn cgroup_parent() -> String {
    format!("/netpol-trace-test-{}", std::process::id())
}

/// Where containerd looks for its shim and for runc.
fn search_path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = [unpacked("containerd").join("usr/bin")];
    let all = own.into_iter().chain(std::env::split_paths(&path)).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    std::env::join_paths(all).unwrap_or(path)
}

/// Runs a command; its stdout, trimmed.
fn succeed(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
