//! The way of a line through `tail`: selected, put in order, shown once.

use std::io::{self, Write};

use jiff::{SignedDuration, Timestamp};

use super::once::Once;
use super::order::Sorter;
use super::select::{Prefilter, SECOND, Wanted, looks_like_a_record};
use super::summary::Summary;
use super::text::{Printer, Style};
use super::view;

/// A record this young has only just been made: what is sorted may go out.
const LIVE: SignedDuration = SignedDuration::from_secs(3);

/// What is made of the records.
#[derive(Debug)]
pub enum Form {
    Text(Printer),
    /// The lines as they are, except for what a terminal would obey.
    Json,
    Summary(Box<Summary>, Style),
}

#[derive(Debug)]
pub struct Tail {
    wanted: Wanted,
    prefilter: Prefilter,
    sorter: Sorter,
    once: Once,
    form: Form,
    pub tally: Tally,
}

/// What became of the lines.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub lines: u64,
    pub shown: u64,
    /// Lines that are no records, and the first one's number.
    pub not_records: u64,
    pub first_not_record: u64,
    /// The second of the newest record that came by, wanted or not, with `--since`.
    pub newest: Option<[u8; SECOND]>,
}

impl Tail {
    pub fn new(wanted: Wanted, form: Form) -> Tail {
        let (prefilter, tally) = (Prefilter::new(&wanted), Tally::default());
        Tail { wanted, prefilter, sorter: Sorter::default(), once: Once::default(), form, tally }
    }

    /// Takes one line; it is shown with the next [`Tail::release`].
    pub fn line(&mut self, line: &[u8]) -> io::Result<()> {
        self.tally.lines += 1;
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        if !looks_like_a_record(line) {
            self.not_a_record();
            return Ok(());
        }
        self.tally.newest = self.tally.newest.max(self.prefilter.second(line).copied());
        if !self.prefilter.may_match(line) {
            return Ok(());
        }
        let Some(seen) = view::read(line) else {
            self.not_a_record();
            return Ok(());
        };
        if !self.wanted.wants(&seen) {
            return Ok(());
        }
        match &mut self.form {
            // Sums need no order.
            Form::Summary(summary, _) => {
                if self.once.is_new(&seen) {
                    self.tally.shown += 1;
                    summary.add(&seen);
                }
                Ok(())
            }
            Form::Text(_) | Form::Json => self.sorter.push(seen.time, line),
        }
    }

    fn not_a_record(&mut self) {
        self.tally.not_records += 1;
        if self.tally.not_records == 1 {
            self.tally.first_not_record = self.tally.lines;
        }
    }

    /// Whether what has gathered reaches to the present, so that nothing older is likely to come.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.sorter.newest.is_some_and(|newest| now.duration_since(newest) < LIVE)
    }

    /// Shows what has gathered.
    pub fn release(&mut self, out: &mut impl Write) -> io::Result<()> {
        if self.sorter.is_empty() {
            return Ok(());
        }
        let Tail { sorter, once, form, tally, .. } = self;
        let mut text = String::new();
        sorter.drain(|line| {
            let Some(seen) = view::read(line).filter(|seen| once.is_new(seen)) else { return Ok(()) };
            tally.shown += 1;
            match form {
                Form::Text(printer) => {
                    text.clear();
                    printer.record(&seen, &mut text);
                    out.write_all(text.as_bytes())
                }
                Form::Json => json(line, out),
                Form::Summary(..) => Ok(()),
            }
        })?;
        out.flush()
    }

    /// Shows the rest, and the summary.
    pub fn finish(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.release(out)?;
        if let Form::Summary(summary, style) = &self.form {
            out.write_all(summary.text(*style).as_bytes())?;
        }
        out.flush()
    }

    /// Records that were kept back since they had been shown: the same ones, and other agents' of the same packet.
    pub fn repeated(&self) -> (u64, u64) {
        (self.once.repeated, self.once.twins)
    }
}

/// The line; characters that a terminal obeys or that reorder text as `\u` escapes, which mean the same in JSON.
fn json(line: &[u8], out: &mut impl Write) -> io::Result<()> {
    if line.iter().all(|b| (0x20..0x7f).contains(b)) {
        out.write_all(line)?;
        return out.write_all(b"\n");
    }
    let mut safe = String::with_capacity(line.len() + 16);
    for c in String::from_utf8_lossy(line).chars() {
        match c {
            // Outside of texts, where alone JSON allows them.
            '\t' | '\r' => safe.push(' '),
            c if crate::text::is_unsafe(c) => safe.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => safe.push(c),
        }
    }
    safe.push('\n');
    out.write_all(safe.as_bytes())
}
