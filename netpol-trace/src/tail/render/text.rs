//! Records for a reader: what happened, whose policy, what to do, in that order, in one line; the hint below the first
//! line of its kind, and by its number in the lines after.

use std::collections::HashMap;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::paint::{Ink, Paint, cut, width, wrap};
use crate::record::describe;
use crate::record::describe::Brevity;
use crate::record::read::RecordView;

/// Hints that are remembered by number; beyond, they are told again.
const HINTS: usize = 1000;
/// Of a line that is too long, its reason keeps this much; what is left goes to the names.
const REASON_AT_LEAST: usize = 20;
const NAME_AT_LEAST: usize = 10;
/// A narrower terminal gets times without milliseconds.
const NARROW: usize = 100;

#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// Columns; `None` where nobody looks at a terminal: nothing is cut.
    pub width: Option<usize>,
    /// Everything the record knows, however long.
    pub wide: bool,
    pub paint: Paint,
}

/// Prints records one after the other.
#[derive(Debug, Default)]
pub struct Printer {
    style: Style,
    day: Option<Date>,
    hints: HashMap<u64, usize>,
    /// Hints told so far.
    told: usize,
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

    /// Times are short; the day is told when it changes.
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

    /// Words of one width stand in a column, where there is room for that.
    fn word(&self, word: &str, ink: Ink) -> String {
        let columns = if self.is_narrow() { 4 } else { 6 };
        self.style.paint.ink(&format!("{word:<columns$}"), ink)
    }

    fn is_narrow(&self) -> bool {
        !self.style.wide && self.style.width.is_some_and(|columns| columns < NARROW)
    }

    /// The number of the record's hint, and whether it is to be told now.
    fn hint_number(&mut self, record: &RecordView<'_>) -> Option<(usize, bool)> {
        record.hint.as_ref()?;
        let case = describe::case(record);
        if let Some(number) = self.hints.get(&case) {
            return Some((*number, false));
        }
        if self.hints.len() >= HINTS {
            self.hints.clear();
        }
        self.told += 1;
        self.hints.insert(case, self.told);
        Some((self.told, true))
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
        // A policy is every node's.
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
            ("unanswered", _) => ("SILENT", Ink::Warn),
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

/// Few words between port and reason, where there is more than one packet or something odd.
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
        let why = if &*record.kind == "unanswered" { describe::silence(record) } else { describe::why(record) };
        let end = |end: &Option<crate::record::read::EndpointView<'_>>| {
            end.as_ref().map_or_else(|| "?".to_owned(), describe::end)
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
                .map(|dns| format!(", asked for {}", describe::name(dns)));
            *text += &format!(" ({ip}{port}{}{})", service.unwrap_or_default(), dns.unwrap_or_default());
        }
        let kernel = &record.kernel;
        let known = [&kernel.mechanism, &kernel.hook, &kernel.reason, &kernel.location, &kernel.device];
        let known: Vec<_> =
            known.into_iter().filter(|text| !text.is_empty()).map(|text| describe::name(text)).collect();
        // A policy is every node's.
        let node = if record.node.is_empty() || &*record.kind == "policy_change" {
            String::new()
        } else {
            format!(", node {}", describe::name(&record.node))
        };
        let cause = if record.cause.is_empty() { describe::name(&record.kind) } else { describe::name(&record.cause) };
        parts.why += &format!(" ({cause}{node}: {})", known.join(" "));
        parts
    }

    /// Makes the parts fit into `columns` together: first by saying less, then by cutting.
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
                    *text = end.as_ref().map_or_else(|| "?".to_owned(), |end| describe::short_end(end, replica));
                }
            }
        }
        if total(self) <= columns {
            return;
        }
        let reason = width(&self.why).min(REASON_AT_LEAST.max(columns / 3));
        let names = columns.saturating_sub(reason);
        let [source, destination] = [width(&self.source), width(&self.destination)];
        // The shorter name stays whole if it can.
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
