//! Recognises other formats in untrusted bytes, so that an error can name the format and what to do.

use crate::record::lines::TOO_LONG;

/// How a log is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Gzip,
    Zstd,
}

impl Packing {
    pub const fn name(self) -> &'static str {
        match self {
            Packing::Gzip => "gzip archive",
            Packing::Zstd => "zstd archive",
        }
    }
}

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Bytes 2 to 4 of a skippable frame (RFC 8878, 3.1.2), after one of sixteen first bytes. pzstd begins with such a frame.
const SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];
/// Bytes needed to recognise the compression.
pub const PACKING_LENGTH: usize = 4;

/// Returns the compression of a stream.
pub fn packing(head: &[u8]) -> Option<Packing> {
    match head {
        _ if head.starts_with(GZIP) => Some(Packing::Gzip),
        _ if head.starts_with(ZSTD) => Some(Packing::Zstd),
        [0x50..=0x5f, rest @ ..] if rest.starts_with(SKIPPABLE) => Some(Packing::Zstd),
        _ => None,
    }
}

/// Offset, bytes at the offset, name of the format.
const FOREIGN: &[(usize, &[u8], &str)] = &[
    (0, b"\x7fELF", "binary data: a program or core dump (ELF)"),
    (0, b"PK\x03\x04", "a zip archive; unpack it first"),
    (0, b"BZh", "a bzip2 archive; unpack it first (bzcat FILE | netpol-trace ... -)"),
    (0, b"\xfd7zXZ\0", "an xz archive; unpack it first (xzcat FILE | netpol-trace ... -)"),
    (0, b"\x04\x22\x4d\x18", "an lz4 archive; unpack it first (lz4cat FILE | netpol-trace ... -)"),
    (257, b"ustar", "a tar archive; unpack it first (tar -xf)"),
    (0, b"\xff\xfe", "text in UTF-16, as PowerShell's > writes it; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (0, b"\xfe\xff", "text in UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (0, b"\x89PNG", "binary data: a PNG image"),
    (0, b"\xff\xd8\xff", "binary data: a JPEG image"),
    (0, b"GIF8", "binary data: a GIF image"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\xd4\xc3\xb2\xa1", "a packet capture (pcap); netpol-trace reads the records of its agent"),
    (0, b"\xa1\xb2\xc3\xd4", "a packet capture (pcap); netpol-trace reads the records of its agent"),
    (0, b"\x0a\x0d\x0d\x0a", "a packet capture (pcapng); netpol-trace reads the records of its agent"),
    (0, b"LPKSHHRH", "a systemd journal; export it first (journalctl --file FILE -o cat)"),
    (0, b"SQLite format 3\0", "an SQLite database"),
];

/// Returns the name of a format that is not a log, if the bytes begin with its magic.
pub fn foreign(head: &[u8]) -> Option<&'static str> {
    let begins = |(at, magic, _): &&(usize, &[u8], &str)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    FOREIGN.iter().find(begins).map(|(.., what)| *what)
}

/// The beginning of a record of any version.
const RECORD: &str = "{\"schema\":\"netpol-trace/v";
/// Describes a line that a crash has cut off.
pub const CUT_OFF: &str = "JSON that is cut off";
/// Describes a record that this version cannot read.
pub const UNKNOWN_RECORD: &str =
    "a record with a kind or value that this version of netpol-trace does not know, or that was altered";

/// Describes a line that is not a record.
pub fn line(line: &[u8]) -> String {
    if line == TOO_LONG {
        return "longer than a record can be".to_owned();
    }
    let Ok(text) = std::str::from_utf8(line) else { return "binary data".to_owned() };
    let text = text.trim();
    if text.contains('\0') {
        return "binary data".to_owned();
    }
    if is_cri(text) {
        return "a line of a container runtime's log file (CRI); cut its prefix off: cut -d' ' -f4-".to_owned();
    }
    if text == "{" {
        return "JSON over several lines, and a record has one line: jq -c . FILE".to_owned();
    }
    if text.starts_with('[') && (text.len() == 1 || text[1..].trim_start().starts_with('{')) {
        return "a JSON array, and each record has a line of its own: jq -c '.[]' FILE".to_owned();
    }
    if !text.starts_with('{') {
        return match text.contains(RECORD) {
            true => "a record behind other text; remove it (kubectl logs --prefix=false, without --timestamps)",
            false => "text, not a JSON object",
        }
        .to_owned();
    }
    let value: serde_json::Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) if error.is_eof() => return CUT_OFF.to_owned(),
        Err(_) => return "not JSON, though it begins with {".to_owned(),
    };
    let has = |key: &str| value.get(key).is_some();
    match value.get("schema").and_then(serde_json::Value::as_str) {
        Some(schema) if schema.starts_with("netpol-trace/v") => UNKNOWN_RECORD.to_owned(),
        _ if has("ecs") => not_native("an ECS document", "ecs"),
        _ if has("class_uid") => not_native("an OCSF event", "ocsf"),
        _ if has("resourceLogs") => not_native("an OpenTelemetry log", "otel"),
        _ if has("apiVersion") => "a Kubernetes object; --manifests takes those".to_owned(),
        _ if has("log") && has("stream") => "a line of Docker's log file; unwrap it first: jq -rj .log FILE".to_owned(),
        _ => "JSON of another program (no \"schema\":\"netpol-trace/v1\")".to_owned(),
    }
}

