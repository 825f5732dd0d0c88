//! Colours and widths of text on a terminal.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// The meaning of a text, which decides its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ink {
    Plain,
    Bad,
    Warn,
    Hint,
    Dim,
    Strong,
}

/// Whether to colour text.
#[derive(Debug, Clone, Copy, Default)]
pub struct Paint(pub bool);

impl Paint {
    pub fn ink(self, text: &str, ink: Ink) -> String {
        let code = match ink {
            Ink::Plain => return text.to_owned(),
            Ink::Bad => "31",
            Ink::Warn => "33",
            Ink::Hint => "36",
            Ink::Dim => "2",
            Ink::Strong => "1",
        };
        if self.0 && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

pub fn width(text: &str) -> usize {
    text.width()
}

/// Cuts `text` to `most` columns. A text that was longer ends in `…`.
pub fn cut(text: &str, most: usize) -> String {
    if text.width() <= most {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut columns = 0;
    for c in text.chars() {
        columns += c.width().unwrap_or(0);
        if columns + 1 > most {
            break;
        }
        kept.push(c);
    }
    if most > 0 {
        kept.push('…');
    }
    kept
}

/// Breaks `text` at spaces into lines of at most `most` columns. Breaks longer words anywhere.
pub fn wrap(text: &str, most: usize) -> Vec<String> {
    let most = most.max(1);
    let mut lines = vec![String::new()];
    let mut columns = 0;
    for word in text.split(' ') {
        let wide = word.width();
        let line = match lines.last_mut() {
            Some(line) if line.is_empty() => line,
            Some(line) if columns + 1 + wide <= most => {
                line.push(' ');
                columns += 1;
                line
            }
            _ => {
                columns = 0;
                lines.push(String::new());
                let Some(line) = lines.last_mut() else { continue };
                line
            }
        };
        if wide <= most {
            line.push_str(word);
            columns += wide;
            continue;
        }
        for c in word.chars() {
            let wide = c.width().unwrap_or(0);
            if columns + wide > most {
                lines.push(String::new());
                columns = 0;
            }
            columns += wide;
            if let Some(line) = lines.last_mut() {
                line.push(c);
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_counted_not_characters() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("日本語の名前", 5), "日本…");
        assert_eq!(cut("x", 0), "");
    }

    #[test]
    fn lines_break_at_spaces() {
        assert_eq!(wrap("a bc def", 5), ["a bc", "def"]);
        assert_eq!(wrap("abcdefgh ij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrap("", 4), [""]);
    }
}
