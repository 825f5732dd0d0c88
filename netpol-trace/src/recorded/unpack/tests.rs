use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// Returns one byte for each read, as a pipe may.
struct Slow(Cursor<Vec<u8>>);

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let one = buffer.len().min(1);
        self.0.read(&mut buffer[..one])
    }
}

/// Returns the text of `bytes`, and why reading ended early.
fn unpacked(bytes: Vec<u8>) -> (Vec<u8>, Option<Unreadable>) {
    let mut out = Vec::new();
    let read = |mut reader: LogReader| reader.read_to_end(&mut out).map(drop).map_err(Unreadable::from_read);
    let why = LogReader::new(Slow(Cursor::new(bytes))).and_then(read).err();
    (out, why)
}

fn text() -> Vec<u8> {
    (0..5000).flat_map(|n| format!("{{\"line\":{n}}}\n").into_bytes()).collect()
}

#[test]
fn archives_are_read_as_their_text_also_several_in_a_row() {
    let (text, half) = (text(), b"first\n".to_vec());
    let both = [&half[..], &text[..]].concat();
    for packed in [
        [gzip(&half), gzip(&text)].concat(),
        [zstd(&half), zstd(&text)].concat(),
        // A skippable frame in front, as pzstd writes it.
        [b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec(), zstd(&half), zstd(&text)].concat(),
        both.clone(),
        [b"\xef\xbb\xbf".to_vec(), both.clone()].concat(),
    ] {
        let (out, why) = unpacked(packed);
        assert!(why.is_none() && out == both, "{why:?}, {} bytes", out.len());
    }
    assert_eq!(unpacked(Vec::new()).0, b"");
    assert_eq!(unpacked(gzip(b"")).0, b"");
}

#[test]
fn what_an_archive_has_until_it_is_cut_off_or_damaged_is_read() {
    let text = text();
    for (packed, name) in [(gzip(&text), "gzip"), (zstd(&text), "zstd")] {
        let length = packed.len();
        for cut in [5, length / 2, length - 1] {
            let (out, why) = unpacked(packed[..cut].to_vec());
            let why = why.unwrap_or_else(|| panic!("{name} cut at {cut}")).to_string();
            assert!(text.starts_with(&out), "{name}");
            assert!(why.starts_with(&format!("{name} archive cut off after {} bytes", thousands(cut as u64))), "{why}");
        }
        let mut damaged = packed.clone();
        damaged[length / 2] ^= 0xff;
        damaged.extend_from_slice(&[0; 64]);
        let why = unpacked(damaged).1.unwrap().to_string();
        assert!(why.starts_with(&format!("damaged {name} archive (after ")), "{why}");
    }
    // Most of a log that is cut off near its end is there.
    let packed = gzip(&text);
    assert!(unpacked(packed[..packed.len() - 20].to_vec()).0.len() > text.len() / 2);
}

#[test]
fn other_formats_are_named() {
    let mut tar = vec![b'a'; 512];
    tar[257..262].copy_from_slice(b"ustar");
    for (bytes, expected) in [
        (b"\x7fELF\x02\x01".to_vec(), "not a log of netpol-trace: binary data: a program or core dump (ELF)"),
        (gzip(&gzip(b"x")), "not a log of netpol-trace: a gzip archive of an archive; unpack it first"),
        (gzip(&tar), "not a log of netpol-trace: a gzip archive of a tar archive; unpack it first (tar -xf)"),
        (b"\xff\xfe{\0".to_vec(), "not a log of netpol-trace: text in UTF-16"),
    ] {
        // A file gives more than a byte at once.
        let why = LogReader::new(Cursor::new(bytes)).unwrap_err().to_string();
        assert!(why.starts_with(expected), "{why}");
    }
}

/// A gigabyte of zeros in a megabyte, read with the memory of a buffer: the decoder is asked for no more.
#[test]
fn an_archive_that_is_small_and_holds_much_is_streamed() {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let zeros = vec![b'0'; 1 << 20];
    for _ in 0..64 {
        encoder.write_all(&zeros).unwrap();
    }
    for packed in [encoder.finish().unwrap(), zstd(&vec![b'0'; 64 << 20])] {
        assert!(packed.len() < 1 << 20);
        let mut reader = LogReader::new(Cursor::new(packed)).unwrap();
        let (mut buffer, mut total) = (vec![0; BUFFER], 0);
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => break,
                read => total += read,
            }
        }
        assert_eq!(total, 64 << 20);
    }
    // A frame that wants a window of 2 GiB is refused before it gets one: magic, descriptor, window descriptor.
    let frame = b"\x28\xb5\x2f\xfd\x00\xa8\x01\0\0".to_vec();
    let why = unpacked(frame).1.unwrap().to_string();
    assert!(why.contains("a zstd archive that takes 2,048 MiB to unpack; unpack it first"), "{why}");
    // An archive with something else after it.
    let mut more = zstd(b"line\n");
    more.extend(b"garbage");
    let (text, why) = unpacked(more);
    assert!(text == b"line\n" && why.unwrap().to_string().contains("what follows is not zstd"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_bytes_after_a_magic_are_handled(start in 0..3_usize, bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let start: &[u8] = [&b"\x1f\x8b\x08\0"[..], b"\x28\xb5\x2f\xfd", b""][start];
        unpacked([start, &bytes].concat());
    }
}
