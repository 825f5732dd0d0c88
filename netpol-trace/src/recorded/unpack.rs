//! Opens one log, plain or compressed. gzip and zstd are decompressed while they are read: an archive takes the memory of a buffer and of the
//! decoder's window.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::record::magic;
use crate::record::magic::{PACKING_LENGTH, Packing};
use crate::text::thousands;

const BUFFER: usize = 64 * 1024;
/// Largest window of a zstd frame: the limit of the zstd program without options.
const WINDOW: u64 = 128 << 20;
/// Some editors write it in front of UTF-8 text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Why a log cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// What it is instead.
    #[error("not a log of netpol-trace: {0}")]
    Foreign(String),
    #[error("{} cut off after {} bytes: what was read until there counts", .0.name(), thousands(*.1))]
    CutOff(Packing, u64),
    #[error("damaged {} (after {} bytes: {}): what was read until there counts", .0.name(), thousands(*.1), .2)]
    Damaged(Packing, u64, String),
    #[error("{}", words(.0))]
    Io(#[from] io::Error),
}

/// Describes an error of the system, with what to do.
fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied; run as a user who may read it".to_owned(),
        _ => error.to_string(),
    }
}

/// Reads the text of a log. Errors are [`Unreadable`] inside of [`io::Error`]; [`Unreadable::from_read`] gives them back.
pub struct LogReader {
    input: Box<dyn Read + Send>,
    packing: Option<Packing>,
}

impl std::fmt::Debug for LogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogReader").field("packing", &self.packing).finish_non_exhaustive()
    }
}

impl LogReader {
    /// Waits for the first bytes, and finds out from them how the log is compressed.
    pub fn new(mut input: impl Read + Send + 'static) -> Result<LogReader, Unreadable> {
        let head = begin(&mut input)?;
        let Some(packing) = magic::packing(&head) else {
            return Ok(LogReader { input: Box::new(text(head, input)?), packing: None });
        };
        let counts = Arc::new(PackedCounts::default());
        let counted = Counted { input: Cursor::new(head).chain(input), counts: counts.clone() };
        let buffered = BufReader::with_capacity(BUFFER, counted);
        let decoder: Box<dyn Read + Send> = match packing {
            Packing::Gzip => Box::new(MultiGzDecoder::new(buffered)),
            Packing::Zstd => Box::new(Zstd::new(buffered)),
        };
        let mut unpacked = Unpacked { decoder, packing, counts, broken: None };
        let head = match begin(&mut unpacked) {
            Ok(head) => head,
            Err(error) => return Err(Unreadable::from_read(error)),
        };
        if magic::packing(&head).is_some() {
            return Err(Unreadable::Foreign(format!("a {} of an archive; unpack it first", packing.name())));
        }
        let input = text(head, unpacked).map_err(|error| match error {
            Unreadable::Foreign(what) => Unreadable::Foreign(format!("a {} of {what}", packing.name())),
            error => error,
        })?;
        Ok(LogReader { input: Box::new(input), packing: Some(packing) })
    }

    /// Puts back `head`, which was read from it.
    pub fn after(self, head: Vec<u8>) -> LogReader {
        LogReader { input: Box::new(Cursor::new(head).chain(self.input)), packing: self.packing }
    }

    /// Returns true for a compressed log, which does not grow.
    pub fn is_compressed(&self) -> bool {
        self.packing.is_some()
    }
}

impl Read for LogReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer)
    }
}

impl Unreadable {
    /// Returns the reason inside an error of [`LogReader`].
    pub fn from_read(error: io::Error) -> Unreadable {
        match error.downcast::<Unreadable>() {
            Ok(reason) => reason,
            Err(error) => Unreadable::Io(error),
        }
    }
}