fn not_native(what: &str, format: &str) -> String {
    format!("{what}; only native records are read, not those of --format {format}")
}

/// Returns true for a line of the kubelet's log files: `2026-11-21T04:30:11.123456789Z stdout F …`.
fn is_cri(text: &str) -> bool {
    let mut words = text.splitn(4, ' ');
    let time = words.next().is_some_and(|word| word.parse::<jiff::Timestamp>().is_ok());
    time && matches!(words.next(), Some("stdout" | "stderr")) && matches!(words.next(), Some("F" | "P"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_lines_are_named() {
        for (text, expected) in [
            ("\u{0}\u{1}", "binary data"),
            ("2026-11-21T04:30:11.123456789Z stdout F {\"schema\":\"netpol-trace/v1\"}", "container runtime"),
            ("2026-11-21T04:30:11Z  INFO attached", "text"),
            ("{\"schema\":\"netpol-tr", "cut off"),
            ("{\"a\" 1}", "not JSON"),
            ("{\"schema\":\"netpol-trace/v1\",\"time\":7}", "a record with a kind"),
            ("[pod/netpol-trace-x/agent] {\"schema\":\"netpol-trace/v1\"", "--prefix=false"),
            ("{", "jq -c . FILE"),
            ("[ {\"schema\":1}]", "jq -c '.[]'"),
            ("{\"ecs\":{}}", "ECS"),
            ("{\"class_uid\":4001}", "OCSF"),
            ("{\"resourceLogs\":[]}", "OpenTelemetry"),
            ("{\"apiVersion\":\"v1\",\"kind\":\"Pod\"}", "Kubernetes"),
            ("{\"log\":\"x\\n\",\"stream\":\"stdout\"}", "Docker"),
            ("{\"level\":\"info\"}", "another program"),
        ] {
            let what = line(text.as_bytes());
            assert!(what.contains(expected) && !what.contains("at line"), "{text}: {what}");
        }
        assert_eq!(line(b"\xff\xfe"), "binary data");
        assert_eq!(line(TOO_LONG), "longer than a record can be");
    }

    #[test]
    fn a_tar_archive_is_known_by_its_middle() {
        let mut tar = vec![b'a'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(foreign(&tar).unwrap().contains("tar"));
        assert_eq!(foreign(b"{\"schema\":\"netpol-trace/v1\"}"), None);
        assert_eq!(foreign(b""), None);
    }
}
