//! Runs README's lines for a first installation as they are.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use netpol_trace_tests::cluster::control_plane::ControlPlane;
use netpol_trace_tests::cluster::daemon::Lifetime;
use netpol_trace_tests::cluster::programs::{HELM, KUBECTL};
use netpol_trace_tests::cluster::{self, built};
use netpol_trace_tests::{agent, require};
use serde_json::{Value, json};

use super::render::deploy;

/// The indented lines of README that begin with one of these.
fn lines(beginnings: &[&str]) -> Result<Vec<String>> {
    let readme = fs::read_to_string(deploy().with_file_name("README.md"))?;
    let typed = readme.lines().filter_map(|line| line.strip_prefix("    "));
    Ok(typed.filter(|line| beginnings.iter().any(|begin| line.starts_with(begin))).map(str::to_owned).collect())
}

/// On a new cluster the release is deployed, and Pod Security admits the agents' pods into their namespace.
#[test]
fn the_readmes_helm_lines_install_it() -> Result<()> {
    require!(cluster::can_run(&[KUBECTL, HELM]));
    let typed = lines(&["kubectl create namespace ", "kubectl label namespace ", "helm install "])?;
    assert_eq!(typed.len(), 3, "{typed:?}");
    let dir = tempfile::tempdir()?;
    let plane = ControlPlane::start(&dir.path().join("plane"), Lifetime::OfThisProgram)?;
    let programs = dir.path().join("bin");
    fs::create_dir(&programs)?;
    symlink(built(&KUBECTL)?, programs.join("kubectl"))?;
    symlink(built(&HELM)?, programs.join("helm"))?;
    let path = format!("{}:{}", programs.display(), std::env::var("PATH")?);
    let output = Command::new("sh")
        .args(["-ec", &typed.join("\n")])
        .current_dir(deploy().parent().context("the checkout")?)
        .env("PATH", path)
        .env("KUBECONFIG", plane.kubeconfig())
        // helm writes its caches into the home folder.
        .env("HOME", dir.path())
        .output()?;
    let printed = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && printed.contains("STATUS: deployed"), "{typed:#?}\n{printed}");

    let daemonset = plane.api().get("/apis/apps/v1/namespaces/netpol-trace/daemonsets/netpol-trace")?;
    let spec = daemonset.pointer("/spec/template/spec").context("a pod")?.clone();
    let pods = |namespace: &str| {
        let metadata = json!({ "name": "agent", "namespace": namespace });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
        plane.api().post(&format!("/api/v1/namespaces/{namespace}/pods?dryRun=All"), &pod)
    };
    let pod: Value = pods("netpol-trace").with_context(|| printed.clone())?;
    assert_eq!(pod["spec"]["containers"][0]["name"], "agent", "{pod}");
    Ok(())
}

/// README copies the command line program out of a running agent. The copy is complete and runs.
#[test]
fn the_program_comes_out_of_itself() -> Result<()> {
    let typed = lines(&["kubectl -n netpol-trace exec ds/netpol-trace -- /netpol-trace "])?;
    let [typed] = typed.as_slice() else { anyhow::bail!("README says it once: {typed:?}") };
    let (command, file) = typed.split_once(" > ").context("into a file")?;
    assert_eq!(file, "kubectl-netpol_trace", "the name by which kubectl finds it");
    let arguments = command.split_once("-- /netpol-trace ").context("the program in the image")?.1;
    let program = agent::binary()?;
    // Without a shell, PATH or other files, as in the image.
    let output = Command::new(&program).args(arguments.split(' ')).env_clear().current_dir("/").output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == fs::read(&program)?, "not the program: {} bytes", output.stdout.len());
    runs(&output.stdout)
}

fn runs(program: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir()?;
    let plugin = dir.path().join("kubectl-netpol_trace");
    fs::write(&plugin, program)?;
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755))?;
    let help = version(&plugin)?;
    assert!(help.contains(env!("CARGO_PKG_VERSION")), "{help}");
    Ok(())
}

fn version(plugin: &Path) -> Result<String> {
    Ok(String::from_utf8(Command::new(plugin).arg("--version").output()?.stdout)?)
}
