//! `--output`: which sink, where, in which format.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;

use super::Sink;
use super::file::{Lines, Rotation};
use super::lines::Stdout;
use super::otlp::{self, Otlp};
use crate::cluster::api::Access;
use crate::cluster::events::Writer;
use crate::record::format::Format;
use crate::sink::k8s_events;
use crate::sink::k8s_events::Events;
use crate::storage::Readers;

/// One sink, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub place: Place,
    /// `None`: what `--format` says.
    pub format: Option<Format>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Stdout,
    File {
        path: PathBuf,
        rotation: Rotation,
        readers: Readers,
    },
    Otlp(otlp::Endpoint),
    /// Kubernetes Events.
    Events,
}

impl Place {
    /// One of [`KINDS`].
    fn kind(&self) -> &'static str {
        match self {
            Place::Stdout => "stdout",
            Place::File { .. } => "file",
            Place::Otlp(_) => "otlp",
            Place::Events => "events",
        }
    }

    /// Whether both write to the same place.
    pub fn is_same(&self, other: &Place) -> bool {
        match (self, other) {
            (Place::File { path, .. }, Place::File { path: other, .. }) => resolved(path) == resolved(other),
            (Place::Otlp(endpoint), Place::Otlp(other)) => endpoint.uri == other.uri,
            _ => self == other,
        }
    }
}

/// The path from the root, without `.` and `..`. The agent follows no symbolic link, so two paths name one file when these are equal.
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

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Stdout => f.write_str("stdout"),
            Place::File { path, .. } => write!(f, "{}", path.display()),
            Place::Otlp(endpoint) => write!(f, "otlp:{}", endpoint.uri),
            Place::Events => f.write_str("events"),
        }
    }
}

impl Target {
    pub const STDOUT: Target = Target { place: Place::Stdout, format: None };

    /// The encoding, as records name it.
    pub fn format_name(&self, default: Format) -> &'static str {
        match self.place {
            Place::Stdout | Place::File { .. } => self.format.unwrap_or(default).as_str(),
            Place::Otlp(_) => otlp::FORMAT,
            Place::Events => k8s_events::FORMAT,
        }
    }

    /// Opens it; an error says what is wrong with it, and where. Events of `node` go to the API server of `access`.
    pub fn open(&self, default: Format, access: &Access, node: Option<&str>) -> anyhow::Result<Box<dyn Sink>> {
        let format = self.format.unwrap_or(default);
        match &self.place {
            Place::Stdout => Ok(Box::new(Stdout::new(format))),
            Place::File { path, rotation, readers } => match Lines::open(path, format, *rotation, *readers) {
                Ok(lines) => Ok(Box::new(lines)),
                Err(error) => Err(anyhow::anyhow!("can't write to {}: {error}", path.display())),
            },
            Place::Otlp(endpoint) => {
                let otlp = Otlp::new(endpoint.clone()).with_context(|| format!("--output {}", self.place))?;
                Ok(Box::new(otlp))
            }
            Place::Events => {
                let writer = Writer::new(access.clone(), node, k8s_events::INTERVAL, k8s_events::BURST);
                Ok(Box::new(Events::new(writer.context("--output events")?)))
            }
        }
    }
}

/// Every kind of output, as the command line spells it.
pub const KINDS: [&str; 4] = ["stdout", "file", "otlp", "events"];

/// An option that may follow a place, as `,name=value`.
#[derive(Debug)]
pub struct TargetOption {
    pub name: &'static str,
    /// What stands for its value in the help.
    pub value: &'static str,
    /// The kinds of output that take it, as the command line spells them.
    pub of: &'static [&'static str],
    pub meaning: &'static str,
}

const fn option(
    name: &'static str,
    value: &'static str,
    of: &'static [&'static str],
    meaning: &'static str,
) -> TargetOption {
    TargetOption { name, value, of, meaning }
}

/// Every option of an output: the parser, `--help` and docs/configuration.md go by this table.
pub const OPTIONS: &[TargetOption] = &[
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
         the pods that policies keep apart, aggregated). May be given more than once; the first one is what the books are about. \
         Options follow after commas: ",
    );
    for (at, option) in OPTIONS.iter().enumerate() {
        let comma = if at == 0 { "" } else { ", " };
        help += &format!("{comma}{}={} ({})", option.name, option.value, option.of.join(", "));
    }
    help + ". [default: stdout]"
}

impl FromStr for Target {
    type Err = String;

    /// `stdout`, `file:PATH`, a plain `PATH` or `otlp:URL`, each with options, or `events`.
    fn from_str(text: &str) -> Result<Target, String> {
        let (place, options) = split(text);
        let mut target = match place.split_once(':') {
            _ if place.is_empty() => return Err("a place is missing: stdout, a path or file:PATH".into()),
            _ if place == "stdout" || place == "-" => Target::STDOUT,
            _ if place == "events" => Target { place: Place::Events, format: None },
            Some(("file", path)) => Target::file(path)?,
            Some(("otlp", url)) => Target { place: Place::Otlp(otlp::Endpoint::parse(url)?), format: None },
            _ => Target::file(place)?,
        };
        for (name, value) in options {
            target.set(name, value)?;
        }
        Ok(target)
    }
}

