//! Maps kernel code addresses to function names, and names to code ranges, from /proc/kallsyms.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};

use netpol_trace_common::CodeRange;

/// The kernel's functions by address. About 4 MB for the 120,000 functions of a distribution kernel with modules.
#[derive(Debug, Default)]
pub struct Symbols {
    /// Sorted addresses, each with the offset of its name in `names`.
    addresses: Vec<(u64, u32)>,
    names: String,
    image: CodeRange,
    nft: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum SymbolsError {
    #[error("can't read /proc/kallsyms: {0}")]
    Read(#[from] io::Error),
    /// `kernel.kptr_restrict` or a missing CAP_SYSLOG.
    #[error("/proc/kallsyms shows no addresses: grant CAP_SYSLOG, or set kernel.kptr_restrict to 1 or 0")]
    Hidden,
}

impl Symbols {
    pub fn read() -> Result<Symbols, SymbolsError> {
        Symbols::from_lines(BufReader::new(File::open("/proc/kallsyms")?))
    }

    /// Reads lines of `address type name [module]` and keeps code only (types t, T, w, W). Reads line by line, because the text is larger than
    /// what is kept.
    pub fn from_lines(mut text: impl BufRead) -> Result<Symbols, SymbolsError> {
        let mut symbols = Symbols { image: CodeRange { start: u64::MAX, end: 0 }, ..Symbols::default() };
        let mut any = false;
        let mut line = Vec::new();
        while text.read_until(b'\n', &mut line)? > 0 {
            any |= symbols.add(&line).is_some();
            line.clear();
        }
        if any && symbols.addresses.is_empty() {
            return Err(SymbolsError::Hidden);
        }
        symbols.addresses.sort_unstable();
        symbols.addresses.shrink_to_fit();
        symbols.names.shrink_to_fit();
        Ok(symbols)
    }

    /// Adds a line; `None` if it is not code. Parsed by hand, because the start waits for these 120,000 lines.
    fn add(&mut self, line: &[u8]) -> Option<()> {
        let mut words = line.split(|byte| byte.is_ascii_whitespace());
        let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
        if !matches!(kind, b"t" | b"T" | b"w" | b"W") {
            return None;
        }
        let digit = |value: u64, byte: &u8| Some(value << 4 | u64::from(char::from(*byte).to_digit(16)?));
        let address = address.iter().try_fold(0, digit).filter(|_| address.len() <= 16).unwrap_or(0);
        if address != 0 {
            // The fourth word is the module, or `[bpf]`.
            if words.next().is_none_or(<[u8]>::is_empty) {
                self.image.start = self.image.start.min(address);
                self.image.end = self.image.end.max(address);
                self.nft |= name == b"nft_do_chain";
            }
            self.addresses.push((address, self.names.len() as u32));
            self.names.push_str(&String::from_utf8_lossy(name));
            self.names.push('\n');
        }
        Some(())
    }

    fn name_at(&self, offset: u32) -> &str {
        let tail = self.names.get(offset as usize..).unwrap_or_default();
        tail.split('\n').next().unwrap_or_default()
    }

    /// The function that contains `address`, without the suffix of a clone (`.constprop.0`, `.isra.0`, `.part.0`, `.cold`).
    pub fn name(&self, address: u64) -> Option<&str> {
        let after = self.addresses.partition_point(|(start, _)| *start <= address);
        let (_, name) = *self.addresses.get(after.checked_sub(1)?)?;
        // The length of the last function is unknown.
        (after < self.addresses.len()).then(|| bare(self.name_at(name)))
    }

    /// The code of the kernel image, from its first function to its last one.
    pub fn image(&self) -> CodeRange {
        self.image
    }

    /// True if nftables is in the kernel image; as a module it has a folder in /sys/module.
    pub fn nft_is_built_in(&self) -> bool {
        self.nft
    }

    /// The code ranges of the functions `names` and their clones, in the order of `names`.
    pub fn ranges(&self, names: &[&str]) -> Vec<CodeRange> {
        // One pass over the kernel's symbols, because the reader thread waits for it.
        let positions: HashMap<&str, usize> = names.iter().enumerate().map(|(i, name)| (*name, i)).collect();
        let mut ranges = Vec::new();
        for (i, (start, offset)) in self.addresses.iter().enumerate() {
            let Some(position) = positions.get(bare(self.name_at(*offset))) else { continue };
            // Aliases share an address: a range ends at the next different address.
            let end = self.addresses[i..].iter().map(|(a, _)| *a).find(|a| a > start);
            if let Some(end) = end {
                ranges.push((*position, CodeRange { start: *start, end }));
            }
        }
        ranges.sort_by_key(|(position, _)| *position);
        ranges.into_iter().map(|(_, range)| range).collect()
    }
}

fn bare(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "ffff1000 T nf_hook_slow\nffff1100 t nf_queue.isra.0\nffff1180 d some_data\nffff1200 t nf_queue.cold\n\
                        ffff1300 W alias_a\nffff1300 t alias_b\nffff1400 t nft_do_chain\t[nf_tables]\nffff1500 t last\n";

    #[test]
    fn clones_and_modules_are_named_after_their_function() {
        let symbols = Symbols::from_lines(TEXT.as_bytes()).unwrap();
        assert_eq!(symbols.name(0xffff1004), Some("nf_hook_slow"));
        assert_eq!(symbols.name(0xffff1190), Some("nf_queue"));
        assert_eq!(symbols.name(0xffff1401), Some("nft_do_chain"));
        assert_eq!(symbols.name(0xfff), None);
        assert_eq!(symbols.name(0xffff9999), None, "beyond the last function");
    }

    #[test]
    fn the_image_is_what_has_no_module() {
        let symbols = Symbols::from_lines(TEXT.as_bytes()).unwrap();
        assert_eq!(symbols.image(), CodeRange { start: 0xffff1000, end: 0xffff1500 });
        let around =
            Symbols::from_lines(&b"fff0 t before [a]\nffff1000 t f\nffff1100 t g\nffff2000 t after [bpf]\n"[..])
                .unwrap();
        assert_eq!(around.image(), CodeRange { start: 0xffff1000, end: 0xffff1100 });
    }

    #[test]
    fn a_function_may_have_several_ranges() {
        let symbols = Symbols::from_lines(TEXT.as_bytes()).unwrap();
        assert_eq!(
            symbols.ranges(&["nf_queue"]),
            [CodeRange { start: 0xffff1100, end: 0xffff1200 }, CodeRange { start: 0xffff1200, end: 0xffff1300 }]
        );
        assert_eq!(symbols.ranges(&["alias_b"]), [CodeRange { start: 0xffff1300, end: 0xffff1400 }]);
    }

    #[test]
    fn hidden_addresses_are_an_error() {
        assert!(matches!(Symbols::from_lines(&b"0000000000000000 T nf_hook_slow\n"[..]), Err(SymbolsError::Hidden)));
    }
}
