//! `netpol-trace tail`: the text that it makes of a log, and its behaviour as a process.
//!
//! `log.jsonl` is the demo's log, followed by records of kinds that the demo doesn't make, a line that is no record, one
//! record twice, and one packet that a second agent recorded too.

mod agents;
mod behaviour;
mod files;
mod hostile;
mod mixed;
mod troubleshooting;

use std::path::PathBuf;

use expect_test::expect_file;
use jiff::Timestamp;
use netpol_trace::tail::render::Rendering;
use netpol_trace::tail::render::paint::{Paint, width};
use netpol_trace::tail::render::text::{Printer, Style};
use netpol_trace::tail::select::Selection;
use netpol_trace::tail::stream::Tail;

fn log() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/tail/log.jsonl")
}

/// What `tail` prints of `log` in one form.
fn shown(log: &str, selection: Selection, rendering: Rendering) -> String {
    let mut tail = Tail::new(selection, rendering);
    let id = tail.add_log(None);
    let mut out = Vec::new();
    log.lines().for_each(|line| tail.line(id, line.as_bytes()).unwrap());
    tail.finish(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn text(style: Style) -> String {
    let log = std::fs::read_to_string(log()).unwrap();
    let shown = shown(&log, Selection::default(), Rendering::Text(Printer::new(style)));
    if let Some(columns) = style.width {
        for line in shown.lines() {
            assert!(width(line) <= columns, "{columns} columns: {line}");
        }
    }
    shown
}

#[test]
fn on_80_columns() {
    expect_file!["on_80_columns.txt"].assert_eq(&text(Style { width: Some(80), ..Style::default() }));
}

#[test]
fn on_200_columns() {
    expect_file!["on_200_columns.txt"].assert_eq(&text(Style { width: Some(200), ..Style::default() }));
}

#[test]
fn wide() {
    expect_file!["wide.txt"].assert_eq(&text(Style { width: Some(80_000), wide: true, ..Style::default() }));
}

#[test]
fn every_width_is_kept() {
    for width in 60..250 {
        text(Style { width: Some(width), ..Style::default() });
    }
}

#[test]
fn colours_change_nothing_but_colours() {
    let painted = text(Style { paint: Paint(true), ..Style::default() });
    let mut plain = String::new();
    let mut rest = painted.as_str();
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain += before;
        rest = after.split_once('m').unwrap().1;
    }
    assert_eq!(plain + rest, text(Style::default()));
}

#[test]
fn the_summary() {
    let log = std::fs::read_to_string(log()).unwrap();
    let style = Style { width: Some(100), ..Style::default() };
    let shown = shown(&log, Selection::default(), Rendering::Summary(Box::default(), style));
    expect_file!["summary.txt"].assert_eq(&shown);
}

#[test]
fn logs_of_several_runs_come_in_the_order_of_time() {
    let log = std::fs::read_to_string(log()).unwrap();
    let mut lines: Vec<&str> = log.lines().collect();
    let in_order = shown(&log, Selection::default(), Rendering::Json);
    lines.reverse();
    let mixed = shown(&lines.join("\n"), Selection::default(), Rendering::Json);
    let times = |shown: &str| -> Vec<Timestamp> {
        shown
            .lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["time"].as_str().unwrap().parse().unwrap())
            .collect()
    };
    assert!(times(&mixed).is_sorted());
    assert_eq!(times(&mixed).len(), times(&in_order).len());
}
