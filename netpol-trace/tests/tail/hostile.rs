//! Untrusted labels, names and DNS answers never reach a terminal unescaped, and never break a line.

use netpol_trace::tail::render::Rendering;
use netpol_trace::tail::render::text::{Printer, Style};
use netpol_trace::tail::select::Selection;
use netpol_trace::tail::stream::Tail;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::shown;

/// Replaces every string in `value`, except those that tell the kind of record.
fn poison(value: &mut Value, poison_with: &str) {
    match value {
        Value::String(text) => *text = poison_with.to_owned(),
        Value::Array(items) => items.iter_mut().for_each(|item| poison(item, poison_with)),
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                if !["schema", "kind", "time", "last_time", "result", "run"].contains(&key.as_str()) {
                    poison(value, poison_with);
                }
            }
            if let Some(Value::Object(labels)) = fields.get_mut("labels") {
                labels.insert(poison_with.to_owned(), json!(poison_with));
            }
        }
        _ => {}
    }
}

fn is_dangerous(c: char) -> bool {
    c != '\n'
        && (c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{61c}'
                | '\u{e0000}'..='\u{e007f}'))
}

fn check(hostile: &str) {
    let log = std::fs::read_to_string(crate::log()).unwrap();
    let mut lines = String::new();
    let mut records = 0;
    // A few drops are enough, and every other kind.
    let few = log.lines().enumerate().filter(|(number, _)| *number < 4 || *number > 20);
    for (number, line) in few {
        let Ok(mut value) = serde_json::from_str::<Value>(line) else { continue };
        poison(&mut value, hostile);
        // Different ids and times, so that no record is hidden as a duplicate.
        value["run"] = json!(format!("r{number}"));
        value["fingerprint"] = json!(format!("f{number}"));
        value["time"] = json!(format!("2026-11-{:02}T12:00:00Z", records + 1));
        lines += &format!("{value}\n");
        records += 1;
    }
    let style = |width| Style { width, ..Style::default() };
    let wide = Style { wide: true, ..Style::default() };
    let selection = || Selection { every_status: true, ..Selection::default() };
    for rendering in [
        Rendering::Text(Printer::new(style(None))),
        Rendering::Text(Printer::new(style(Some(80)))),
        Rendering::Text(Printer::new(wide)),
        Rendering::Summary(Box::default(), style(Some(100))),
        Rendering::Json,
    ] {
        let json = matches!(rendering, Rendering::Json);
        let text = shown(&lines, selection(), rendering);
        assert_eq!(text.chars().find(|c| is_dangerous(*c)), None, "{hostile:?} in {text:?}");
        if json {
            assert_eq!(text.lines().count(), records, "{hostile:?}");
            for (line, original) in text.lines().zip(lines.lines()) {
                let [shown, original]: [Value; 2] = [line, original].map(|line| serde_json::from_str(line).unwrap());
                assert_eq!(shown, original);
            }
        }
        let longest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(json || longest < 64 * 1024, "a line of {longest} characters");
    }
}

#[test]
fn the_usual_attacks() {
    for hostile in [
        "\x1b[2J\x1b[31mgone",
        "\x1b]0;title\x07",
        "a\nINFO all is well",
        "a\r\nb\tc",
        "\u{9b}31m",
        "\u{202e}txt.exe",
        "\u{200b}\u{feff}",
        "tags\u{e0041}\u{e007f}",
        "\"quotes\" and \\back\\slashes\\",
        "\u{7f}\u{0}",
        "e\u{301}\u{301}\u{301}",
        "👨‍👩‍👧‍👦日本語",
        "",
    ] {
        check(hostile);
    }
    check(&"\u{1b}x".repeat(32 * 1024));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_text(hostile in any::<String>()) {
        check(&hostile);
    }

    #[test]
    fn any_bytes_are_handled(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let mut tail = Tail::new(Selection::default(), Rendering::Text(Printer::default()));
        let log = tail.add_log(None);
        let mut line = b"{\"schema\":\"netpol-trace/v1\",\"x\":\"".to_vec();
        line.extend(bytes);
        tail.line(log, &line).unwrap();
        tail.finish(&mut Vec::new()).unwrap();
    }
}
