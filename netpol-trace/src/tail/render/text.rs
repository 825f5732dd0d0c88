//! One line for each record: what happened, by which policy, and what the nearest rule misses. The hint follows the first line that has it;
//! later lines refer to it by its number.

use std::collections::HashMap;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::paint::{Ink, Paint, cut, width, wrap};
use crate::record::describe;
use crate::record::describe::Brevity;
use crate::record::read::RecordView;

/// Hints that are remembered by number. Beyond that, numbering begins anew and hints are shown again.
const HINTS: usize = 1000;
/// Columns that the reason of a line keeps at least if the line is too long, and those that each name keeps.
const REASON_AT_LEAST: usize = 20;
const NAME_AT_LEAST: usize = 10;
/// On a narrower terminal times have no milliseconds.
const NARROW: usize = 100;

#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// Columns of the terminal. `None`: not a terminal, nothing is cut.
    pub width: Option<usize>,
    /// Show everything in the record, however long.
    pub wide: bool,
    pub paint: Paint,
}

/// Renders records one after the other.
#[derive(Debug, Default)]
pub struct Printer {
    style: Style,
    day: Option<Date>,
    hints: HashMap<u64, usize>,
    /// Hints shown so far.
    hints_shown: usize,
}

impl Printer {
    pub fn new(style: Style) -> Printer {
        Printer { style, ..Printer::default() }
    }

    /// Appends the lines of one record to `out`.
    pub fn record(&mut self, record: &RecordView<'_>, out: &mut String) {
        self.date(record.time, out);
        let hint = self.hint_number(record);
        match &*record.kind {
            "drop" | "unanswered" => self.flow(record, hint, out),
            "loss" => self.plain(record, "LOST", Ink::Bad, &describe::loss(record), out),
            "policy_change" => self.plain(record, "POLICY", Ink::Strong, &describe::policy_change(record), out),
            "status" => self.plain(record, "AGENT", Ink::Dim, &describe::status(record), out),
            kind => self.plain(record, "OTHER", Ink::Dim, &format!("a record of kind {}", describe::name(kind)), out),
        }
        if let (Some((number, true)), Some(hint)) = (hint, &record.hint) {
            self.hint(number, &describe::name(&hint.code), &describe::sentence(&hint.message), out);
        }
    }

    /// Writes the day if it changed: times are without it.
    fn date(&mut self, time: Timestamp, out: &mut String) {
        let day = time.to_zoned(TimeZone::UTC).date();
        if !self.style.wide && self.day.replace(day) != Some(day) {
            *out += &self.style.paint.ink(&format!("{day} UTC"), Ink::Dim);
            out.push('\n');
        }
    }

    fn time(&self, time: Timestamp) -> String {
        let milliseconds = !self.is_narrow();
        match (self.style.wide, milliseconds) {
            (true, _) => format!("{time:.3}"),
            (false, true) => time.strftime("%H:%M:%S%.3f").to_string(),
            (false, false) => time.strftime("%H:%M:%S").to_string(),
        }
    }

    /// Pads the word, so that words stand in a column.
    fn word(&self, word: &str, ink: Ink) -> String {
        let columns = if self.is_narrow() { 4 } else { 6 };
        self.style.paint.ink(&format!("{word:<columns$}"), ink)
    }

    fn is_narrow(&self) -> bool {
        !self.style.wide && self.style.width.is_some_and(|columns| columns < NARROW)
    }

    /// Returns the number of the record's hint, and true if the hint is to be shown now.
    fn hint_number(&mut self, record: &RecordView<'_>) -> Option<(usize, bool)> {
        record.hint.as_ref()?;
        let key = describe::hint_key(record);
        if let Some(number) = self.hints.get(&key) {
            return Some((*number, false));
        }
        if self.hints.len() >= HINTS {
            self.hints.clear();
        }
        self.hints_shown += 1;
        self.hints.insert(key, self.hints_shown);
        Some((self.hints_shown, true))
    }

    fn hint(&self, number: usize, code: &str, message: &str, out: &mut String) {
        let text = format!("[{number}] {code}: {message}");
        let columns = self.style.width.filter(|_| !self.style.wide).unwrap_or(usize::MAX).saturating_sub(4);
        for (at, line) in wrap(&text, columns.max(20)).iter().enumerate() {
            out.push_str(if at == 0 { "  " } else { "    " });
            *out += &self.style.paint.ink(line, Ink::Hint);
            out.push('\n');
        }
    }

    fn plain(&self, record: &RecordView<'_>, word: &str, ink: Ink, text: &str, out: &mut String) {
        // Every node records a policy change.
        let node = if record.node.is_empty() || &*record.kind == "policy_change" {
            String::new()
        } else {
            format!("node {}: ", describe::name(&record.node))
        };
        let time = self.time(record.time);
        let room = self.style.width.filter(|_| !self.style.wide).map(|columns| columns.saturating_sub(time.len() + 8));
        let text = format!("{node}{text}");
        let text = room.map_or_else(|| text.clone(), |room| cut(&text, room));
        let paint = self.style.paint;
        *out += &format!("{} {} {}\n", paint.ink(&time, Ink::Dim), self.word(word, ink), paint.ink(&text, ink));
    }

