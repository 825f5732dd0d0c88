//! Where `tail` gets records from: files and standard input, or the agents of a cluster.

pub mod agents;
pub mod files;
mod listen;
mod live;

use std::io;

use crate::cluster::agents::{AgentsError, LABEL};
use crate::recorded::input::LogError;
use crate::text::escape;

/// Nodes that a message names.
const NODES_NAMED: usize = 8;

/// Why `tail` could not show records.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    #[error("{0}")]
    Usage(String),
    #[error(
        "there is no agent in namespace {0} (no pod with {LABEL}); name the agents' namespace with --agents-namespace"
    )]
    NoAgent(String),
    #[error(transparent)]
    Agents(#[from] AgentsError),
    #[error(transparent)]
    Input(#[from] LogError),
    #[error(transparent)]
    Sort(io::Error),
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// Writes a message about the progress or about a problem to stderr.
fn report(what: &str) {
    eprintln!("netpol-trace tail: {}", escape(what));
}
