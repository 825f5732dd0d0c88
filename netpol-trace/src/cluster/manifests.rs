//! Reads manifest files: the output of `kubectl get -A -o yaml`, a rendered chart, a GitOps folder.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::decode::document;
use super::kinds::Object;
use super::location::{FieldLines, Location, Problem, ProblemKind, Severity};
use super::yaml;
use crate::model::Str;

/// An object with its location.
#[derive(Debug, Clone, PartialEq)]
pub struct Located {
    pub object: Object,
    /// The first line of the object.
    pub place: Location,
    /// `metadata.namespace` was absent, and "default" assumed.
    pub namespace_defaulted: bool,
    /// The lines of its fields, for kinds that keep them.
    pub lines: Option<FieldLines>,
    /// A service with `externalTrafficPolicy: Local`: pods see the address of clients outside the cluster.
    pub source_kept: bool,
}

impl Located {
    /// Whether the file has the field, even without a value (`from:`).
    pub fn has(&self, field: &str) -> bool {
        self.lines.as_ref().is_some_and(|lines| lines.has(&yaml::Path::parse(field)))
    }

    /// The location of a field, such as `spec.ingress[0].from[1]`.
    pub fn at(&self, field: &str) -> Location {
        // An object of a live cluster has no line.
        let line = self
            .place
            .line
            .map(|own| self.lines.as_ref().map_or(own, |lines| lines.line_of(&yaml::Path::parse(field))));
        Location { line, field: field.to_owned(), ..self.place.clone() }
    }
}

/// The objects and problems of a set of paths.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// In the order of the input. Of objects with the same name only the last.
    pub objects: Vec<Located>,
    pub problems: Vec<Problem>,
    /// Problems beyond the bound on `problems`.
    pub problems_left_out: u64,
    /// Objects of kinds that are not read, by kind.
    pub skipped: BTreeMap<String, u64>,
    /// Objects read, by kind.
    pub counts: BTreeMap<String, u64>,
    pub files: u64,
}

impl Loaded {
    /// The first problem because of which an object is missing.
    pub fn error(&self) -> Option<&Problem> {
        self.problems.iter().find(|problem| problem.severity == Severity::Error)
    }
}

impl Loaded {
    /// Adds `over`, whose objects replace those of the same name.
    pub fn under(mut self, over: Loaded) -> Loaded {
        let names: HashSet<_> = over.objects.iter().map(|located| located.object.identity()).collect();
        self.objects.retain(|located| !names.contains(&located.object.identity()));
        self.objects.extend(over.objects);
        self.problems.extend(over.problems);
        self.problems_left_out += over.problems_left_out;
        for (kind, count) in over.skipped {
            *self.skipped.entry(kind).or_default() += count;
        }
        self.files += over.files;
        self.count();
        self
    }

    /// Counts the objects again.
    pub(super) fn count(&mut self) {
        self.counts.clear();
        for located in &self.objects {
            *self.counts.entry(located.object.identity().0.to_owned()).or_default() += 1;
        }
    }
}

/// Deeper nesting of folders is a mistake or a loop.
const MAX_FOLDER_DEPTH: usize = 32;
const MAX_FILES: usize = 100_000;
const MAX_PROBLEMS: usize = 1_000;

/// Reads all of `paths`: files, folders (recursively `*.yaml`, `*.yml`, `*.json`, by name), and `-` for standard input.
pub fn load(paths: &[PathBuf]) -> Loaded {
    let mut loader = Loader::default();
    let mut seen = BTreeSet::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut bytes = Vec::new();
            let limit = u64::try_from(yaml::MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
            let read = std::io::stdin().lock().take(limit).read_to_end(&mut bytes);
            loader.input(&Arc::new(path.clone()), read.map(|_| bytes), true);
            continue;
        }
        let (files, problems) = files(path);
        loader.loaded.problems.extend(problems);
        let given = path.is_file();
        for file in files {
            // The same file by two paths, or through a link, counts once.
            if seen.insert(fs::canonicalize(&file).unwrap_or_else(|_| file.clone())) {
                let bytes = read_bounded(&file);
                loader.input(&Arc::new(file), bytes, given);
            }
        }
    }
    loader.finish()
}

/// Reads `bytes` as if they were the file `name`.
pub fn load_bytes(name: &str, bytes: &[u8]) -> Loaded {
    let mut loader = Loader::default();
    loader.input(&Arc::new(PathBuf::from(name)), Ok(bytes.to_vec()), true);
    loader.finish()
}

