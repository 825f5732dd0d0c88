use proptest::prelude::*;

use super::super::manifests::load_bytes;
use super::*;

/// How kubectl reads each: `sigs.k8s.io/yaml`'s resolve.go.
#[test]
fn plain_scalars_resolve_as_kubectl_resolves_them() {
    for (text, json) in [
        ("yes", "true"),
        ("off", "false"),
        ("y", "true"),
        ("No", "false"),
        ("TRUE", "true"),
        ("yEs", "\"yEs\""),
        ("~", "null"),
        ("1.0", "1.0"),
        ("1.10", "1.1"),
        ("1_000", "1000"),
        ("010", "8"),
        ("0o10", "8"),
        ("0x1F", "31"),
        ("0b11", "3"),
        ("-5", "-5"),
        ("+5", "5"),
        ("08", "8.0"),
        ("1e3", "1000.0"),
        (".5", "0.5"),
        ("5.", "5.0"),
        ("18446744073709551615", "18446744073709551615"),
        ("1.2.3", "\"1.2.3\""),
        ("10.0.0.0/8", "\"10.0.0.0/8\""),
        ("12:30", "\"12:30\""),
        ("2026-11-21", "\"2026-11-21\""),
        ("-", "\"-\""),
        ("e5", "\"e5\""),
        ("1e", "\"1e\""),
        ("0x", "\"0x\""),
        ("web", "\"web\""),
    ] {
        let shown = match scalar::resolve(text).unwrap() {
            Value::Null => "null".to_owned(),
            Value::Bool { value, .. } => value.to_string(),
            Value::Number { value, .. } => value.to_string(),
            Value::String(text) => format!("{text:?}"),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(shown, json, "{text}");
    }
    assert!(scalar::resolve(".inf").is_err());
}

fn root(text: &str) -> YamlNode {
    parse(text.as_bytes()).remove(0).unwrap().root
}

#[test]
fn merge_keys_fill_in_what_is_missing() {
    let tree = root("base: &base {a: 1, b: 2}\nother: &other {b: 3, c: 4}\nx:\n  <<: [*base, *other]\n  a: 9\n");
    let x = tree.get("x").unwrap();
    let number = |name: &str| match &x.get(name).unwrap().value {
        Value::Number { value, .. } => value.as_u64().unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!((number("a"), number("b"), number("c")), (9, 2, 4));
    assert!(parse(b"x:\n  <<: 5\n")[0].is_err());
}

#[test]
fn every_field_knows_its_line() {
    let yaml = "spec:\n  ingress:\n  - from:\n    - podSelector: {}\n    - ipBlock:\n        cidr: x\n    ports:\n    - port: 80\n";
    let json = "\n\n{\"spec\":{\n\"ingress\":[{\"from\":[{\"podSelector\":{}},\n\n{\"ipBlock\":\n{\"cidr\":1}}],\n\n\"ports\":[{\"port\":80\n}]}]}}";
    for (path, in_yaml, in_json) in [
        ("spec.ingress", 2, 4),
        ("spec.ingress[0].from[1].ipBlock.cidr", 6, 7),
        ("spec.ingress[0].ports[0].port", 8, 9),
        ("spec.ingress[0].from[1].ipBlock.nothing.here", 5, 6),
        ("spec.ingress[7]", 2, 4),
    ] {
        let path = Path::parse(path);
        assert_eq!((root(yaml).line_of(&path), root(json).line_of(&path)), (in_yaml, in_json), "{path}");
    }
}

#[test]
fn values_are_shown_in_one_line() {
    let tree = root("a: [1, yes, ~, 'yes', {b/c: d e}]\n");
    assert_eq!(tree.flow(200), "{a: [1, true, ~, \"yes\", {b/c: \"d e\"}]}");
    assert_eq!(root("[aaaaaaaaaa, bbbbbbbbbb, cccc, dddd]").flow(10), "[aaaaaaaaaa, …]");
}

#[test]
fn paths_read_as_they_are_shown() {
    for text in ["spec.ingress[0].from[1]", "metadata.labels[\"app.kubernetes.io/name\"]", "a", ""] {
        assert_eq!(Path::parse(text).to_string(), text);
    }
}

#[test]
fn markers_split_documents_wherever_they_are() {
    let roots = |text: &str| {
        parse(text.as_bytes()).into_iter().map(|d| d.map(|d| d.root.line).map_err(|e| e.line)).collect::<Vec<_>>()
    };
    assert_eq!(roots("---\na: 1\n---\n# nothing\n---\nb: 1\n...\n---\nc: 1"), [Ok(2), Ok(6), Ok(9)]);
    assert_eq!(roots("%YAML 1.1\n---\na: 1\n"), [Ok(3)]);
    assert_eq!(roots("\u{feff}a: |\n  x\n  ---\n  y\n---\nb: [\n---\nc: 1\n"), [Ok(1), Err(6), Ok(8)]);
    assert_eq!(roots("a: 1\r\n---\r\nb: 1\r\n"), [Ok(1), Ok(3)]);
    assert_eq!(roots(""), []);
    assert_eq!(roots("{\"a\":1}\n{\"b\":2}\n"), [Ok(1), Ok(2)]);
    assert_eq!(roots("{a: b}"), [Ok(1)]);
}

const MANIFEST: &str = include_str!("testdata.yaml");

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        load_bytes("x", &bytes);
    }

    #[test]
    fn arbitrary_yaml_like_text_never_panics(text in "([a-z]{0,3}[:\\-\\[\\]{}&*!|>%@`\"'#,? \\n\\t<~0-9.]{1,3}){0,60}") {
        load_bytes("x", text.as_bytes());
    }

    /// Real manifests with pieces cut, doubled and replaced: the objects around the damage are read or refused, no more.
    #[test]
    fn mutated_manifests_never_panic(edits in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..40, any::<prop::sample::Index>(), "[ -~\\n]{0,6}"), 1..6)) {
        let mut bytes = MANIFEST.as_bytes().to_vec();
        for (at, cut, from, insert) in edits {
            let (start, other) = (at.index(bytes.len()), from.index(bytes.len()));
            let end = (start + cut).min(bytes.len());
            let mut piece = bytes[other..(other + cut).min(bytes.len())].to_vec();
            piece.extend(insert.bytes());
            bytes.splice(start..end, piece);
            if bytes.is_empty() {
                break;
            }
        }
        let loaded = load_bytes("x", &bytes);
        for problem in &loaded.problems {
            let shown = problem.to_string();
            prop_assert!(!shown.chars().any(char::is_control), "{shown:?}");
            prop_assert!(problem.place.line.is_some());
        }
    }

    /// JSON is YAML: where serde_json reads a value, the YAML reader sees the same tree.
    #[test]
    fn json_and_yaml_agree(text in "[a-zA-Z0-9 ./:_-]{0,12}", number in any::<i32>(), flag in any::<bool>()) {
        let value = serde_json::json!({"s": text, "n": number, "list": [flag, null, {"deep": text}]});
        let json = root(&value.to_string());
        let yaml = root(&format!("# no JSON\n{value}"));
        let plain = |node: &YamlNode| -> String { format!("{node:?}").replace("line: 2", "line: 1") };
        let strip = |text: String| {
            let mut text = text;
            while let Some(at) = text.find("raw: Some(") {
                let end = at + text[at..].find(')').unwrap() + 1;
                text.replace_range(at..end, "raw: None");
            }
            text
        };
        prop_assert_eq!(strip(plain(&json)), strip(plain(&yaml)));
    }
}
