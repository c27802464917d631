//! Makes untrusted text (an image's history, names and paths, a server's answers) safe for a terminal.
//!
//! Everything that `strata` prints goes through [`shown`] or [`json`]. Both leave ordinary text unchanged, and
//! applying them twice changes nothing more.

use std::borrow::Cow;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use unicode_width::UnicodeWidthStr;

/// Longest text in an error message, in bytes.
const MESSAGE_LIMIT: usize = 1000;

/// Longest name in an error message, in bytes.
const NAME_LIMIT: usize = 300;

/// Escapes characters that could move a cursor, hide text or end a line: control characters (also U+0080 to
/// U+009F, which terminals take for escape sequences), line separators, marks that change the direction of
/// writing, and zero-width characters that no language needs.
pub fn shown(text: &str) -> Cow<'_, str> {
    replace(text, |c, out| out.extend(c.escape_default()))
}

/// Escapes a path. Bytes that are not UTF-8 become `\xNN`.
pub fn shown_path(path: &Path) -> String {
    shown_bytes(path.as_os_str().as_bytes())
}

/// Escapes bytes. Those that are not UTF-8 become `\xNN`.
pub fn shown_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(&shown(chunk.valid()));
        for byte in chunk.invalid() {
            push_formatted(&mut out, format_args!("\\x{byte:02x}"));
        }
    }
    out
}

/// Escapes the same characters in a JSON document, in JSON's syntax. They only occur in its strings, so its meaning
/// does not change.
pub fn json(document: &str) -> Cow<'_, str> {
    // Newlines separate a document's parts. In its strings, they are already escaped.
    replace_if(
        document,
        |c| c != '\n' && is_harmful(c),
        |c, out| {
            for unit in c.encode_utf16(&mut [0; 2]) {
                push_formatted(out, format_args!("\\u{unit:04x}"));
            }
        },
    )
}

/// The beginning of a text, escaped, for an error message.
pub(crate) fn message(text: &str) -> String {
    let mut end = text.len().min(MESSAGE_LIMIT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let (head, rest) = text.split_at(end);
    let ellipsis = if rest.is_empty() { "" } else { "…" };
    format!("{}{ellipsis}", shown(head))
}

/// A name in an archive or a layer, for an error message: escaped and shortened. The empty name is the root.
pub(crate) fn printable(name: &[u8]) -> String {
    if name.is_empty() {
        return "./".to_owned();
    }
    let mut shown = shown_bytes(name.get(..NAME_LIMIT).unwrap_or(name));
    if name.len() > NAME_LIMIT {
        shown.push('…');
    }
    shown
}

/// Number of columns of a text on a terminal. Wide characters take two columns, accents none.
pub fn width(text: &str) -> usize {
    text.width()
}

/// The beginning of a text, at most `columns` wide; a longer text ends with an ellipsis.
pub fn shorten(text: &str, columns: usize) -> Cow<'_, str> {
    if width(text) <= columns {
        return Cow::Borrowed(text);
    }
    let mut end = 0;
    for (at, c) in text.char_indices() {
        let next = at + c.len_utf8();
        if width(&text[..next]) >= columns {
            break;
        }
        end = next;
    }
    Cow::Owned(format!("{}…", &text[..end]))
}

fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Soft hyphen, Mongolian vowel separator.
            '\u{ad}' | '\u{180e}'
            // Directions: Arabic letter mark, LRM, RLM, embeddings, overrides, isolates.
            | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{206f}'
            // Line and paragraph separator.
            | '\u{2028}' | '\u{2029}'
            // Zero width space, word joiner and invisible operators, byte order mark, interlinear annotations.
            | '\u{200b}' | '\u{2060}'..='\u{2065}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            // Tags, which spell invisible text.
            | '\u{e0000}'..='\u{e0fff}')
}

fn replace(text: &str, write: impl Fn(char, &mut String)) -> Cow<'_, str> {
    replace_if(text, is_harmful, write)
}

fn replace_if(text: &str, harmful: impl Fn(char) -> bool, write: impl Fn(char, &mut String)) -> Cow<'_, str> {
    if !text.contains(&harmful) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match harmful(c) {
            true => write(c, &mut out),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn push_formatted(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    out.write_fmt(text).unwrap_or(());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmful_characters_are_escaped_and_others_stay() {
        let table = [
            ("plain ünï 日本 👩‍👩‍👧 é", "plain ünï 日本 👩‍👩‍👧 é"),
            ("\u{1b}[31mred", "\\u{1b}[31mred"),
            ("\u{9b}31mred", "\\u{9b}31mred"),
            ("a\nb\rc\td\u{7}e\u{8}f\u{7f}", "a\\nb\\rc\\td\\u{7}e\\u{8}f\\u{7f}"),
            ("ab\u{202e}cd\u{2066}", "ab\\u{202e}cd\\u{2066}"),
            ("a\u{2028}b\u{feff}\u{200b}", "a\\u{2028}b\\u{feff}\\u{200b}"),
            ("x\u{e0041}", "x\\u{e0041}"),
            ("c:\\path", "c:\\path"),
        ];
        for (text, expected) in table {
            assert_eq!(shown(text), expected);
            assert_eq!(shown(expected), expected, "once more changes nothing");
        }
        assert_eq!(shown_bytes(b"a\xff\x1b\xc3\xa4"), "a\\xff\\u{1b}ä");
    }

    #[test]
    fn json_stays_the_same_document() {
        let value = serde_json::json!({"k\u{9b}": ["\u{1b}[2J\n", "\u{202e}", "\u{e0041}", "\u{7f}", "ok ü"]});
        let text = serde_json::to_string_pretty(&value).expect("json");
        let escaped = json(&text);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).expect("json"), value);
        assert!(!escaped.contains(|c| c != '\n' && is_harmful(c)), "{escaped}");
    }

    #[test]
    fn widths() {
        for (text, columns) in [("abc", 3), ("日本", 4), ("e\u{301}", 1), ("", 0)] {
            assert_eq!(width(text), columns, "{text}");
        }
        for (text, columns, expected) in
            [("abcdef", 6, "abcdef"), ("abcdefg", 6, "abcde…"), ("日本語日本語", 6, "日本…"), ("ab", 1, "…")]
        {
            assert_eq!(shorten(text, columns), expected, "{text}");
            assert!(width(&shorten(text, columns)) <= columns);
        }
    }

    #[test]
    fn messages_are_cut_at_a_character() {
        let long = "ä".repeat(MESSAGE_LIMIT);
        assert!(message(&long).ends_with("ä…") && message(&long).len() < MESSAGE_LIMIT + 8);
        assert_eq!(message("a\nb"), "a\\nb");
    }
}
