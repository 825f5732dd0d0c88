//! docs/benchmarks.md: what the benches printed in one run, with the machine and the commands.

use std::fs;
use std::process::Command;

use anyhow::Result;

use crate::machine;

/// Name, subject and text of each bench.
pub fn write(results: &[(&str, &str, String)]) -> Result<()> {
    let path = machine::root().join("docs/benchmarks.md");
    let text = format!("{}\n{}", head()?, results.iter().map(section).collect::<String>());
    fs::write(&path, text)?;
    println!("\nWrote {}", path.display());
    Ok(())
}

fn head() -> Result<String> {
    let commit =
        machine::output(Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(machine::root()));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let line = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
        value.unwrap_or("unknown").trim().to_owned()
    };
    let processors = std::thread::available_parallelism()?;
    Ok(format!(
        "# Benchmarks\n\nOne run of `cargo xtask bench all`, which writes this page. Figures depend on the machine and on what else it \
         does; what is compared was measured in the same run. [performance.md](performance.md): targets, and where the time goes.\n\n\
         | | |\n|---|---|\n| processor | {} |\n| processors in use | {processors} |\n| memory | {} |\n| kernel | {} |\n\
         | netpol-trace | {} |\n",
        line("/proc/cpuinfo", "model name"),
        line("/proc/meminfo", "MemTotal"),
        kernel.trim(),
        commit.unwrap_or_else(|_| env!("CARGO_PKG_VERSION").to_owned()).trim(),
    ))
}

fn section((name, measures, text): &(&str, &str, String)) -> String {
    format!("\n## {name}\n\n`cargo xtask bench {name}`: {measures}.\n\n```\n{}\n```\n", text.trim())
}
