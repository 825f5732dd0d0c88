//! Parses the text of a config file into a [`ConfigFile`], or into problems with their lines.

use std::path::Path;

use ipnet::IpNet;

use super::{ConfigFile, ConfigProblem, ConfigProblems, FileOption};
use crate::cluster::yaml::{self, Value, YamlNode};
use crate::model::Cause;
use crate::pipeline::filter::{DropCriteria, Pattern};

/// Longest config file in bytes; a ConfigMap holds no more.
pub const MAX_BYTES: usize = 1 << 20;
/// Most entries of one list.
const MAX_ENTRIES: usize = 10_000;

/// Keys that are not options of the command line: name, value, meaning.
pub const RUNTIME_KEYS: [(&str, &str, &str); 8] = [
    (
        "include.namespaces",
        "list of names, `*` for any characters",
        "Only drops with an endpoint in one of these namespaces: a pod's, or that of the service that the client connected to",
    ),
    ("include.causes", "list of causes", "Only drops with one of these causes"),
    (
        "include.cidrs",
        "list of address ranges",
        "Only drops with an endpoint in one of these ranges, before or after translation of the destination",
    ),
    (
        "exclude.namespaces",
        "list of names, `*` for any characters",
        "No drops with an endpoint in one of these namespaces",
    ),
    ("exclude.causes", "list of causes", "No drops with one of these causes"),
    ("exclude.cidrs", "list of address ranges", "No drops with an endpoint in one of these ranges"),
    (
        "labels",
        "list of label keys, `*` for any characters",
        "Only these pod labels go into records. An empty list: none",
    ),
    (
        "dns-names",
        "list of DNS names, `*` for any characters",
        "Only these names go into records; `redacted` stands for others. An empty list: none",
    ),
];

/// Parses the text of a config file. An empty one is valid and sets nothing.
pub fn read(text: &[u8], path: &Path) -> Result<ConfigFile, ConfigProblems> {
    let mut problems = Vec::new();
    let file = file(text, &mut problems);
    if problems.is_empty() { Ok(file) } else { Err(ConfigProblems::of(path, problems)) }
}

fn file(text: &[u8], problems: &mut Vec<ConfigProblem>) -> ConfigFile {
    let mut file = ConfigFile::default();
    if text.len() > MAX_BYTES {
        problems.push(ConfigProblem::new(1, format!("the file has {} KiB; at most 1024 are read", text.len() >> 10)));
        return file;
    }
    let mut documents = yaml::parse(text).into_iter();
    let root = match documents.next() {
        None => return file,
        Some(Err(error)) => {
            problems.push(ConfigProblem::new(error.line, error.message));
            return file;
        }
        Some(Ok(document)) => document.root,
    };
    match documents.next() {
        Some(Ok(second)) => {
            problems.push(ConfigProblem::new(
                second.root.line,
                "a second document: a config file has one; remove the `---`",
            ));
        }
        Some(Err(error)) => problems.push(ConfigProblem::new(error.line, error.message)),
        None => {}
    }
    let entries = match &root.value {
        Value::Null => return file,
        Value::Mapping(entries) => entries,
        _ => {
            problems
                .push(ConfigProblem::new(root.line, "a config file is a mapping of keys, such as `all-drops: true`"));
            return file;
        }
    };
    for (key, node) in entries {
        match &*key.name {
            "include" => file.settings.include = selection("include", key.line, node, problems),
            "exclude" => file.settings.exclude = selection("exclude", key.line, node, problems),
            "labels" => file.settings.labels = patterns("labels", key.line, node, problems),
            "dns-names" => file.settings.dns_names = patterns("dns-names", key.line, node, problems),
            name => file.flags.push(flag(name, key.line, node)),
        }
    }
    file
}

