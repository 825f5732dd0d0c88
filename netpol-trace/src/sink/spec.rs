//! `--output`: kind, destination, format and options of a sink.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;

use super::Sink;
use super::file::{FileSink, Rotation};
use super::otlp::{self, OtlpSink};
use super::stdout::StdoutSink;
use crate::cluster::api::Access;
use crate::cluster::events::Writer;
use crate::record::format::Format;
use crate::sink::k8s_events;
use crate::sink::k8s_events::EventsSink;
use crate::storage::Readers;

/// One `--output`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputSpec {
    pub destination: Destination,
    /// `None`: the format of `--format`.
    pub format: Option<Format>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    Stdout,
    File {
        path: PathBuf,
        rotation: Rotation,
        readers: Readers,
    },
    Otlp(otlp::OtlpEndpoint),
    /// Kubernetes Events.
    Events,
}

impl Destination {
    /// One of [`KINDS`].
    fn kind(&self) -> &'static str {
        match self {
            Destination::Stdout => "stdout",
            Destination::File { .. } => "file",
            Destination::Otlp(_) => "otlp",
            Destination::Events => "events",
        }
    }

    /// True if both name the same file or collector.
    pub fn is_same(&self, other: &Destination) -> bool {
        match (self, other) {
            (Destination::File { path, .. }, Destination::File { path: other, .. }) => {
                resolved(path) == resolved(other)
            }
            (Destination::Otlp(endpoint), Destination::Otlp(other)) => endpoint.uri == other.uri,
            _ => self == other,
        }
    }
}

/// The absolute path, without `.` and `..`. The agent follows no symbolic links, so that two paths name the same file if these are equal.
fn resolved(path: &Path) -> PathBuf {
    let mut resolved = PathBuf::new();
    for component in std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).components() {
        match component {
            Component::ParentDir => drop(resolved.pop()),
            Component::CurDir => {}
            _ => resolved.push(component),
        }
    }
    resolved
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Stdout => f.write_str("stdout"),
            Destination::File { path, .. } => write!(f, "{}", path.display()),
            Destination::Otlp(endpoint) => write!(f, "otlp:{}", endpoint.uri),
            Destination::Events => f.write_str("events"),
        }
    }
}

impl OutputSpec {
    pub const STDOUT: OutputSpec = OutputSpec { destination: Destination::Stdout, format: None };

    /// The encoding, as records name it.
    pub fn format_name(&self, default: Format) -> &'static str {
        match self.destination {
            Destination::Stdout | Destination::File { .. } => self.format.unwrap_or(default).as_str(),
            Destination::Otlp(_) => otlp::FORMAT,
            Destination::Events => k8s_events::FORMAT,
        }
    }

    /// Opens the sink. Events about `node` go to the API server of `access`.
    pub fn open(&self, default: Format, access: &Access, node: Option<&str>) -> anyhow::Result<Box<dyn Sink>> {
        let format = self.format.unwrap_or(default);
        match &self.destination {
            Destination::Stdout => Ok(Box::new(StdoutSink::new(format))),
            Destination::File { path, rotation, readers } => match FileSink::open(path, format, *rotation, *readers) {
                Ok(lines) => Ok(Box::new(lines)),
                Err(error) => Err(anyhow::anyhow!("can't write to {}: {error}", path.display())),
            },
            Destination::Otlp(endpoint) => {
                let otlp = OtlpSink::new(endpoint.clone()).with_context(|| format!("--output {}", self.destination))?;
                Ok(Box::new(otlp))
            }
            Destination::Events => {
                let writer = Writer::new(access.clone(), node, k8s_events::INTERVAL, k8s_events::BURST);
                Ok(Box::new(EventsSink::new(writer.context("--output events")?)))
            }
        }
    }
}

/// The kinds of output, as on the command line.
pub const KINDS: [&str; 4] = ["stdout", "file", "otlp", "events"];