/// Returns the bytes of the first read. Reads again only if they are too few to recognise an archive.
fn begin(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = vec![0; BUFFER];
    let mut length = 0;
    loop {
        match input.read(&mut head[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if length >= PACKING_LENGTH {
            break;
        }
    }
    head.truncate(length);
    Ok(head)
}

/// Returns the text that begins with `head`. Fails if `head` is the beginning of a known other format.
fn text<R: Read>(mut head: Vec<u8>, rest: R) -> Result<Chain<Cursor<Vec<u8>>, R>, Unreadable> {
    if let Some(what) = magic::foreign(&head) {
        return Err(Unreadable::Foreign(what.to_owned()));
    }
    if head.starts_with(BYTE_ORDER_MARK) {
        head.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(Cursor::new(head).chain(rest))
}

/// Compressed bytes so far, and whether there are no more.
#[derive(Debug, Default)]
struct PackedCounts {
    bytes: AtomicU64,
    ended: AtomicBool,
}

struct Counted<R> {
    input: R,
    counts: Arc<PackedCounts>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.counts.bytes.fetch_add(read as u64, Ordering::Relaxed);
        self.counts.ended.fetch_or(read == 0 && !buffer.is_empty(), Ordering::Relaxed);
        Ok(read)
    }
}

/// A decoder whose errors tell how far it came. After an error it returns that error again.
struct Unpacked {
    decoder: Box<dyn Read + Send>,
    packing: Packing,
    counts: Arc<PackedCounts>,
    broken: Option<String>,
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.broken.is_none() {
            match self.decoder.read(buffer) {
                // Errors of the system, and those that are `Unreadable` already, stay as they are.
                Err(error)
                    if error.raw_os_error().is_none()
                        && !error.get_ref().is_some_and(|error| error.is::<Unreadable>()) =>
                {
                    self.broken = Some(error.to_string())
                }
                result => return result,
            }
        }
        let bytes = self.counts.bytes.load(Ordering::Relaxed);
        Err(io::Error::other(match self.counts.ended.load(Ordering::Relaxed) {
            true => Unreadable::CutOff(self.packing, bytes),
            false => Unreadable::Damaged(self.packing, bytes, self.broken.clone().unwrap_or_default()),
        }))
    }
}

/// Describes what is wrong with a zstd frame.
fn wrong(error: FrameDecoderError) -> io::Error {
    match error {
        FrameDecoderError::WindowSizeTooBig { requested, .. } => io::Error::other(Unreadable::Foreign(format!(
            "a zstd archive that takes {} MiB to unpack; unpack it first (zstd -d --long=31)",
            thousands(requested >> 20)
        ))),
        FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::BadMagicNumber(_)) => {
            io::Error::other("what follows is not zstd")
        }
        error => io::Error::other(error.to_string()),
    }
}

/// Decodes all frames of a zstd stream. ruzstd decodes one.
struct Zstd<R> {
    source: R,
    frame: FrameDecoder,
    /// In the middle of a frame.
    inside: bool,
}

impl<R> Zstd<R> {
    fn new(source: R) -> Zstd<R> {
        let mut frame = FrameDecoder::new();
        frame.set_max_window_size(WINDOW);
        Zstd { source, frame, inside: false }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.inside {
                if self.source.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                match self.frame.reset(&mut self.source) {
                    Ok(()) => self.inside = true,
                    Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                        length, ..
                    })) => {
                        let skipped = io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
                        if skipped < length.into() {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        continue;
                    }
                    Err(error) => return Err(wrong(error)),
                }
            }
            while !self.frame.is_finished() && self.frame.can_collect() == 0 {
                let few = BlockDecodingStrategy::UptoBytes(buffer.len().max(1));
                self.frame.decode_blocks(&mut self.source, few).map_err(wrong)?;
            }
            let read = self.frame.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let sums = (self.frame.get_checksum_from_data(), self.frame.get_calculated_checksum());
            if let (Some(stored), Some(calculated)) = sums
                && stored != calculated
            {
                return Err(io::Error::other("checksum does not match"));
            }
            self.inside = false;
        }
    }
}

#[cfg(test)]
mod tests;