impl Target {
    fn file(path: &str) -> Result<Target, String> {
        if path.is_empty() {
            return Err("file: needs a path, as in file:/var/log/netpol-trace.jsonl".into());
        }
        let place = Place::File { path: path.into(), rotation: Rotation::default(), readers: Readers::default() };
        Ok(Target { place, format: None })
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let kind = self.place.kind();
        let of = OPTIONS.iter().find(|option| option.name == name).map(|option| option.of).unwrap_or_default();
        if !of.contains(&kind) {
            return Err(format!("{name}= is an option of {} outputs, not of {kind}: leave it out", of.join(" and ")));
        }
        match (name, &mut self.place) {
            ("format", _) => self.format = Some(value.parse()?),
            ("max-size", Place::File { rotation, .. }) => rotation.max_size = Some(size(value)?),
            ("max-age", Place::File { rotation, .. }) => rotation.max_age = Some(age(value)?),
            ("keep", Place::File { rotation, .. }) => {
                let keep = value.parse().ok().filter(|keep| (1..=1000).contains(keep));
                rotation.keep = keep.ok_or_else(|| format!("keep={value}: a number from 1 to 1000 is needed"))?;
            }
            ("group", Place::File { readers, .. }) => readers.group = Some(group(value)?),
            ("token-file", Place::Otlp(endpoint)) => endpoint.token = Some(value.into()),
            ("ca-file", Place::Otlp(endpoint)) if endpoint.is_https() => endpoint.ca = Some(value.into()),
            ("ca-file", Place::Otlp(endpoint)) => {
                return Err(format!("ca-file= is for https: otlp:{} is not encrypted", endpoint.uri));
            }
            _ => return Err(format!("{name}= can't be set for {kind}")),
        }
        Ok(())
    }
}

/// The first output that goes to the same place as one before it: two writers would mix their lines.
pub fn named_twice(targets: &[Target]) -> Option<&Place> {
    let places = || targets.iter().map(|target| &target.place);
    places()
        .enumerate()
        .find(|(at, place)| places().take(*at).any(|other| other.is_same(place)))
        .map(|(_, place)| place)
}

/// Takes known options off the end: what is left may have commas of its own.
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

/// `64MiB`, `100k`, `4096`: octets.
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
        .ok_or_else(|| format!("max-size={text}: a size such as 64MiB is needed, of at least 4KiB"))
}

/// A group's number. Names mean nothing in an image, which has no /etc/group.
pub fn group(text: &str) -> Result<u32, String> {
    // The last number stands for "no group" in the kernel's interfaces.
    text.parse()
        .ok()
        .filter(|group| *group != u32::MAX)
        .ok_or_else(|| format!("{text:?} is no group's number, such as 4: `getent group NAME` shows it"))
}

fn age(text: &str) -> Result<Duration, String> {
    let span = text.parse::<jiff::SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
    span.filter(|span| *span >= Duration::from_secs(1))
        .ok_or_else(|| format!("max-age={text}: a time such as 24h is needed, of at least 1s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        Target::from_str(text).unwrap_err()
    }

    #[test]
    fn every_form() {
        assert_eq!(Target::from_str("stdout"), Ok(Target::STDOUT));
        let file = Target::from_str("file:/a,b.jsonl,format=ocsf,max-size=64MiB,max-age=24h,keep=3").unwrap();
        let rotation = Rotation { max_size: Some(64 << 20), max_age: Some(Duration::from_secs(86_400)), keep: 3 };
        let readers = Readers::default();
        assert_eq!(file.place, Place::File { path: "/a,b.jsonl".into(), rotation, readers });
        assert_eq!(file.format, Some(Format::Ocsf));
        assert_eq!(Target::from_str("drops.jsonl").unwrap().place.to_string(), "drops.jsonl");
        assert_eq!(Target::from_str("otlp:http://c:4318").unwrap().place.to_string(), "otlp:http://c:4318/v1/logs");
        assert_eq!(Target::from_str("otlp:https://c/x/y").unwrap().place.to_string(), "otlp:https://c/x/y");
        let Place::Otlp(endpoint) = Target::from_str("otlp:https://c,token-file=/t,ca-file=/ca.pem").unwrap().place
        else {
            panic!("not OTLP");
        };
        assert_eq!((endpoint.token, endpoint.ca), (Some("/t".into()), Some("/ca.pem".into())));
    }

    #[test]
    fn a_place_that_is_named_twice_is_found() {
        let twice = |texts: &[&str]| {
            let targets: Vec<_> = texts.iter().map(|text| Target::from_str(text).unwrap()).collect();
            named_twice(&targets).map(ToString::to_string)
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

    /// An option that the table has and the parser lacks would be refused for every output.
    #[test]
    fn every_option_of_the_table_can_be_set() {
        let place = |kind: &'static str| match kind {
            "file" => "file:/a.jsonl",
            "otlp" => "otlp:https://c",
            other => other,
        };
        for kind in KINDS {
            assert_eq!(Target::from_str(place(kind)).unwrap().place.kind(), kind);
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
                let place = place(kind);
                let text = format!("{place},{}={value}", option.name);
                assert_ne!(Target::from_str(&text), Target::from_str(place), "{text}");
                assert!(Target::from_str(&text).is_ok(), "{text}: {}", said(&text));
            }
            assert!(help().contains(&format!("{}={}", option.name, option.value)));
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_a_remedy() {
        for (text, needs) in [
            ("", "stdout, a path or file:PATH"),
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
            assert!(said(text).contains(needs), "{text}: {}", said(text));
        }
        assert!(!said("otlp:http://user:secret@c").contains("secret"));
    }
}