/// An option of an output, which follows its destination as `,name=value`.
#[derive(Debug)]
pub struct OutputOption {
    pub name: &'static str,
    /// The placeholder of its value in the help.
    pub value: &'static str,
    /// The kinds of output that take it, of [`KINDS`].
    pub of: &'static [&'static str],
    pub meaning: &'static str,
}

const fn option(
    name: &'static str,
    value: &'static str,
    of: &'static [&'static str],
    meaning: &'static str,
) -> OutputOption {
    OutputOption { name, value, of, meaning }
}

/// All options of outputs, for the parser, `--help` and docs/configuration.md.
pub const OPTIONS: &[OutputOption] = &[
    option("format", "FORMAT", &["stdout", "file"], "The encoding of its records, instead of --format"),
    option("max-size", "SIZE", &["file"], "Start a new file before one exceeds this size, such as 64MiB"),
    option("max-age", "TIME", &["file"], "Start a new file when the first record of one is this old, such as 24h"),
    option(
        "keep",
        "COUNT",
        &["file"],
        "How many older files to keep, PATH.1 being the newest: 1 to 1000, 5 unless given",
    ),
    option(
        "group",
        "GID",
        &["file"],
        "Let this group read the file and those after it: mode 0640. Without it 0600, for the agent's user only",
    ),
    option("token-file", "PATH", &["otlp"], "Send the token in this file (Authorization: Bearer); read for each batch"),
    option(
        "ca-file",
        "PATH",
        &["otlp"],
        "For https: trust the certificate authorities in this PEM file, and no others; read again after a failed attempt",
    ),
];

/// The help of `--output`.
pub fn help() -> String {
    let mut help = String::from(
        "Where records go: stdout, a file (PATH or file:PATH, appended to), otlp:URL (OTLP over HTTP) or events (Kubernetes Events about \
         pods whose packets a policy dropped). May be repeated; the first is the primary sink, which packet accounting is about. \
         Options follow after commas: ",
    );
    for (at, option) in OPTIONS.iter().enumerate() {
        let comma = if at == 0 { "" } else { ", " };
        help += &format!("{comma}{}={} ({})", option.name, option.value, option.of.join(", "));
    }
    help + ". [default: stdout]"
}

impl FromStr for OutputSpec {
    type Err = String;

    /// `stdout`, `file:PATH`, a plain `PATH` or `otlp:URL`, each with options, or `events`.
    fn from_str(text: &str) -> Result<OutputSpec, String> {
        let (destination, options) = split(text);
        let mut spec = match destination.split_once(':') {
            _ if destination.is_empty() => {
                return Err("the destination is missing: expected stdout, a path, file:PATH, otlp:URL or events".into());
            }
            _ if destination == "stdout" || destination == "-" => OutputSpec::STDOUT,
            _ if destination == "events" => OutputSpec { destination: Destination::Events, format: None },
            Some(("file", path)) => OutputSpec::file(path)?,
            Some(("otlp", url)) => {
                OutputSpec { destination: Destination::Otlp(otlp::OtlpEndpoint::parse(url)?), format: None }
            }
            _ => OutputSpec::file(destination)?,
        };
        for (name, value) in options {
            spec.set(name, value)?;
        }
        Ok(spec)
    }
}

