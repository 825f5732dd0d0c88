//! `--queries`: reads JSON lines, and writes a JSON line for each, in the same order.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cli::endpoints::owner;
use crate::cli::input::{InputError, is_stdin};
use crate::cluster::Index;
use crate::model::Verdict;
use crate::model::cluster::Protocol;
use crate::policy;
use crate::policy::{CniOptions, Connection, PolicyEndpoint, Transport};

/// A longer line gets an error: no line takes unbounded memory.
const LINE_AT_MOST: u64 = 1 << 20;

#[derive(Debug, Deserialize)]
struct Query {
    #[serde(default)]
    id: Value,
    from: QueryEndpoint,
    to: QueryEndpoint,
    #[serde(default)]
    protocol: Option<String>,
    #[serde(default)]
    port: Option<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum QueryEndpoint {
    /// `namespace/name`
    Pod(String),
    Ip(IpAddr),
}

#[derive(Debug, Serialize)]
struct AnswerLine<'a> {
    id: &'a Value,
    #[serde(flatten)]
    answer: QueryAnswer,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum QueryAnswer {
    Verdict(Box<Verdict>),
    Error(String),
}

pub(super) fn run(index: &Index, options: &CniOptions, path: &Path) -> Result<ExitCode, InputError> {
    let unusable = |error| InputError::Read(format!("--queries {}", path.display()), error);
    let input: Box<dyn Read> = match is_stdin(path) {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(path).map_err(unusable)?),
    };
    let mut input = BufReader::with_capacity(1 << 16, input);
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = input.by_ref().take(LINE_AT_MOST).read_until(b'\n', &mut line).map_err(unusable)?;
        if read == 0 {
            break;
        }
        let whole = line.ends_with(b"\n") || (read as u64) < LINE_AT_MOST;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let (id, answer) = if whole {
            answer(index, options, &line)
        } else {
            input.skip_until(b'\n').map_err(unusable)?;
            (Value::Null, QueryAnswer::Error(format!("a line longer than {LINE_AT_MOST} bytes")))
        };
        serde_json::to_writer(&mut out, &AnswerLine { id: &id, answer }).map_err(io::Error::from)?;
        out.write_all(b"\n")?;
        // A client that sends one line at a time waits for each result.
        if input.buffer().is_empty() {
            out.flush()?;
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn answer(index: &Index, options: &CniOptions, line: &[u8]) -> (Value, QueryAnswer) {
    let query: Query = match serde_json::from_slice(line) {
        Ok(query) => query,
        Err(error) => {
            // The line can be JSON with an id, and still not be a query.
            let id = serde_json::from_slice::<Value>(line).ok().and_then(|mut v| Some(v.get_mut("id")?.take()));
            return (id.unwrap_or_default(), QueryAnswer::Error(error.to_string()));
        }
    };
    let answer = match connection(index, &query) {
        Ok(connection) => QueryAnswer::Verdict(Box::new(policy::verdict_of(index, &connection, options))),
        Err(error) => QueryAnswer::Error(error),
    };
    (query.id, answer)
}

fn connection<'a>(index: &'a Index, query: &Query) -> Result<Connection<'a>, String> {
    let transport = match query.protocol.as_deref() {
        None | Some("TCP") => Transport::Named(Protocol::Tcp),
        Some("UDP") => Transport::Named(Protocol::Udp),
        Some("SCTP") => Transport::Named(Protocol::Sctp),
        Some("ICMP") => Transport::Icmp,
        Some(other) => return Err(format!("unknown protocol {other:?}: expected TCP, UDP, SCTP or ICMP")),
    };
    if query.port.is_none() && transport != Transport::Icmp {
        return Err("port is missing".to_owned());
    }
    let (source, destination) = (end(index, &query.from, "from")?, end(index, &query.to, "to")?);
    Ok(Connection { source, destination, transport, port: query.port, at: None })
}

fn end<'a>(index: &'a Index, named: &QueryEndpoint, field: &str) -> Result<PolicyEndpoint<'a>, String> {
    match named {
        QueryEndpoint::Ip(ip) => Ok(owner(index, *ip)),
        QueryEndpoint::Pod(key) => {
            let (namespace, name) =
                key.split_once('/').ok_or_else(|| format!("{field}: pod {key:?} is not namespace/name"))?;
            index
                .pod(namespace, name)
                .map(PolicyEndpoint::pod)
                .ok_or_else(|| format!("{field}: no pod {key:?} in the input"))
        }
    }
}
