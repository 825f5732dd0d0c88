//! Removes DWARF from the eBPF object, of which it is four fifths. bpf-linker has already made BTF of it.

/// Size in bytes of a section header, and offsets of its fields.
const HEADER: usize = 64;
const NAME: usize = 0;
const KIND: usize = 4;
const OFFSET: usize = 24;
const SIZE: usize = 32;
const ALIGN: usize = 48;
/// A section without content in the file.
const NOBITS: u64 = 8;

/// Returns a 64-bit little-endian ELF file without its debug sections. Their headers stay, marked as unused, because sections are referred to
/// by number.
///
/// # Errors
/// What is damaged.
pub fn strip(elf: &[u8]) -> Result<Vec<u8>, String> {
    let table = number(elf, 0x28, 8)?;
    let count = number(elf, 0x3c, 2)?;
    let header = |section: usize| part(elf, table + section * HEADER, HEADER);
    let names = header(number(elf, 0x3e, 2)?)?;
    let names = part(elf, number(names, OFFSET, 8)?, number(names, SIZE, 8)?)?;

    let mut out = part(elf, 0, HEADER)?.to_vec();
    let mut headers = Vec::new();
    for section in 0..count {
        let header = header(section)?;
        let name = names.get(number(header, NAME, 4)?..).unwrap_or_default();
        if [".debug_", ".rel.debug_"].iter().any(|debug| name.starts_with(debug.as_bytes())) {
            headers.extend([0; HEADER]);
            continue;
        }
        let start = headers.len();
        headers.extend(header);
        if number(header, KIND, 4)? as u64 != NOBITS {
            let content = part(elf, number(header, OFFSET, 8)?, number(header, SIZE, 8)?)?;
            out.resize(out.len().next_multiple_of(number(header, ALIGN, 8)?.clamp(1, 64)), 0);
            headers[start + OFFSET..][..8].copy_from_slice(&(out.len() as u64).to_le_bytes());
            out.extend(content);
        }
    }
    out.resize(out.len().next_multiple_of(8), 0);
    let table = out.len() as u64;
    out[0x28..0x30].copy_from_slice(&table.to_le_bytes());
    out.extend(headers);
    Ok(out)
}

fn part(bytes: &[u8], at: usize, len: usize) -> Result<&[u8], String> {
    bytes.get(at..).and_then(|rest| rest.get(..len)).ok_or_else(|| format!("the eBPF object ends before byte {at}"))
}

fn number(bytes: &[u8], at: usize, len: usize) -> Result<usize, String> {
    Ok(part(bytes, at, len)?.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}
