//! `cargo xtask dist`: makes a release's downloads: the program as a kubectl plugin, in one archive per architecture, with checksums
//! and krew's manifest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::image::{self, Arch};
use crate::machine;
use crate::setup::{self, Need};

/// Pack the program as a kubectl plugin: an archive with one static binary, its checksum, and krew's manifest
///
/// Unpack the archive into a folder of your PATH, and `kubectl netpol-trace` is there. With krew:
/// kubectl krew install --manifest=target/dist/netpol-trace.yaml --archive=target/dist/kubectl-netpol_trace-linux-amd64.tar.gz
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Architecture: amd64 or arm64; repeatable [default: this machine's]
    #[arg(long)]
    arch: Vec<Arch>,
    /// Pack this static binary instead of building one
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
}

/// The program's name as a plugin, by which kubectl finds it.
const PLUGIN: &str = "kubectl-netpol_trace";
/// In the archive: the agent's licences, and that of the programs for the kernel inside of it.
const LICENCES: [&str; 3] = ["LICENSE-APACHE", "LICENSE-MIT", "netpol-trace-ebpf/LICENSE-GPL2"];
/// The template that krew-release-bot fills in at a release. Its URLs give the archives' names.
const TEMPLATE: &str = "deploy/krew/netpol-trace.yaml";

pub fn run(args: &Args) -> Result<ExitCode> {
    let arches = if args.arch.is_empty() { vec![Arch::of_this_machine()] } else { args.arch.clone() };
    if args.binary.is_some() && arches.len() > 1 {
        bail!("--binary is one binary for one machine: give --arch once");
    }
    if args.binary.is_none() {
        setup::ensure(&[Need::Build])?;
    }
    let folder = machine::target().join("dist");
    let mut archives = Vec::new();
    for arch in arches {
        let binary = args.binary.clone().map_or_else(|| image::static_binary(arch), Ok)?;
        archives.push(pack(&binary, &arch.to_string(), &folder)?);
    }
    let template = fs::read_to_string(machine::root().join(TEMPLATE)).context(TEMPLATE)?;
    fs::write(folder.join("netpol-trace.yaml"), manifest(&template, &archives)?)?;
    let sums: String = archives.iter().map(|archive| format!("{}  {}\n", archive.sha256, archive.name)).collect();
    fs::write(folder.join("SHA256SUMS"), sums)?;
    for archive in &archives {
        println!("{}: sha256 {}", folder.join(&archive.name).display(), archive.sha256);
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug)]
struct Archive {
    name: String,
    sha256: String,
}

/// The archive with the binary under the plugin's name. The same binary makes the same archive, byte for byte.
fn pack(binary: &Path, arch: &str, folder: &Path) -> Result<Archive> {
    let stage = folder.join(arch);
    fs::create_dir_all(&stage).with_context(|| stage.display().to_string())?;
    fs::copy(binary, stage.join(PLUGIN)).with_context(|| binary.display().to_string())?;
    let mut names = vec![PLUGIN];
    for licence in LICENCES {
        let from = machine::root().join(licence);
        let name = licence.rsplit('/').next().unwrap_or(licence);
        fs::copy(&from, stage.join(name)).with_context(|| from.display().to_string())?;
        names.push(name);
    }
    let name = format!("{PLUGIN}-linux-{arch}.tar.gz");
    let path = folder.join(&name);
    let mut tar = Command::new("tar");
    tar.args(["--create", "--gzip", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--mode=u+rwX,go=rX"]);
    machine::run(tar.arg("--file").arg(&path).arg("--directory").arg(&stage).args(names))?;
    let sum = machine::output(Command::new("sha256sum").arg(&path))?;
    let sha256 = sum.split_whitespace().next().context("sha256sum prints nothing")?.to_owned();
    Ok(Archive { name, sha256 })
}

/// Fills in the template as krew-release-bot does, for the platforms that have an archive.
fn manifest(template: &str, archives: &[Archive]) -> Result<String> {
    const PLATFORM: &str = "    - selector:\n";
    const SUM: &str = "{{addURIAndSha \"";
    let tag = concat!("v", env!("CARGO_PKG_VERSION"));
    let mut parts = template.split(PLATFORM);
    let mut text = parts.next().unwrap_or_default().replace("{{ .TagName }}", tag);
    // The comment at the top is about the template, not about the manifest.
    text = text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    for platform in parts {
        let (before, rest) = platform.split_once(SUM).with_context(|| format!("{TEMPLATE}: no {SUM} in a platform"))?;
        let (uri, after) = rest.split_once("\" .TagName }}").with_context(|| format!("{TEMPLATE}: {rest}"))?;
        let uri = uri.replace("{{ .TagName }}", tag);
        let Some(archive) = archives.iter().find(|archive| uri.ends_with(&format!("/{}", archive.name))) else {
            continue;
        };
        text += &format!("{PLATFORM}{before}uri: {uri}\n      sha256: {}{after}", archive.sha256);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_holds_the_plugin_and_is_the_same_each_time() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("netpol-trace-dist-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let binary = folder.join("any-name");
        fs::write(&binary, "the program")?;
        let first = pack(&binary, "arm64", &folder)?;
        let listed = machine::output(Command::new("tar").arg("--list").arg("--file").arg(folder.join(&first.name)))?;
        let second = pack(&binary, "arm64", &folder)?;
        fs::remove_dir_all(&folder)?;
        assert_eq!(listed.lines().collect::<Vec<_>>(), [PLUGIN, "LICENSE-APACHE", "LICENSE-MIT", "LICENSE-GPL2"]);
        assert_eq!(first.name, "kubectl-netpol_trace-linux-arm64.tar.gz");
        assert_eq!(first.sha256, second.sha256);
        Ok(())
    }

    #[test]
    fn the_manifest_has_the_platforms_that_were_packed() -> Result<()> {
        let template = fs::read_to_string(machine::root().join(TEMPLATE))?;
        let archive =
            |arch: &str| Archive { name: format!("{PLUGIN}-linux-{arch}.tar.gz"), sha256: format!("sum-of-{arch}") };
        let both = manifest(&template, &[archive("amd64"), archive("arm64")])?;
        let one = manifest(&template, &[archive("arm64")])?;
        for text in [&both, &one] {
            assert!(!text.contains("{{") && !text.contains('#'), "{text}");
            assert!(text.contains(concat!("  version: v", env!("CARGO_PKG_VERSION"), "\n")), "{text}");
            assert!(text.contains("\n      sha256: sum-of-arm64\n      bin: kubectl-netpol_trace\n"), "{text}");
        }
        assert!(both.contains("arch: amd64") && both.contains("sum-of-amd64"), "{both}");
        assert!(!one.contains("amd64"), "{one}");
        Ok(())
    }
}