fn selection(name: &str, line: u32, node: &YamlNode, problems: &mut Vec<ConfigProblem>) -> DropCriteria {
    let mut selection = DropCriteria::default();
    let entries = match &node.value {
        Value::Null => return selection,
        Value::Mapping(entries) => entries,
        _ => {
            problems.push(ConfigProblem::new(line, format!("{name} takes the lists namespaces, causes and cidrs")));
            return selection;
        }
    };
    for (key, node) in entries {
        let place = format!("{name}.{}", key.name);
        match &*key.name {
            "namespaces" => selection.namespaces = patterns(&place, key.line, node, problems),
            "causes" => selection.causes = list(&place, key.line, node, problems, cause),
            "cidrs" => selection.cidrs = list(&place, key.line, node, problems, cidr),
            unknown => problems.push(ConfigProblem::new(
                key.line,
                format!("unknown key {:?} in {name}: it takes namespaces, causes and cidrs", shown(unknown)),
            )),
        }
    }
    selection
}

fn patterns(name: &str, line: u32, node: &YamlNode, problems: &mut Vec<ConfigProblem>) -> Option<Vec<Pattern>> {
    list(name, line, node, problems, |text| match text {
        "" => Err("an empty text matches nothing; remove it".to_owned()),
        text => Ok(Pattern::new(text)),
    })
}

fn cause(text: &str) -> Result<Cause, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string().replace("variant", "cause"))
}

fn cidr(text: &str) -> Result<IpNet, String> {
    let wrong = || format!("{:?} is not an address range such as 10.0.0.0/8 or 2001:db8::/32", shown(text));
    let range = match text.parse::<IpNet>() {
        Ok(range) => range,
        Err(_) => text.parse::<std::net::IpAddr>().map(IpNet::from).map_err(|_| wrong())?,
    };
    match range.trunc() == range {
        true => Ok(range),
        false => Err(format!(
            "{range} has bits set beyond its prefix: write {} or {}/{}",
            range.trunc(),
            range.addr(),
            range.max_prefix_len()
        )),
    }
}

/// A list of texts, each parsed by `item`. `None` where the key has no value, as if the key were absent.
fn list<T>(
    name: &str,
    line: u32,
    node: &YamlNode,
    problems: &mut Vec<ConfigProblem>,
    item: impl Fn(&str) -> Result<T, String>,
) -> Option<Vec<T>> {
    let items = match &node.value {
        Value::Null => return None,
        Value::Sequence(items) => items,
        _ => {
            problems.push(ConfigProblem::new(line, format!("{name} takes a list: {name}: [one, two]")));
            return None;
        }
    };
    if items.len() > MAX_ENTRIES {
        problems.push(ConfigProblem::new(
            line,
            format!("{name} has {} entries; at most {MAX_ENTRIES} are taken", items.len()),
        ));
        return None;
    }
    let mut list = Vec::with_capacity(items.len());
    for node in items {
        match scalar(node).ok_or_else(|| "takes text only".to_owned()).and_then(|text| item(&text)) {
            Ok(value) => list.push(value),
            Err(message) => problems.push(ConfigProblem::new(node.line, format!("{name}: {message}"))),
        }
    }
    Some(list)
}

/// An option with its values. Problems of the values are reported after those of the name.
fn flag(name: &str, line: u32, node: &YamlNode) -> FileOption {
    let values = match &node.value {
        Value::Null => Err("has no value: give one, or remove the key"),
        Value::Sequence(items) => items.iter().map(scalar).collect::<Option<_>>().ok_or("takes a list of values"),
        _ => scalar(node).map(|value| vec![value]).ok_or("takes a value or a list of values"),
    };
    FileOption { name: name.to_owned(), line, values }
}

/// A scalar as it was written: `node-name: no` is the text `no`.
fn scalar(node: &YamlNode) -> Option<String> {
    match &node.value {
        Value::String(text) => Some(text.to_string()),
        Value::Bool { value, raw } => Some(raw.as_deref().map_or_else(|| value.to_string(), str::to_owned)),
        Value::Number { value, raw } => Some(raw.as_deref().map_or_else(|| value.to_string(), str::to_owned)),
        Value::Null | Value::Sequence(_) | Value::Mapping(_) => None,
    }
}

/// Untrusted text for a message, shortened.
pub(super) fn shown(text: &str) -> &str {
    &text[..text.floor_char_boundary(80)]
}
