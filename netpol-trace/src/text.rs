//! Text for terminals: escaping, and counts with their unit.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Makes untrusted text safe for a terminal: shows unsafe characters as `\n`, `\t` or `\u{1b}`.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\n' => safe.push_str("\\n"),
            '\t' => safe.push_str("\\t"),
            '\r' => safe.push_str("\\r"),
            c if is_unsafe(c) => {
                let _ = write!(safe, "\\u{{{:x}}}", u32::from(c));
            }
            c => safe.push(c),
        }
    }
    Cow::Owned(safe)
}

/// Returns true for characters that a terminal would act on or that hide or reorder text: control characters (DEL and C1 included),
/// soft hyphen, bidirectional controls (CVE-2021-42574), zero-width and other invisible marks, line separators, tag characters.
///
/// JSON lines, terminal output and metrics labels all use this one definition.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// `1 record`, `2 records`, `1,234 records`.
pub fn counted(count: u64, what: &str) -> String {
    format!("{} {what}{}", thousands(count), if count == 1 { "" } else { "s" })
}

/// `1,234,567`
pub fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{counted, escape};

    #[test]
    fn counts_have_their_plural_and_thousands() {
        assert_eq!(counted(1, "record"), "1 record");
        assert_eq!(counted(0, "record"), "0 records");
        assert_eq!(counted(999, "record"), "999 records");
        assert_eq!(counted(1_234_567, "record"), "1,234,567 records");
    }

    #[test]
    fn control_characters_never_reach_a_terminal() {
        assert_eq!(escape("app=web"), "app=web");
        assert_eq!(escape("a\u{1b}[31mred\nb\t\r\u{7f}\u{9b}"), "a\\u{1b}[31mred\\nb\\t\\r\\u{7f}\\u{9b}");
        assert_eq!(escape("x\u{202e}y\u{200b}z"), "x\\u{202e}y\\u{200b}z");
        assert_eq!(escape("soft\u{ad}hyphen"), "soft\\u{ad}hyphen");
        for c in ['\u{206a}', '\u{206f}', '\u{fff9}', '\u{fffb}', '\u{e0001}', '\u{e007f}'] {
            assert_eq!(escape(&c.to_string()), format!("\\u{{{:x}}}", u32::from(c)));
        }
        assert_eq!(escape("grün 日本"), "grün 日本");
    }
}