    fn flow(&self, record: &RecordView<'_>, hint: Option<(usize, bool)>, out: &mut String) {
        let (word, ink) = match (&*record.kind, &*record.action) {
            ("unanswered", _) => ("UNANSWERED", Ink::Warn),
            (_, "reject") => ("REJECT", Ink::Bad),
            _ => ("DROP", Ink::Bad),
        };
        let time = self.time(record.time);
        let paint = self.style.paint;
        let number = hint.map(|(number, _)| format!(" [{number}]")).unwrap_or_default();
        let marks = marks(record);
        let port = describe::port(record);
        let mut parts = Parts::of(record, self.style.wide);
        if let Some(columns) = self.style.width.filter(|_| !self.style.wide) {
            let word = word.len().max(if self.is_narrow() { 4 } else { 6 });
            let fixed = time.len() + 1 + word + 1 + " -> ".len() + 1 + width(&port) + width(&marks) + 2 + number.len();
            parts.fit(record, columns.saturating_sub(fixed));
        }
        let Parts { source, destination, why } = parts;
        *out += &format!(
            "{} {} {source} {} {destination} {port}{marks}  {why}{}\n",
            paint.ink(&time, Ink::Dim),
            self.word(word, ink),
            paint.ink("->", Ink::Dim),
            paint.ink(&number, Ink::Hint),
        );
    }
}

/// Marks between port and reason: several packets, a reply, a spoofed source address.
fn marks(record: &RecordView<'_>) -> String {
    let mut marks = String::new();
    if record.packets() > 1 {
        marks += &format!(" x{}", record.packets());
    }
    if record.reply {
        marks += " reply";
    }
    if record.spoofed {
        marks += " spoofed";
    }
    marks
}

/// The parts of a line that can be long.
struct Parts {
    source: String,
    destination: String,
    why: String,
}

impl Parts {
    fn of(record: &RecordView<'_>, wide: bool) -> Parts {
        let why = if &*record.kind == "unanswered" { describe::unanswered(record) } else { describe::why(record) };
        let end = |end: &Option<crate::record::read::EndpointView<'_>>| {
            end.as_ref().map_or_else(|| "?".to_owned(), describe::endpoint)
        };
        let mut parts = Parts { source: end(&record.source), destination: end(&record.destination), why };
        if !wide {
            return parts;
        }
        for (text, end) in [(&mut parts.source, &record.source), (&mut parts.destination, &record.destination)] {
            let Some(end) = end else { continue };
            let ip = describe::name(&end.ip);
            let port = end.port.map(|port| format!(" port {port}")).unwrap_or_default();
            let service = end.service.as_ref().filter(|_| end.pod.is_some()).map(|service| {
                let port = service.port.map(|port| format!(":{port}")).unwrap_or_default();
                format!(", service {}/{}{port}", describe::name(&service.namespace), describe::name(&service.name))
            });
            let dns = end
                .names
                .first()
                .filter(|_| end.pod.is_some())
                .map(|dns| format!(", resolved from {}", describe::name(dns)));
            *text += &format!(" ({ip}{port}{}{})", service.unwrap_or_default(), dns.unwrap_or_default());
        }
        let kernel = &record.kernel;
        let kernel_parts = [&kernel.mechanism, &kernel.hook, &kernel.reason, &kernel.location, &kernel.device];
        let kernel_parts: Vec<_> =
            kernel_parts.into_iter().filter(|text| !text.is_empty()).map(|text| describe::name(text)).collect();
        // Every node records a policy change.
        let node = if record.node.is_empty() || &*record.kind == "policy_change" {
            String::new()
        } else {
            format!(", node {}", describe::name(&record.node))
        };
        let cause = if record.cause.is_empty() { describe::name(&record.kind) } else { describe::name(&record.cause) };
        parts.why += &format!(" ({cause}{node}: {})", kernel_parts.join(" "));
        parts
    }

    /// Makes the parts fit into `columns` together: first in fewer words, then by cutting.
    fn fit(&mut self, record: &RecordView<'_>, columns: usize) {
        let total = |parts: &Parts| width(&parts.source) + width(&parts.destination) + width(&parts.why);
        for brevity in [Brevity::Short, Brevity::Shortest] {
            if total(self) > columns && &*record.kind == "drop" {
                self.why = describe::brief(record, brevity);
            }
        }
        for replica in [true, false] {
            for shorten_source in [true, false] {
                if total(self) > columns {
                    let (text, end) = match shorten_source {
                        true => (&mut self.source, &record.source),
                        false => (&mut self.destination, &record.destination),
                    };
                    *text = end.as_ref().map_or_else(|| "?".to_owned(), |end| describe::short_endpoint(end, replica));
                }
            }
        }
        if total(self) <= columns {
            return;
        }
        let reason = width(&self.why).min(REASON_AT_LEAST.max(columns / 3));
        let names = columns.saturating_sub(reason);
        let [source, destination] = [width(&self.source), width(&self.destination)];
        // The shorter name stays whole if there is room.
        let half = names / 2;
        let [source, destination] = match (source <= half, destination <= half) {
            (true, _) => [source, destination.min(names - source)],
            (_, true) => [source.min(names - destination), destination],
            _ => [half, names - half],
        };
        self.source = cut(&self.source, source.max(NAME_AT_LEAST));
        self.destination = cut(&self.destination, destination.max(NAME_AT_LEAST));
        let left = columns.saturating_sub(width(&self.source) + width(&self.destination));
        self.why = cut(&self.why, left);
    }
}
