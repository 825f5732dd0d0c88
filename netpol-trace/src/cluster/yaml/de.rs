//! [`YamlNode`] as a serde format, so that the API's types are read from it without a copy. The reader itself tracks positions and
//! unknown fields: wrappers around it would be compiled once more for each of the API's types.

use std::cell::RefCell;
use std::{fmt, slice};

use serde::de::value::StrDeserializer;
use serde::de::{self, Deserialize, DeserializeSeed, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use super::{Path, Step, Value, YamlKey, YamlNode};

/// A value of another type than the API's.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Error(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        // The terms of Kubernetes, not of Rust.
        let found = match found {
            Unexpected::Map => "a mapping".to_owned(),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Unit => "nothing (null)".to_owned(),
            Unexpected::Bool(value) => format!("the boolean {value}"),
            Unexpected::Unsigned(value) => format!("the number {value}"),
            Unexpected::Signed(value) => format!("the number {value}"),
            Unexpected::Float(value) => format!("the number {value:?}"),
            Unexpected::Str(value) => format!("the text {:?}", value.chars().take(80).collect::<String>()),
            other => other.to_string(),
        };
        let expected = match expected.to_string().as_str() {
            "a sequence" => "a list".to_owned(),
            "a map" => "a mapping".to_owned(),
            "i32" | "i64" | "u16" => "a whole number".to_owned(),
            "a string" => "text".to_owned(),
            other => {
                other.strip_prefix("struct ").map_or_else(|| other.to_owned(), |name| format!("a mapping ({name})"))
            }
        };
        Error(format!("found {found}, expected {expected}"))
    }
}

/// Reads a value of the API's type `T`. Returns the first `most` fields that the type does not have, and the path of an error.
pub fn decode<'de, T: Deserialize<'de>>(root: &'de YamlNode, most: usize) -> (Result<T, (Path, Error)>, Vec<Path>) {
    let noticed = RefCell::new(Noticed { most, ..Noticed::default() });
    let decoded = T::deserialize(Reader { node: root, position: &Position::Root, noticed: &noticed });
    let Noticed { unknown, failed, .. } = noticed.into_inner();
    (decoded.map_err(|error| (failed.unwrap_or_default(), error)), unknown)
}

#[derive(Default)]
struct Noticed {
    most: usize,
    unknown: Vec<Path>,
    /// The path of the first error.
    failed: Option<Path>,
}

/// The position of a value, linked up to the root.
enum Position<'p> {
    Root,
    Field(&'p Position<'p>, &'p str),
    Index(&'p Position<'p>, usize),
}

impl Position<'_> {
    fn path(&self) -> Path {
        match self {
            Position::Root => Path::default(),
            Position::Field(parent, name) => parent.path().push(Step::Field((*name).to_owned())),
            Position::Index(parent, index) => parent.path().push(Step::Index(*index)),
        }
    }

    /// Records the position of the first error.
    fn failed(&self, noticed: &RefCell<Noticed>) {
        noticed.borrow_mut().failed.get_or_insert_with(|| self.path());
    }
}

struct Reader<'de, 'p> {
    node: &'de YamlNode,
    position: &'p Position<'p>,
    noticed: &'p RefCell<Noticed>,
}

/// An error for a value of another type than the expected one.
fn wrong(value: &Value, expected: &dyn de::Expected) -> Error {
    let found = match value {
        Value::Null => Unexpected::Unit,
        Value::Bool { value, .. } => Unexpected::Bool(*value),
        Value::Number { value, .. } => match (value.as_u64(), value.as_i64(), value.as_f64()) {
            (Some(number), _, _) => Unexpected::Unsigned(number),
            (_, Some(number), _) => Unexpected::Signed(number),
            (_, _, number) => Unexpected::Float(number.unwrap_or(f64::NAN)),
        },
        Value::String(text) => Unexpected::Str(text),
        Value::Sequence(_) => Unexpected::Seq,
        Value::Mapping(_) => Unexpected::Map,
    };
    de::Error::invalid_type(found, expected)
}

impl<'de> Reader<'de, '_> {
    fn seq<V: Visitor<'de>>(self, items: &'de [YamlNode], visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Items { items: items.iter().enumerate(), position: self.position, noticed: self.noticed })
    }

    fn map<V: Visitor<'de>>(self, entries: &'de [(YamlKey, YamlNode)], visitor: V) -> Result<V::Value, Error> {
        let entries = entries.iter();
        visitor.visit_map(MapEntries { entries, entry: None, position: self.position, noticed: self.noticed })
    }
}

impl<'de> de::Deserializer<'de> for Reader<'de, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool { value, .. } => visitor.visit_bool(*value),
            Value::Number { value, .. } => match (value.as_u64(), value.as_i64(), value.as_f64()) {
                (Some(number), _, _) => visitor.visit_u64(number),
                (_, Some(number), _) => visitor.visit_i64(number),
                (_, _, number) => visitor.visit_f64(number.unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Sequence(items) => self.seq(items, visitor),
            Value::Mapping(entries) => self.map(entries, visitor),
        }
    }

    // The types of most fields. Specific methods avoid compiling the other arms of `deserialize_any` for them.

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Mapping(entries) => self.map(entries, visitor),
            other => Err(wrong(other, &visitor)),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Sequence(items) => self.seq(items, visitor),
            other => Err(wrong(other, &visitor)),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::String(text) => visitor.visit_borrowed_str(text),
            other => Err(wrong(other, &visitor)),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Bool { value, .. } => visitor.visit_bool(*value),
            other => Err(wrong(other, &visitor)),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    /// The API's types call this for a field that they do not have.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut noticed = self.noticed.borrow_mut();
        if noticed.unknown.len() < noticed.most {
            noticed.unknown.push(self.position.path());
        }
        drop(noticed);
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str bytes byte_buf unit unit_struct tuple tuple_struct enum
        identifier
    }
}

struct Items<'de, 'p> {
    items: std::iter::Enumerate<slice::Iter<'de, YamlNode>>,
    position: &'p Position<'p>,
    noticed: &'p RefCell<Noticed>,
}

impl<'de> de::SeqAccess<'de> for Items<'de, '_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        let position = &Position::Index(self.position, index);
        let value = seed.deserialize(Reader { node, position, noticed: self.noticed });
        value.map(Some).inspect_err(|_| position.failed(self.noticed))
    }
}

struct MapEntries<'de, 'p> {
    entries: slice::Iter<'de, (YamlKey, YamlNode)>,
    /// The entry whose key was read, but not its value.
    entry: Option<&'de (YamlKey, YamlNode)>,
    position: &'p Position<'p>,
    noticed: &'p RefCell<Noticed>,
}

impl<'de> de::MapAccess<'de> for MapEntries<'de, '_> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        self.entry = self.entries.next();
        self.entry.map(|(key, _)| seed.deserialize(StrDeserializer::new(&key.name))).transpose()
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let (key, node) = self.entry.take().ok_or_else(|| de::Error::custom("a value without its key"))?;
        let position = &Position::Field(self.position, &key.name);
        let value = seed.deserialize(Reader { node, position, noticed: self.noticed });
        value.inspect_err(|_| position.failed(self.noticed))
    }
}
