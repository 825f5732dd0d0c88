//! Whatever strangers write in names, labels and DNS answers: a record stays one line of JSON under 16 KiB, in every format, and
//! no character of it does anything to a terminal.

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

/// Every string that a stranger has a hand in.
fn poison(record: &mut Record, texts: &[String], labels: usize) {
    let mut next = {
        let mut at = 0;
        move || {
            at += 1;
            texts.get(at % texts.len().max(1)).cloned().unwrap_or_default()
        }
    };
    let mut poison_end = |end: &mut Endpoint| {
        end.names = (0..5).map(|_| next()).collect();
        if let Some(pod) = end.pod.as_mut().map(Part::to_mut) {
            pod.name = next();
            pod.namespace = next();
            pod.labels = (0..labels).map(|n| (format!("{n}{}", next()), next())).collect();
        }
        if let Some(service) = &mut end.service {
            service.name = next().into();
        }
    };
    let (verdict, hint) = match &mut record.body {
        Body::Drop(drop) => {
            poison_end(&mut drop.source);
            poison_end(&mut drop.destination);
            (&mut drop.verdict, &mut drop.hint)
        }
        Body::Unanswered(silent) => {
            poison_end(&mut silent.source);
            poison_end(&mut silent.destination);
            (&mut silent.verdict, &mut silent.hint)
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

fn harmless(format: Format, bytes: &[u8]) -> Value {
    let text = std::str::from_utf8(bytes).unwrap();
    let one = text.strip_suffix('\n').unwrap();
    assert!(bytes.len() <= MAX_LINE, "{}: {} octets", format.as_str(), bytes.len());
    let bad = one
        .chars()
        .find(|c| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'));
    assert_eq!(bad, None, "{}: {one}", format.as_str());
    serde_json::from_str(one).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn no_string_breaks_a_line(texts in prop::collection::vec(text(), 1..8), labels in prop_oneof![Just(0_usize), Just(3), Just(64)]) {
        for mut record in examples() {
            poison(&mut record, &texts, labels);
            for format in Format::ALL {
                let mut out = Vec::new();
                line(format, &record, &mut out).unwrap();
                let value = harmless(format, &out);
                // A part that another record shares is written as it is.
                let (_other, mut again) = (record.clone(), Vec::new());
                line(format, &record, &mut again).unwrap();
                prop_assert_eq!(&out, &again);
                if format == Format::Native {
                    // It is still a record, of the same kind and number.
                    let again: Record = serde_json::from_value(value).unwrap();
                    prop_assert_eq!(&again.id, &record.id);
                    prop_assert_eq!(std::mem::discriminant(&again.body), std::mem::discriminant(&record.body));
                }
            }
        }
    }
}

/// 64 kB each, which no source of names hands over.
#[test]
fn nor_do_long_ones() {
    for text in ["x", "\u{202e}", "\"\n"] {
        for mut record in examples() {
            poison(&mut record, &[text.repeat(64 * 1024 / text.len())], 2);
            for format in Format::ALL {
                let mut out = Vec::new();
                line(format, &record, &mut out).unwrap();
                harmless(format, &out);
            }
        }
    }
}

/// What nothing has to be taken out of comes back octet for octet.
#[test]
fn a_record_survives_its_line() {
    for record in examples() {
        let mut out = Vec::new();
        line(Format::Native, &record, &mut out).unwrap();
        assert_eq!(serde_json::from_slice::<Record>(&out).unwrap(), record);
    }
}
