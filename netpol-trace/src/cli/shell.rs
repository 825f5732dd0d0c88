//! Completions, man pages, and help for the program as a plugin of kubectl.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_complete::Shell;

/// Print completions for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  source <(netpol-trace completions bash)                                   in ~/.bashrc
  netpol-trace completions zsh > \"${fpath[1]}/_netpol-trace\"
  netpol-trace completions fish > ~/.config/fish/completions/netpol-trace.fish")]
pub struct CompletionsArgs {
    #[arg(value_name = "SHELL", value_parser = clap::builder::EnumValueParser::<Shell>::new())]
    shell: Shell,
}

pub fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "netpol-trace", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Write one man page for each subcommand into a folder.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The folder; without it, the page of the program goes to standard output
    #[arg(value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

pub fn man(args: &ManArgs) -> anyhow::Result<ExitCode> {
    // `help` gets no page.
    let mut program = super::Cli::command().disable_help_subcommand(true);
    program.build();
    let Some(folder) = &args.folder else {
        clap_mangen::Man::new(program).render(&mut io::stdout())?;
        return Ok(ExitCode::SUCCESS);
    };
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    clap_mangen::generate_to(program, folder).with_context(|| folder.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// Adapts names and examples in the help if kubectl calls the program: `kubectl-netpol_trace` on the path is `kubectl netpol-trace`.
pub fn called_as(command: Command, name: Option<&OsStr>) -> Command {
    let name = name.and_then(|name| Path::new(name).file_name()?.to_str()).unwrap_or_default();
    match name {
        "kubectl-netpol_trace" | "kubectl-netpol-trace" => {
            let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
            let command = command.bin_name("kubectl netpol-trace").display_name("kubectl netpol-trace");
            // Examples show what can be typed.
            names.into_iter().fold(command, |command, name| {
                command.mut_subcommand(name, |sub| match sub.get_after_help().map(ToString::to_string) {
                    Some(help) => sub.after_help(as_plugin(&help)),
                    None => sub,
                })
            })
        }
        _ => command,
    }
}

fn as_plugin(help: &str) -> String {
    let lines = help.lines().map(|line| {
        let end = line.len() - line.trim_start().len();
        let (indent, text) = line.split_at(end);
        let text = text.replace("| netpol-trace ", "| kubectl netpol-trace ");
        match text.strip_prefix("netpol-trace ") {
            Some(rest) => format!("{indent}kubectl netpol-trace {rest}"),
            None => format!("{indent}{text}"),
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn help_of_the_kubectl_plugin_shows_kubectl_commands() {
        let plugin = |name: &str| {
            let mut command = called_as(super::super::Cli::command(), Some(OsStr::new(name)));
            command.build();
            let help = command.render_long_help().to_string();
            let tail = command.find_subcommand_mut("tail").unwrap().render_long_help().to_string();
            help + &tail
        };
        let as_plugin = plugin("/usr/local/bin/kubectl-netpol_trace");
        assert!(as_plugin.contains("Usage: kubectl netpol-trace <COMMAND>"), "{as_plugin}");
        assert!(as_plugin.contains("Usage: kubectl netpol-trace tail"), "{as_plugin}");
        assert!(as_plugin.contains("  kubectl netpol-trace tail --pod"), "{as_plugin}");
        assert!(!plugin("netpol-trace").contains("kubectl netpol-trace"));
    }

    #[test]
    fn every_shell_and_every_page_can_be_written() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut super::super::Cli::command(), "netpol-trace", &mut script);
            assert!(String::from_utf8(script).unwrap().contains("tail"), "{shell}");
        }
        let dir = tempfile::tempdir().unwrap();
        man(&ManArgs { folder: Some(dir.path().to_owned()) }).unwrap();
        let page = std::fs::read_to_string(dir.path().join("netpol-trace-tail.1")).unwrap();
        assert!(page.contains("Examples"), "{page}");
    }

    #[test]
    fn every_subcommand_has_an_example() {
        for sub in super::super::Cli::command().get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example") || sub.get_name() == "schema", "{} has no example", sub.get_name());
        }
    }
}
