//! The command line: one file per verb.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Says which NetworkPolicy dropped a packet, why, and what would let it through.
#[derive(Debug, Parser)]
#[command(name = "netpol-trace", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the record's JSON Schema.
    Schema,
}

/// Parses the arguments and runs the verb.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::Schema => {
            println!("{}", serde_json::to_string_pretty(&schemars::schema_for!(crate::record::Record)).unwrap());
            ExitCode::SUCCESS
        }
    }
}