fn read_bounded(file: &Path) -> std::io::Result<Vec<u8>> {
    let limit = u64::try_from(yaml::MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    fs::File::open(file)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The files behind `path`, in the order in which they are read, and why others cannot be read.
pub fn files(path: &Path) -> (Vec<PathBuf>, Vec<Problem>) {
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            walk(path, 0, &mut BTreeSet::new(), &mut found, &mut problems);
            if found.is_empty() && problems.is_empty() {
                problems.push(unreadable(path, "a folder without *.yaml, *.yml or *.json files".to_owned()));
            }
        }
        // A named pipe would block for ever.
        Ok(meta) if !meta.is_file() && !is_proc_fd(path) => {
            problems.push(unreadable(path, "not a file and not a folder".to_owned()))
        }
        Ok(_) => found.push(path.to_owned()),
        Err(error) => problems.push(unreadable(path, error.to_string())),
    }
    (found, problems)
}

/// `<(kubectl get …)` of a shell.
fn is_proc_fd(path: &Path) -> bool {
    path.starts_with("/dev/fd") || path.starts_with("/proc/self/fd") || path.as_os_str() == "/dev/stdin"
}

fn unreadable(path: &Path, message: String) -> Problem {
    Problem {
        kind: ProblemKind::Unreadable,
        severity: Severity::Error,
        place: Location::file(&Arc::new(path.to_owned())),
        object: String::new(),
        is_policy: false,
        message,
        value: None,
    }
}

/// `visited` has the canonical paths of the folders so far, so that a link to a parent is not followed.
fn walk(
    folder: &Path,
    depth: usize,
    visited: &mut BTreeSet<PathBuf>,
    found: &mut Vec<PathBuf>,
    problems: &mut Vec<Problem>,
) {
    if depth > MAX_FOLDER_DEPTH || found.len() > MAX_FILES {
        problems.push(unreadable(folder, "too many or too deeply nested files".to_owned()));
        return;
    }
    if !visited.insert(fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned())) {
        return;
    }
    let entries = match fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
        Ok(entries) => entries,
        Err(error) => return problems.push(unreadable(folder, error.to_string())),
    };
    let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        // Hidden entries are no manifests: .git, editors' swap files, and `..data` of a mounted ConfigMap, to whose files the links
        // beside it lead.
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        let manifest = path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json");
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => walk(&path, depth + 1, visited, found, problems),
            Ok(meta) if meta.is_file() && manifest => found.push(path),
            Ok(_) => {}
            // A dangling link whose name is not a manifest's is ignored.
            Err(error) if manifest => problems.push(unreadable(&path, error.to_string())),
            Err(_) => {}
        }
    }
}

#[derive(Default)]
struct Loader {
    loaded: Loaded,
    names: HashMap<(&'static str, Str, Str), usize>,
    replaced: BTreeSet<usize>,
}

impl Loader {
    /// `given`: the command line names the file, and not only its folder.
    fn input(&mut self, file: &Arc<PathBuf>, bytes: std::io::Result<Vec<u8>>, given: bool) {
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => return self.problem(unreadable(file, error.to_string())),
        };
        self.loaded.files += 1;
        let documents = yaml::parse(&bytes);
        let several = documents.len() > 1;
        for document in documents {
            match document {
                Err(error) => {
                    let document = (several || error.document > 1).then_some(error.document);
                    let place = Location { line: Some(error.line), document, ..Location::file(file) };
                    let message = error.message;
                    let (kind, severity, object) = (ProblemKind::Syntax, Severity::Error, String::new());
                    self.problem(Problem { kind, severity, place, object, is_policy: false, message, value: None });
                }
                Ok(document) => {
                    let number = several.then_some(document.number);
                    self.document(&document.root, &Location { document: number, ..Location::file(file) }, given);
                }
            }
        }
    }

