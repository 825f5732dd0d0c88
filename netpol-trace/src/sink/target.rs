//! `--output`: which sink, where, in which format.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;

use super::Sink;
use super::events::{self, Events};
use super::file::{Lines, Rotation};
use super::lines::Stdout;
use super::otlp::{self, Otlp};
use crate::cluster::api::Access;
use crate::cluster::events::Writer;
use crate::record::format::Format;

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
    },
    Otlp(otlp::Endpoint),
    /// Kubernetes Events.
    Events,
}

impl Place {
    /// Whether both write to the same place.
    pub fn is_same(&self, other: &Place) -> bool {
        match (self, other) {
            (Place::File { path, .. }, Place::File { path: other, .. }) => path == other,
            (Place::Otlp(endpoint), Place::Otlp(other)) => endpoint.uri == other.uri,
            _ => self == other,
        }
    }
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

    /// Opens it; an error says what is wrong with it, and where. Events of `node` go to the API server of `access`.
    pub fn open(&self, default: Format, access: &Access, node: Option<&str>) -> anyhow::Result<Box<dyn Sink>> {
        let format = self.format.unwrap_or(default);
        match &self.place {
            Place::Stdout => Ok(Box::new(Stdout::new(format))),
            Place::File { path, rotation } => match Lines::open(path, format, *rotation) {
                Ok(lines) => Ok(Box::new(lines)),
                Err(error) => Err(anyhow::anyhow!("can't write to {}: {error}", path.display())),
            },
            Place::Otlp(endpoint) => {
                let otlp = Otlp::new(endpoint.clone()).with_context(|| format!("--output {}", self.place))?;
                Ok(Box::new(otlp))
            }
            Place::Events => {
                let writer = Writer::new(access.clone(), node, events::INTERVAL, events::BURST);
                Ok(Box::new(Events::new(writer.context("--output events")?)))
            }
        }
    }
}

/// What may follow a place, as `,name=value`.
const OPTIONS: [&str; 5] = ["format", "max-size", "max-age", "keep", "token-file"];

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
        Ok(Target { place: Place::File { path: path.into(), rotation: Rotation::default() }, format: None })
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match (name, &mut self.place) {
            ("token-file", Place::Otlp(endpoint)) => endpoint.token = Some(value.into()),
            ("format", Place::Otlp(_)) => return Err("otlp: has one format only: leave format= out".into()),
            ("format", Place::Events) => return Err("events have one format only: leave format= out".into()),
            ("format", _) => self.format = Some(value.parse()?),
            ("max-size", Place::File { rotation, .. }) => rotation.max_size = Some(size(value)?),
            ("max-age", Place::File { rotation, .. }) => rotation.max_age = Some(age(value)?),
            ("keep", Place::File { rotation, .. }) => {
                let keep = value.parse().ok().filter(|keep| (1..=1000).contains(keep));
                rotation.keep = keep.ok_or_else(|| format!("keep={value}: a number from 1 to 1000 is needed"))?;
            }
            ("token-file", _) => return Err("token-file= is for otlp: only".into()),
            _ => return Err(format!("{name}= is for files only")),
        }
        Ok(())
    }
}

/// Takes known options off the end: what is left may have commas of its own.
fn split(mut text: &str) -> (&str, Vec<(&str, &str)>) {
    let mut options = Vec::new();
    while let Some((rest, last)) = text.rsplit_once(',')
        && let Some((name, value)) = last.split_once('=')
        && OPTIONS.contains(&name)
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
        assert_eq!(file.place, Place::File { path: "/a,b.jsonl".into(), rotation });
        assert_eq!(file.format, Some(Format::Ocsf));
        assert_eq!(Target::from_str("drops.jsonl").unwrap().place.to_string(), "drops.jsonl");
        assert_eq!(Target::from_str("otlp:http://c:4318").unwrap().place.to_string(), "otlp:http://c:4318/v1/logs");
        assert_eq!(Target::from_str("otlp:https://c/x/y").unwrap().place.to_string(), "otlp:https://c/x/y");
    }

    #[test]
    fn what_is_wrong_is_named_with_a_remedy() {
        for (text, needs) in [
            ("", "stdout, a path or file:PATH"),
            ("file:", "needs a path"),
            ("stdout,format=xml", "native, ecs, ocsf, otel"),
            ("stdout,max-size=1MiB", "files only"),
            ("a.jsonl,max-size=12parsecs", "such as 64MiB"),
            ("a.jsonl,keep=0", "1 to 1000"),
            ("a.jsonl,max-age=never", "such as 24h"),
            ("otlp:collector:4318", "http://"),
            ("otlp:http://user:secret@c", "token-file"),
            ("otlp:http://c,format=ecs", "one format"),
            ("events,format=ecs", "one format"),
        ] {
            assert!(said(text).contains(needs), "{text}: {}", said(text));
        }
        assert!(!said("otlp:http://user:secret@c").contains("secret"));
    }
}
