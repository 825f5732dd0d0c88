//! Writes Prometheus' text format, version 0.0.4.

use std::fmt::Write;

/// A metric's name, type, help and labels; docs/metrics.md has the same name, type and labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: MetricKind,
    pub help: &'static str,
    pub labels: &'static [&'static str],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
}

impl MetricKind {
    pub fn as_str(self) -> &'static str {
        match self {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
        }
    }
}

/// The media type of the page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page of metrics that is being written.
#[derive(Debug, Default)]
pub struct MetricsPage(String);

impl MetricsPage {
    /// Writes a metric without labels.
    pub fn one(&mut self, metric: &Metric, value: u64) {
        self.family(metric, [([""; 0], value)]);
    }

    /// Writes a metric and its samples: the values of its labels, in the metric's order, and the number.
    pub fn family<const N: usize, V: AsRef<str>>(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = ([V; N], u64)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        // A family without samples is left out: Prometheus and promtool both take it as unknown.
        if samples.peek().is_none() {
            return;
        }
        let Metric { name, kind, help, labels } = metric;
        // Writes to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {}", kind.as_str());
        for (values, number) in samples {
            self.0.push_str(name);
            let pairs =
                labels.iter().zip(&values).map(|(label, value)| format!("{label}=\"{}\"", escape(value.as_ref())));
            let pairs: Vec<String> = pairs.collect();
            if !pairs.is_empty() {
                let _ = write!(self.0, "{{{}}}", pairs.join(","));
            }
            let _ = writeln!(self.0, " {number}");
        }
    }

    pub fn finish(self) -> String {
        self.0
    }
}

/// Escapes a label's value. Names are untrusted, and a line must stay one line.
fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c if crate::text::is_unsafe(c) => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}
