//! Runs containerd in the lab's node and calls its CRI as a kubelet does.
//!
//! containerd has PID and mount namespaces of its own, so that its containers and mounts end with it.

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

/// The environment variable with the path of the agent's image, which `cargo xtask image` makes.
pub const IMAGE: &str = "NETPOL_TRACE_IMAGE";

/// The image of the process that holds a pod's namespaces.
const PAUSE: &str = "localhost/pause:1";
/// The network of pods without hostNetwork.
const NETWORK: &str = r#"{
  "cniVersion": "1.0.0", "name": "lab",
  "plugins": [{ "type": "ptp", "ipam": { "type": "host-local", "dataDir": "DIR/ipam", "subnet": "10.99.0.0/24" } }]
}"#;
const PLUGINS: &str = "/usr/lib/cni";

/// A running containerd, killed when dropped.
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
    /// Starts containerd in a node and imports the images of these archives.
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

    /// Makes the image with a program that only waits.
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

    /// Makes one call of its CRI.
    pub fn call(&self, method: &str, request: &Value) -> Result<Value> {
        let mut command = Command::new(built(&CRI)?);
        command.arg(self.socket()).arg(method).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start cri")?;
        child.stdin.take().context("its standard input")?.write_all(request.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        serde_json::from_slice(&output.stdout).with_context(|| format!("{method}'s answer"))
    }

    /// Starts a pod's sandbox. With hostNetwork the pod is in the network namespace of the node.
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

    /// Sends SIGTERM, and SIGKILL after this many seconds. With 0 it sends SIGKILL at once.
    pub fn stop_container(&self, container: &Container, seconds: u32) -> Result<()> {
        self.call("StopContainer", &json!({ "container_id": container.id, "timeout": seconds })).map(drop)
    }

    /// The exit code; `None` while it runs.
    pub fn exit_code(&self, container: &Container) -> Result<Option<i64>> {
        let status = self.call("ContainerStatus", &json!({ "container_id": container.id }))?;
        let ended = status["status"]["state"] == "CONTAINER_EXITED";
        // Protocol buffers leave out zeros in JSON.
        Ok(ended.then(|| status["status"]["exitCode"].as_i64().unwrap_or_default()))
    }

    /// Stops a pod and removes it with its containers.
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
    /// The lines of stdout or stderr so far. The runtime writes long lines in parts.
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

    /// The ids of its processes in this program's PID namespace.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let text = fs::read_to_string(self.cgroup()?.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// The highest memory charge of its cgroup in MiB, with program file and kernel maps.
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
            // A cgroup can be removed when its last process has ended.
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
