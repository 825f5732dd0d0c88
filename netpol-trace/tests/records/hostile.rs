//! Untrusted names, labels and DNS answers: a record stays one line of JSON under 16 KiB in every format, and holds no character that
//! controls a terminal.

use netpol_trace::model::Part;
use netpol_trace::record::format::{Format, MAX_LINE, line};
use netpol_trace::record::{Body, Endpoint, Record};
use proptest::prelude::*;
use serde_json::Value;

use super::examples;

/// Pieces that have broken parsers, terminals and log stores.
const PIECES: [&str; 14] = [
    "\n",
    "\r\n",
    "\0",
    "\x1b[2J\x1b]0;owned\x07",
    "\u{9b}31m",
    "\u{202e}gnp.exe",
    "\u{2028}",
    "\"",
    "\\",
    "{\"kind\":\"status\"}\n",
    "\u{feff}",
    "\u{e0041}",
    "🦀",
    "a",
];

fn text() -> impl Strategy<Value = String> {
    let piece =
        prop_oneof![prop::sample::select(&PIECES[..]).prop_map(str::to_owned), any::<char>().prop_map(String::from)];
    (prop::collection::vec(piece, 0..12), prop_oneof![Just(1_usize), Just(40), Just(60)])
        .prop_map(|(pieces, times)| pieces.concat().repeat(times))
}

/// Replaces every string that comes from untrusted input.
fn poison(record: &mut Record, texts: &[String], labels: usize) {
    let mut next = {
        let mut at = 0;
        move || {
            at += 1;
            texts.get(at % texts.len().max(1)).cloned().unwrap_or_default()
        }
    };
    let mut poison_endpoint = |endpoint: &mut Endpoint| {
        endpoint.names = (0..5).map(|_| next()).collect();
        if let Some(pod) = endpoint.pod.as_mut().map(Part::to_mut) {
            pod.name = next();
            pod.namespace = next();
            pod.labels = (0..labels).map(|n| (format!("{n}{}", next()), next())).collect();
        }
        if let Some(service) = &mut endpoint.service {
            service.name = next().into();
        }
    };
    let (verdict, hint) = match &mut record.body {
        Body::Drop(drop) => {
            poison_endpoint(&mut drop.source);
            poison_endpoint(&mut drop.destination);
            (&mut drop.verdict, &mut drop.hint)
        }
        Body::Unanswered(connection) => {
            poison_endpoint(&mut connection.source);
            poison_endpoint(&mut connection.destination);
            (&mut connection.verdict, &mut connection.hint)
        }
        Body::Status(status) => {
            for source in &mut status.sources {
                source.error = Some(next());
                source.objects = (0..labels as u64).map(|n| (format!("{n}{}", next()), n)).collect();
            }
            status.not_recorded = (0..labels as u64).map(|n| (format!("{n}{}", next()), n)).collect();
            return;
        }
        _ => return,
    };
    if let Some(hint) = hint {
        hint.to_mut().message = next();
    }
    for side in verdict.iter_mut().map(Part::to_mut).flat_map(|verdict| [&mut verdict.egress, &mut verdict.ingress]) {
        for policy in &mut side.isolated_by {
            policy.name = next().into();
        }
        for miss in side.nearest.iter_mut().flat_map(|nearest| &mut nearest.misses) {
            miss.want = next();
            miss.have = next();
        }
    }
}

/// Checks that `bytes` is one short line without dangerous characters, and parses it.
fn check_line(format: Format, bytes: &[u8]) -> Value {
    let text = std::str::from_utf8(bytes).unwrap();
    let one_line = text.strip_suffix('\n').unwrap();
    assert!(bytes.len() <= MAX_LINE, "{}: {} bytes", format.as_str(), bytes.len());
    let bad = one_line
        .chars()
        .find(|c| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'));
    assert_eq!(bad, None, "{}: {one_line}", format.as_str());
    serde_json::from_str(one_line).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn no_string_breaks_a_line(texts in prop::collection::vec(text(), 1..8), labels in prop_oneof![Just(0_usize), Just(3), Just(64)]) {
        for mut record in examples() {
            poison(&mut record, &texts, labels);
            for format in Format::ALL.iter().copied() {
                let mut out = Vec::new();
                line(format, &record, &mut out).unwrap();
                let value = check_line(format, &out);
                // A part that two records share is written unchanged.
                let (_sharing, mut second) = (record.clone(), Vec::new());
                line(format, &record, &mut second).unwrap();
                prop_assert_eq!(&out, &second);
                if format == Format::Native {
                    // It still parses as a record of the same kind and id.
                    let parsed: Record = serde_json::from_value(value).unwrap();
                    prop_assert_eq!(&parsed.id, &record.id);
                    prop_assert_eq!(std::mem::discriminant(&parsed.body), std::mem::discriminant(&record.body));
                }
            }
        }
    }
}

/// Strings of 64 kB, longer than any source of names delivers.
#[test]
fn no_long_string_breaks_a_line() {
    for text in ["x", "\u{202e}", "\"\n"] {
        for mut record in examples() {
            poison(&mut record, &[text.repeat(64 * 1024 / text.len())], 2);
            for format in Format::ALL.iter().copied() {
                let mut out = Vec::new();
                line(format, &record, &mut out).unwrap();
                check_line(format, &out);
            }
        }
    }
}

/// A record without dangerous characters is the same after writing and parsing.
#[test]
fn a_record_survives_its_line() {
    for record in examples() {
        let mut out = Vec::new();
        line(Format::Native, &record, &mut out).unwrap();
        assert_eq!(serde_json::from_slice::<Record>(&out).unwrap(), record);
    }
}