    fn document(&mut self, root: &yaml::YamlNode, whole: &Location, given: bool) {
        let mut output = document::DecodedDocument::default();
        document::document(root, &mut output);
        for (kind, count) in output.skipped {
            *self.loaded.skipped.entry(kind).or_default() += count;
        }
        for fault in output.faults {
            let foreign = fault.kind == document::FaultKind::Kind && fault.object.is_empty();
            // A folder also has values files, kustomizations and other YAML.
            if foreign && !given {
                *self.loaded.skipped.entry("(not a Kubernetes object)".to_owned()).or_default() += 1;
                continue;
            }
            if let Some((kind, (namespace, name))) = fault.policy_kind.zip(fault.named).filter(|_| fault.fatal) {
                self.report_refused_duplicate(
                    kind,
                    &namespace,
                    &name,
                    &Location { line: Some(fault.name_line), field: "metadata.name".to_owned(), ..whole.clone() },
                );
            }
            self.problem(Problem {
                kind: match fault.kind {
                    document::FaultKind::UnknownField => ProblemKind::UnknownField,
                    _ => ProblemKind::Shape,
                },
                severity: match (fault.fatal, fault.policy_kind.is_some()) {
                    (true, _) => Severity::Error,
                    (false, true) => Severity::Warning,
                    (false, false) => Severity::Info,
                },
                place: Location { line: Some(fault.line), field: fault.field.to_string(), ..whole.clone() },
                object: fault.object,
                is_policy: fault.policy_kind.is_some(),
                message: fault.message,
                value: fault.value,
            });
        }
        for decoded in output.objects {
            let keep_lines = decoded.object.kind().info().is_some_and(|info| info.keeps_lines);
            self.object(Located {
                place: Location { line: Some(decoded.node.line), ..whole.clone() },
                namespace_defaulted: decoded.namespace_defaulted,
                source_kept: externally_local(decoded.node),
                lines: keep_lines.then(|| FieldLines::of(decoded.node)),
                object: decoded.object,
            });
        }
    }

    fn object(&mut self, located: Located) {
        let (kind, namespace, name) = located.object.identity();
        let at = self.loaded.objects.len();
        if let Some(before) = self.names.insert((kind, namespace.clone(), name.clone()), at)
            && let Some(earlier) = self.loaded.objects.get(before)
        {
            self.replaced.insert(before);
            let same = earlier.object == located.object;
            let message = match (&earlier.object, same) {
                (_, true) => format!("the same object is at {} already", earlier.place),
                (Object::Policy(policy), false) => format!(
                    "replaces the policy of the same name at {}: applied in this order, its {} ingress and {} egress rules are gone",
                    earlier.place,
                    policy.ingress.len(),
                    policy.egress.len()
                ),
                _ => format!("replaces the object of the same name at {}", earlier.place),
            };
            self.problem(Problem {
                kind: ProblemKind::Duplicate,
                severity: if same { Severity::Info } else { Severity::Warning },
                place: located.at("metadata.name"),
                is_policy: located.object.kind().is_policy(),
                object: if namespace.is_empty() {
                    format!("{kind} {name}")
                } else {
                    format!("{kind} {namespace}/{name}")
                },
                message,
                value: None,
            });
        }
        self.loaded.objects.push(located);
    }

    /// Warns if a policy that cannot be used has the name of one that can: once corrected, it would replace that one.
    fn report_refused_duplicate(&mut self, kind: &'static str, namespace: &str, name: &str, place: &Location) {
        let Some(earlier) = self.names.get(&(kind, Str::from(namespace), Str::from(name))) else { return };
        let Some(earlier) = self.loaded.objects.get(*earlier).map(|located| located.place.clone()) else { return };
        let is_reported = |problem: &Problem| problem.kind == ProblemKind::Duplicate && problem.place == *place;
        if self.loaded.problems.iter().rev().take(MAX_PROBLEMS).any(is_reported) {
            return;
        }
        self.problem(Problem {
            kind: ProblemKind::Duplicate,
            severity: Severity::Warning,
            place: place.clone(),
            object: format!("{kind} {namespace}/{name}"),
            is_policy: true,
            message: format!("has the name of the object at {earlier}: once corrected and applied it replaces that one, of which nothing stays"),
            value: None,
        });
    }

    fn problem(&mut self, problem: Problem) {
        if self.loaded.problems.len() < MAX_PROBLEMS {
            self.loaded.problems.push(problem);
        } else {
            self.loaded.problems_left_out += 1;
        }
    }

    fn finish(self) -> Loaded {
        let mut loaded = self.loaded;
        let mut at = 0..;
        loaded.objects.retain(|_| at.next().is_none_or(|i| !self.replaced.contains(&i)));
        loaded.count();
        loaded
    }
}

fn externally_local(node: &yaml::YamlNode) -> bool {
    let policy = node.get("spec").and_then(|spec| spec.get("externalTrafficPolicy"));
    policy.and_then(yaml::YamlNode::as_str) == Some("Local")
}

#[cfg(test)]
mod tests;
