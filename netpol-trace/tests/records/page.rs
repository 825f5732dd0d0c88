//! docs/records.md and docs/schema/ are generated from the types: `UPDATE_EXPECT=1 cargo test -p netpol-trace --test records` writes them.

use std::collections::BTreeSet;
use std::fmt::Write;

use expect_test::expect_file;
use netpol_trace::record::format::Format;
use netpol_trace::record::{Record, format};
use serde_json::{Map, Value};

use super::examples;

const INTRODUCTION: &str = include_str!("introduction.md");

fn schema() -> Value {
    serde_json::to_value(schemars::schema_for!(Record)).unwrap()
}

#[test]
fn the_published_schema_is_the_types() {
    let text = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    expect_file!["../../../docs/schema/netpol-trace-v1.json"].assert_eq(&text);
}

#[test]
fn the_page_is_the_types() {
    expect_file!["../../../docs/records.md"].assert_eq(&page());
}

/// The examples of the page in the other formats, which tests/siem checks against their schemas.
#[test]
fn the_examples_in_every_format() {
    for (format, file) in [
        (Format::Ecs, expect_file!["../../../tests/golden/records.ecs.jsonl"]),
        (Format::Ocsf, expect_file!["../../../tests/golden/records.ocsf.jsonl"]),
        (Format::Otel, expect_file!["../../../tests/golden/records.otel.jsonl"]),
    ] {
        let mut lines = Vec::new();
        examples().iter().for_each(|record| format::line(format, record, &mut lines).unwrap());
        file.assert_eq(&String::from_utf8(lines).unwrap());
    }
}

fn page() -> String {
    let schema = schema();
    let mut page = INTRODUCTION.to_owned();
    page += "\n## Every record\n\n";
    table(&mut page, &schema);
    let kinds = schema["oneOf"].as_array().unwrap();
    let mut types = Vec::new();
    mentioned(&schema["properties"], &mut types);
    for kind in kinds {
        let name = kind.pointer("/properties/kind/const").and_then(Value::as_str).unwrap();
        let body = resolve(&schema, kind["$ref"].as_str().unwrap());
        let _ = write!(page, "\n## `kind: {name}`\n\n{}\n\n", prose(body));
        table(&mut page, body);
        mentioned(&body["properties"], &mut types);
        let example = examples().into_iter().find(|record| serde_json::to_value(record).unwrap()["kind"] == name);
        let example = example.unwrap_or_else(|| panic!("tests/golden/records.jsonl has no example of {name}"));
        let _ = write!(
            page,
            "\nExample, from a real run:\n\n```json\n{}\n```\n",
            serde_json::to_string_pretty(&example).unwrap()
        );
    }
    page += "\n## Objects and values\n";
    let mut done = BTreeSet::new();
    let mut next = 0;
    while let Some(name) = types.get(next).cloned() {
        next += 1;
        if !done.insert(name.clone()) {
            continue;
        }
        let definition = &schema["$defs"][&name];
        let _ = write!(page, "\n### {name}\n\n");
        if !prose(definition).is_empty() {
            let _ = write!(page, "{}\n\n", prose(definition));
        }
        if definition.get("properties").is_some() {
            table(&mut page, definition);
            mentioned(&definition["properties"], &mut types);
        } else {
            values(&mut page, definition);
        }
    }
    page
}

fn resolve<'a>(schema: &'a Value, reference: &str) -> &'a Value {
    schema.pointer(reference.trim_start_matches('#')).unwrap()
}

fn prose(of: &Value) -> String {
    of["description"].as_str().unwrap_or_default().replace('\n', " ")
}

/// Writes a row for each field: name, type, whether it is always there, meaning.
fn table(page: &mut String, of: &Value) {
    *page += "| field | type | always | meaning |\n| --- | --- | --- | --- |\n";
    let required: Vec<&str> = of["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in of["properties"].as_object().into_iter().flatten() {
        let always = if required.contains(&name.as_str()) { "yes" } else { "" };
        let _ = writeln!(page, "| `{name}` | {} | {always} | {} |", kind(field), prose(field).replace('|', "\\|"));
    }
}

fn values(page: &mut String, of: &Value) {
    let plain = of["enum"].as_array().into_iter().flatten().map(|value| (value, String::new()));
    let documented = of["oneOf"].as_array().into_iter().flatten().flat_map(|one| {
        let plain = one["enum"].as_array().into_iter().flatten().map(|value| (value, String::new()));
        plain.chain(one.get("const").map(|value| (value, prose(one)))).collect::<Vec<_>>()
    });
    for (value, meaning) in plain.chain(documented) {
        let meaning = if meaning.is_empty() { meaning } else { format!(": {meaning}") };
        let _ = writeln!(page, "- `{}`{meaning}", value.as_str().unwrap_or_default());
    }
}

fn kind(field: &Value) -> String {
    if let Some(reference) = field["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(any) = field["anyOf"].as_array() {
        return kind(any.iter().find(|one| one["type"] != "null").unwrap_or(&Value::Null));
    }
    let plain = match &field["type"] {
        Value::Array(types) => types.iter().find_map(|one| one.as_str().filter(|one| *one != "null")).unwrap_or("any"),
        one => one.as_str().unwrap_or("any"),
    };
    match plain {
        "array" => format!("list of {}", kind(&field["items"])),
        "object" if field["additionalProperties"].is_object() => {
            format!("map to {}", kind(&field["additionalProperties"]))
        }
        plain => plain.to_owned(),
    }
}

/// Collects the types that fields name, in the order of first mention.
fn mentioned(of: &Value, types: &mut Vec<String>) {
    match of {
        Value::Object(map) => {
            types.extend(
                map.get("$ref").and_then(Value::as_str).and_then(|name| name.rsplit('/').next()).map(str::to_owned),
            );
            map.values().for_each(|value| mentioned(value, types));
        }
        Value::Array(values) => values.iter().for_each(|value| mentioned(value, types)),
        _ => {}
    }
}

/// A reader ignores fields that a later version of the agent adds.
#[test]
fn a_reader_ignores_unknown_fields() {
    fn add(value: &mut Value) {
        if let Value::Object(map) = value {
            let maps = ["labels", "causes", "objects", "skipped", "not_recorded"];
            map.iter_mut().filter(|(name, _)| !maps.contains(&name.as_str())).for_each(|(_, value)| add(value));
            map.insert("added_later".into(), Map::new().into());
        } else if let Value::Array(values) = value {
            values.iter_mut().for_each(add);
        }
    }
    for record in examples() {
        let mut value = serde_json::to_value(&record).unwrap();
        add(&mut value);
        assert_eq!(serde_json::from_value::<Record>(value).unwrap(), record);
    }
}
