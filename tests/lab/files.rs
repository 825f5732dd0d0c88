//! Modes and groups of the agent's files, under umasks that would leave them open or closed.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use netpol_trace_tests::pair::Pair;
use netpol_trace_tests::{agent, can_run_lab, require};

const GROUP: u32 = 4711;

/// Everything below a folder, with mode and group.
fn all(folder: &Path) -> Result<Vec<(PathBuf, fs::Metadata)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            found.extend(all(&path)?);
        }
        found.push((path, metadata));
    }
    Ok(found)
}

/// A short run that writes each kind of file: records, a rotated file, the history, and the state for the next run.
fn run(pair: &Pair, folder: &Path, umask: &str, group: Option<u32>) -> Result<Output> {
    let place = |name: &str| folder.join(name).display().to_string();
    let of_output = group.map(|group| format!(",group={group}")).unwrap_or_default();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"]).arg(agent::binary()?);
    command.args(["agent", "--duration", "1s", "--manifests"]).arg(pair.manifests());
    command.arg("--output").arg(format!("{}{of_output}", place("log")));
    command.arg("--output").arg(format!("{},format=ecs,max-size=4KiB{of_output}", place("rotated")));
    command.args(["--state-dir", &place("state"), "--history-dir", &place("history/below")]);
    command.args(group.map(|group| format!("--history-group={group}")));
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

#[test]
fn files_are_for_the_agent_and_one_group_whatever_the_umask() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start("")?;
    for (umask, group) in [("000", None), ("077", Some(GROUP))] {
        let dir = tempfile::tempdir()?;
        // So full that the first record rotates the file.
        let full = dir.path().join("rotated");
        fs::write(&full, " ".repeat(4096) + "\n")?;
        fs::set_permissions(&full, fs::Permissions::from_mode(0o600))?;
        run(&pair, dir.path(), umask, group)?;
        let found = all(dir.path())?;
        // log, rotated, rotated.1, state, last-run.json, history, below and a segment in it.
        assert!(found.len() >= 8, "{found:?}");
        for (path, metadata) in found {
            let is_state = path.components().any(|part| part.as_os_str() == "state");
            let for_group = group.is_some() && !is_state;
            let wanted = match (metadata.is_dir(), for_group) {
                (true, false) => 0o700,
                (true, true) => 0o750,
                (false, false) => 0o600,
                (false, true) => 0o640,
            };
            assert_eq!(metadata.mode() & 0o7777, wanted, "{}: umask {umask}, group {group:?}", path.display());
            assert!(!for_group || Some(metadata.gid()) == group, "{}", path.display());
        }
    }
    Ok(())
}

/// Existing files and folders with wider modes: the log names path, mode and remedy.
#[test]
fn wider_modes_are_reported() -> Result<()> {
    require!(can_run_lab());
    let pair = Pair::start("")?;
    let dir = tempfile::tempdir()?;
    let place = |name: &str| dir.path().join(name);
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    let mode = |path: &Path| Ok::<_, anyhow::Error>(fs::metadata(path)?.mode() & 0o7777);
    fs::write(place("log"), "")?;
    fs::create_dir_all(place("history/below"))?;
    fs::create_dir(place("state"))?;
    fs::write(place("state/others"), "")?;
    let segment = place("history/below/1790000000000-aaaa-000001.jsonl");
    fs::write(&segment, "")?;
    for (path, mode) in
        [(place("log"), 0o644), (place("history/below"), 0o755), (place("state"), 0o755), (segment, 0o666)]
    {
        set(&path, mode)?;
    }
    let output = run(&pair, dir.path(), "022", None)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let line =
        |words: &str| stderr.lines().find(|line| line.contains(words)).with_context(|| format!("{words}:\n{stderr}"));
    // The mode may be set on purpose, so the agent reports it and does not change it.
    let log = place("log").display().to_string();
    let named = line(&format!("{log} exists with mode 0644"))?;
    assert!(named.contains(&format!("chmod 0600 {log}")) && named.contains("group="), "{named}");
    assert_eq!(mode(&place("log"))?, 0o644);
    // The agent's own folder and files are for the agent only.
    line(&format!("{} had mode 0755: set to 0700", place("history/below").display()))?;
    line("1 files of earlier runs had other rights, such as 0666: set to 0600")?;
    assert_eq!(mode(&place("history/below"))?, 0o700);
    // A folder that others use.
    let state = line(&format!("{} has mode 0755", place("state").display()))?;
    assert!(state.contains("stays as it is: chmod 0700"), "{state}");
    assert_eq!(mode(&place("state"))?, 0o755);
    // Whoever owns a file can read it, whatever its mode.
    std::os::unix::fs::chown(place("log"), Some(4711), None)?;
    let output = run(&pair, dir.path(), "022", None)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let named = stderr.lines().find(|line| line.contains(&format!("{log} belongs to user 4711")));
    let named = named.with_context(|| format!("no warning:\n{stderr}"))?;
    assert!(named.contains(&format!("chown 0 {log}")), "{named}");
    Ok(())
}
