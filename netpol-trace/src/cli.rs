//! The command line: one file for each subcommand, with its arguments and exit codes.

pub mod agent;
mod binary;
mod cluster;
pub mod doctor;
mod endpoints;
pub mod explain;
mod input;
pub mod lint;
pub mod replay;
pub mod shell;
pub mod suggest;
pub mod tail;
pub mod verify_log;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// Shows which NetworkPolicy dropped a packet, why, and what would allow it.
#[derive(Debug, Parser)]
#[command(name = "netpol-trace", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(agent::AgentArgs),
    Doctor(doctor::DoctorArgs),
    Explain(explain::ExplainArgs),
    Lint(lint::LintArgs),
    Replay(replay::ReplayArgs),
    Suggest(suggest::SuggestArgs),
    Tail(tail::TailArgs),
    Completions(shell::CompletionsArgs),
    #[command(hide = true)]
    Man(shell::ManArgs),
    VerifyLog(verify_log::VerifyLogArgs),
    PrintBinary(binary::PrintBinaryArgs),
    /// Print the JSON Schema of records.
    Schema,
}

/// Parses the arguments and runs the subcommand. An error is one line on stderr.
pub fn run() -> ExitCode {
    let called = std::env::args_os().next();
    let matches = shell::called_as(Cli::command(), called.as_deref()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    crate::telemetry::init();
    let result = match cli.command {
        Command::Agent(args) => agent::run(args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Lint(args) => lint::run(args),
        Command::Replay(args) => replay::run(&args),
        Command::Suggest(args) => suggest::run(&args),
        Command::Tail(args) => tail::run(&args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
        Command::VerifyLog(args) => verify_log::run(&args),
        Command::PrintBinary(args) => binary::run(&args),
        Command::Schema => schema(),
    };
    result.unwrap_or_else(|error| {
        if is_broken_pipe(&error) {
            return ExitCode::SUCCESS;
        }
        eprintln!("netpol-trace: {error:#}");
        ExitCode::FAILURE
    })
}

fn schema() -> anyhow::Result<ExitCode> {
    let schema = schemars::schema_for!(crate::record::Record);
    writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&schema)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns true if the reader of stdout has gone, as in `| head`: that is not an error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The commands in the runbook have valid arguments.
    #[test]
    fn the_runbooks_commands_can_be_typed() {
        let page = include_str!("../../docs/runbook.md");
        let commands: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("    netpol-trace ")).collect();
        assert!(commands.len() >= 4, "{commands:?}");
        for command in commands {
            let command = command.split('|').next().unwrap_or_default();
            let words = std::iter::once("netpol-trace").chain(command.split_whitespace());
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{command}: {error}");
            }
        }
    }
}