impl OutputSpec {
    fn file(path: &str) -> Result<OutputSpec, String> {
        if path.is_empty() {
            return Err("file: needs a path, as in file:/var/log/netpol-trace.jsonl".into());
        }
        let destination =
            Destination::File { path: path.into(), rotation: Rotation::default(), readers: Readers::default() };
        Ok(OutputSpec { destination, format: None })
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let kind = self.destination.kind();
        let of = OPTIONS.iter().find(|option| option.name == name).map(|option| option.of).unwrap_or_default();
        if !of.contains(&kind) {
            return Err(format!("{name}= is an option of {} outputs, not of {kind}: remove it", of.join(" and ")));
        }
        match (name, &mut self.destination) {
            ("format", _) => self.format = Some(value.parse()?),
            ("max-size", Destination::File { rotation, .. }) => rotation.max_size = Some(size(value)?),
            ("max-age", Destination::File { rotation, .. }) => rotation.max_age = Some(age(value)?),
            ("keep", Destination::File { rotation, .. }) => {
                let keep = value.parse().ok().filter(|keep| (1..=1000).contains(keep));
                rotation.keep = keep.ok_or_else(|| format!("keep={value}: expected a number from 1 to 1000"))?;
            }
            ("group", Destination::File { readers, .. }) => readers.group = Some(group(value)?),
            ("token-file", Destination::Otlp(endpoint)) => endpoint.token = Some(value.into()),
            ("ca-file", Destination::Otlp(endpoint)) if endpoint.is_https() => endpoint.ca = Some(value.into()),
            ("ca-file", Destination::Otlp(endpoint)) => {
                return Err(format!(
                    "ca-file= is for https:// only, and otlp:{} is not encrypted: remove it or use https://",
                    endpoint.uri
                ));
            }
            _ => return Err(format!("{name}= can't be set for {kind}")),
        }
        Ok(())
    }
}

/// The first destination that an earlier output has too: two writers would mix their lines.
pub fn duplicate_destination(specs: &[OutputSpec]) -> Option<&Destination> {
    let places = || specs.iter().map(|spec| &spec.destination);
    places()
        .enumerate()
        .find(|(at, destination)| places().take(*at).any(|other| other.is_same(destination)))
        .map(|(_, destination)| destination)
}

/// Splits known options off the end. The destination itself may contain commas.
fn split(mut text: &str) -> (&str, Vec<(&str, &str)>) {
    let mut options = Vec::new();
    while let Some((rest, last)) = text.rsplit_once(',')
        && let Some((name, value)) = last.split_once('=')
        && OPTIONS.iter().any(|option| option.name == name)
    {
        options.insert(0, (name, value));
        text = rest;
    }
    (text, options)
}

/// Parses a number of bytes such as `64MiB`, `100k` or `4096`.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => 0,
    };
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    size.filter(|size| *size >= 4096)
        .ok_or_else(|| format!("max-size={text}: expected a size of at least 4KiB, such as 64MiB"))
}

/// Parses a group's number. Names are not accepted, because the image has no /etc/group.
pub fn group(text: &str) -> Result<u32, String> {
    // The largest number means "no group" in the kernel's interfaces.
    text.parse()
        .ok()
        .filter(|group| *group != u32::MAX)
        .ok_or_else(|| format!("{text:?}: expected the number of a group, such as 4: `getent group NAME` shows it"))
}

