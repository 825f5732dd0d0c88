//! Builds the tree from saphyr-parser's events.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::{MAX_ALIASED_NODES, MAX_DEPTH, MAX_NODES, SyntaxError, Value, YamlKey, YamlNode, scalar};

/// Reads one piece of text, normally one document. `first_line` is the number of its first line. Empty documents are left out.
pub(super) fn read(text: &str, first_line: u32) -> Result<Vec<YamlNode>, SyntaxError> {
    // The parser reports an unexpected end of the text one line after the last.
    let last_line = text.lines().count().max(1);
    let mut builder = TreeBuilder { first_line, last_line, ..TreeBuilder::default() };
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| builder.error(error.marker().line(), error.info().to_owned()))?;
        let line = span.start.line();
        builder.event(event, &span).map_err(|message| builder.error(line, message))?;
    }
    Ok(builder.roots)
}

#[derive(Default)]
struct TreeBuilder {
    first_line: u32,
    last_line: usize,
    roots: Vec<YamlNode>,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Rc<YamlNode>>,
    /// The number of nodes, and of those copied for anchors, aliases and merge keys.
    nodes: usize,
    copied: usize,
}

struct Frame {
    node: YamlNode,
    anchor: usize,
    /// The key that waits for its value.
    key: Option<YamlKey>,
    keys: HashSet<Box<str>>,
    /// Values of `<<`, applied when the mapping ends: explicit keys win.
    merges: Vec<YamlNode>,
}

/// The name of a merge key's slot; `<<` as text is quoted in YAML.
const MERGE: &str = "<<";

impl TreeBuilder {
    fn error(&self, line: usize, message: String) -> SyntaxError {
        SyntaxError { document: 1, line: self.line(line), message }
    }

    fn line(&self, line: usize) -> u32 {
        let line = line.min(self.last_line);
        u32::try_from(line).unwrap_or(u32::MAX).saturating_add(self.first_line).saturating_sub(1)
    }

    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), String> {
        let line = self.line(span.start.line());
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let value = if plain { scalar::resolve(&text)? } else { tagged(&text, tag.as_deref())? };
                let merge = plain && *text == *MERGE;
                self.finish(YamlNode { line, value }, anchor, merge)
            }
            Event::SequenceStart(anchor, _) => self.open(YamlNode { line, value: Value::Sequence(Vec::new()) }, anchor),
            Event::MappingStart(anchor, _) => self.open(YamlNode { line, value: Value::Mapping(Vec::new()) }, anchor),
            Event::SequenceEnd | Event::MappingEnd => match self.stack.pop() {
                Some(mut frame) => {
                    self.merge(&mut frame)?;
                    self.finish(frame.node, frame.anchor, false)
                }
                None => Ok(()),
            },
            Event::Alias(anchor) => {
                let Some(target) = self.anchors.get(&anchor).cloned() else {
                    return Err("an alias inside the value that it names".to_owned());
                };
                self.copy(&target)?;
                self.finish(YamlNode { line, value: target.value.clone() }, 0, false)
            }
            Event::DocumentStart(_) => {
                self.anchors.clear();
                (self.nodes, self.copied) = (0, 0);
                Ok(())
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
        }
    }

    fn open(&mut self, node: YamlNode, anchor: usize) -> Result<(), String> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        self.stack.push(Frame { node, anchor, key: None, keys: HashSet::new(), merges: Vec::new() });
        Ok(())
    }

    /// Adds a complete node to its parent.
    fn finish(&mut self, node: YamlNode, anchor: usize, merge: bool) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(format!("more than {MAX_NODES} values in one document"));
        }
        if anchor != 0 {
            self.copy(&node)?;
            self.anchors.insert(anchor, Rc::new(node.clone()));
        }
        let Some(frame) = self.stack.last_mut() else {
            if node.value != Value::Null {
                self.roots.push(node);
            }
            return Ok(());
        };
        match &mut frame.node.value {
            Value::Sequence(items) => items.push(node),
            Value::Mapping(entries) => match frame.key.take() {
                Some(key) if *key.name == *MERGE && key.line == 0 => frame.merges.push(node),
                Some(key) => entries.push((key, node)),
                // Line 0 marks a merge key until its value comes.
                None if merge => frame.key = Some(YamlKey { name: MERGE.into(), line: 0 }),
                None => {
                    let key = YamlKey { name: scalar::key(node.value)?, line: node.line };
                    if !frame.keys.insert(key.name.clone()) {
                        return Err(format!("duplicate key {:?}", key.name));
                    }
                    frame.key = Some(key);
                }
            },
            _ => {}
        }
        Ok(())
    }

    /// Applies `<<`: keys that the mapping lacks, the first source of each wins.
    fn merge(&mut self, frame: &mut Frame) -> Result<(), String> {
        for merge in std::mem::take(&mut frame.merges) {
            let sources = match merge.value {
                Value::Mapping(_) => vec![merge],
                Value::Sequence(items) => items,
                _ => return Err("`<<` needs a mapping or a list of mappings".to_owned()),
            };
            for source in sources {
                let Value::Mapping(entries) = source.value else {
                    return Err("`<<` needs a mapping or a list of mappings".to_owned());
                };
                if let Value::Mapping(own) = &mut frame.node.value {
                    for (key, node) in entries {
                        if frame.keys.insert(key.name.clone()) {
                            own.push((key, node));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks and counts a copy of `node` before it is made.
    fn copy(&mut self, node: &YamlNode) -> Result<(), String> {
        let mut size = Size { weight: 0, limit: MAX_ALIASED_NODES - self.copied };
        size.add(node, MAX_DEPTH.saturating_sub(self.stack.len()))?;
        self.copied += size.weight;
        Ok(())
    }
}

/// The cost of a copy: one for each value, and one more for each 64 bytes of text.
struct Size {
    weight: usize,
    limit: usize,
}

impl Size {
    fn add(&mut self, node: &YamlNode, levels: usize) -> Result<(), String> {
        self.weigh(1)?;
        let Some(below) = levels.checked_sub(1) else {
            return Err(format!("aliases nest values deeper than {MAX_DEPTH} levels"));
        };
        match &node.value {
            Value::String(text) => self.weigh(text.len() / 64),
            Value::Sequence(items) => items.iter().try_for_each(|item| self.add(item, below)),
            Value::Mapping(entries) => entries.iter().try_for_each(|(key, item)| {
                self.weigh(key.name.len() / 64)?;
                self.add(item, below)
            }),
            _ => Ok(()),
        }
    }

    fn weigh(&mut self, more: usize) -> Result<(), String> {
        self.weight += more;
        if self.weight > self.limit {
            return Err(format!("aliases copy more than {MAX_ALIASED_NODES} values"));
        }
        Ok(())
    }
}

/// A quoted, block or tagged scalar.
fn tagged(text: &str, tag: Option<&Tag>) -> Result<Value, String> {
    let core = tag.filter(|tag| tag.is_yaml_core_schema()).map(|tag| tag.suffix.as_str());
    match core {
        Some("null") => Ok(Value::Null),
        Some("bool" | "int" | "float") => match scalar::resolve(text)? {
            Value::String(text) => Err(format!("{text:?} does not have the type of its tag")),
            value => Ok(value),
        },
        // Go reads these as bytes; no field of these kinds has any.
        Some("binary") => Err("the tag !!binary is not supported here".to_owned()),
        _ => Ok(Value::String(text.into())),
    }
}