fn age(text: &str) -> Result<Duration, String> {
    let span = text.parse::<jiff::SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
    span.filter(|span| *span >= Duration::from_secs(1))
        .ok_or_else(|| format!("max-age={text}: expected a time of at least 1s, such as 24h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        OutputSpec::from_str(text).unwrap_err()
    }

    #[test]
    fn every_form() {
        assert_eq!(OutputSpec::from_str("stdout"), Ok(OutputSpec::STDOUT));
        let file = OutputSpec::from_str("file:/a,b.jsonl,format=ocsf,max-size=64MiB,max-age=24h,keep=3").unwrap();
        let rotation = Rotation { max_size: Some(64 << 20), max_age: Some(Duration::from_secs(86_400)), keep: 3 };
        let readers = Readers::default();
        assert_eq!(file.destination, Destination::File { path: "/a,b.jsonl".into(), rotation, readers });
        assert_eq!(file.format, Some(Format::Ocsf));
        assert_eq!(OutputSpec::from_str("drops.jsonl").unwrap().destination.to_string(), "drops.jsonl");
        assert_eq!(
            OutputSpec::from_str("otlp:http://c:4318").unwrap().destination.to_string(),
            "otlp:http://c:4318/v1/logs"
        );
        assert_eq!(OutputSpec::from_str("otlp:https://c/x/y").unwrap().destination.to_string(), "otlp:https://c/x/y");
        let Destination::Otlp(endpoint) =
            OutputSpec::from_str("otlp:https://c,token-file=/t,ca-file=/ca.pem").unwrap().destination
        else {
            panic!("not OTLP");
        };
        assert_eq!((endpoint.token, endpoint.ca), (Some("/t".into()), Some("/ca.pem".into())));
    }

    #[test]
    fn a_destination_that_is_named_twice_is_found() {
        let twice = |texts: &[&str]| {
            let specs: Vec<_> = texts.iter().map(|text| OutputSpec::from_str(text).unwrap()).collect();
            duplicate_destination(&specs).map(ToString::to_string)
        };
        assert_eq!(twice(&["stdout", "/a", "/b", "otlp:http://c", "events"]), None);
        assert_eq!(twice(&["/a", "stdout", "/a,format=ecs"]).as_deref(), Some("/a"));
        for (one, two) in [("/a/b", "/a//c/.././b"), ("a", "./a"), ("a", "file:b/../a"), ("/a", "/../a")] {
            assert!(twice(&[one, two]).is_some(), "{one} {two}");
        }
        let here = std::env::current_dir().unwrap().join("a");
        assert!(twice(&["a", &here.display().to_string()]).is_some());
        assert_eq!(twice(&["a", "b/a", "../a", "a.1"]), None);
        assert_eq!(
            twice(&["otlp:http://c", "otlp:http://c/v1/logs,token-file=/t"]).as_deref(),
            Some("otlp:http://c/v1/logs")
        );
    }

    /// The parser would reject an option that only the table has.
    #[test]
    fn every_option_of_the_table_can_be_set() {
        let destination = |kind: &'static str| match kind {
            "file" => "file:/a.jsonl",
            "otlp" => "otlp:https://c",
            other => other,
        };
        for kind in KINDS {
            assert_eq!(OutputSpec::from_str(destination(kind)).unwrap().destination.kind(), kind);
        }
        for option in OPTIONS {
            let value = match option.value {
                "FORMAT" => "ecs",
                "SIZE" => "64MiB",
                "TIME" => "24h",
                "PATH" => "/file",
                _ => "3",
            };
            for kind in option.of {
                let destination = destination(kind);
                let text = format!("{destination},{}={value}", option.name);
                assert_ne!(OutputSpec::from_str(&text), OutputSpec::from_str(destination), "{text}");
                assert!(OutputSpec::from_str(&text).is_ok(), "{text}: {}", error(&text));
            }
            assert!(help().contains(&format!("{}={}", option.name, option.value)));
        }
    }

    #[test]
    fn errors_name_the_fault_and_the_remedy() {
        for (text, needs) in [
            ("", "stdout, a path, file:PATH"),
            ("file:", "needs a path"),
            ("stdout,format=xml", "native, ecs, ocsf, otel"),
            ("stdout,max-size=1MiB", "max-size= is an option of file outputs, not of stdout"),
            ("a.jsonl,max-size=12parsecs", "such as 64MiB"),
            ("a.jsonl,keep=0", "1 to 1000"),
            ("a.jsonl,max-age=never", "such as 24h"),
            ("a.jsonl,group=adm", "getent group"),
            ("a.jsonl,group=4294967295", "getent group"),
            ("stdout,group=4", "not of stdout"),
            ("otlp:collector:4318", "http://"),
            ("otlp:http://user:secret@c", "token-file"),
            ("otlp:http://c,format=ecs", "format= is an option of stdout and file outputs, not of otlp"),
            ("otlp:http://c,ca-file=/ca.pem", "ca-file= is for https"),
            ("events,format=ecs", "not of events"),
        ] {
            assert!(error(text).contains(needs), "{text}: {}", error(text));
        }
        assert!(!error("otlp:http://user:secret@c").contains("secret"));
    }
}
