//! Words of a Dockerfile instruction, with quotation marks, escapes and variables. Syntax and results are those of buildkit
//! (`frontend/dockerfile/shell/lex.go`), which docker also uses for `commit --change` and `import --change`.

use std::iter::Peekable;
use std::str::Chars;

/// Looks up a variable.
pub(super) type Env<'e> = dyn Fn(&str) -> Option<String> + 'e;

/// Splits at white space outside quotation marks; keeps quotation marks and escapes (buildkit,
/// `parser.parseWords`).
pub(super) fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote: Option<char> = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None | Some('"'), '\\') => {
                word.push(c);
                word.extend(characters.next());
                continue;
            }
            _ => {}
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Expands one word: removes quotation marks and escapes, and replaces variables.
///
/// # Errors
/// What is malformed.
pub(super) fn expand(text: &str, env: &Env<'_>) -> Result<String, String> {
    expand_until(&mut text.chars().peekable(), env, None).map(|word| word.text)
}

/// Like `expand`, but white space in a variable's value, outside quotation marks, splits the word.
///
/// # Errors
/// What is malformed.
pub(super) fn expand_words(text: &str, env: &Env<'_>) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    for word in split(text) {
        let word = expand_until(&mut word.chars().peekable(), env, None)?;
        let mut start = 0;
        for at in word.breaks {
            words.push(word.text[start..at].to_owned());
            start = at;
        }
        words.push(word.text[start..].to_owned());
    }
    words.retain(|word| !word.trim().is_empty());
    Ok(words.into_iter().map(|word| word.trim().to_owned()).collect())
}

#[derive(Default)]
struct Word {
    text: String,
    /// Where white space from a variable begins.
    breaks: Vec<usize>,
}

impl Word {
    fn push_value(&mut self, value: &str) {
        for c in value.chars() {
            if c.is_whitespace() {
                self.breaks.push(self.text.len());
            }
            self.text.push(c);
        }
    }
}

fn expand_until(input: &mut Peekable<Chars<'_>>, env: &Env<'_>, stop: Option<char>) -> Result<Word, String> {
    let mut word = Word::default();
    loop {
        match input.next() {
            None if stop.is_some() => return Err("a brace is not closed".to_owned()),
            None => return Ok(word),
            Some(c) if Some(c) == stop => return Ok(word),
            Some('\'') => single_quoted(input, &mut word.text)?,
            Some('"') => double_quoted(input, env, &mut word.text)?,
            Some('$') => {
                let value = variable(input, env)?;
                word.push_value(&value);
            }
            Some('\\') => word.text.extend(input.next()),
            Some(c) => word.text.push(c),
        }
    }
}

fn single_quoted(input: &mut Peekable<Chars<'_>>, out: &mut String) -> Result<(), String> {
    for c in input {
        if c == '\'' {
            return Ok(());
        }
        out.push(c);
    }
    Err("a quotation mark is not closed".to_owned())
}

/// A backslash only escapes characters that have a meaning here.
fn double_quoted(input: &mut Peekable<Chars<'_>>, env: &Env<'_>, out: &mut String) -> Result<(), String> {
    while let Some(c) = input.next() {
        match c {
            '"' => return Ok(()),
            '$' => out.push_str(&variable(input, env)?),
            '\\' => match input.peek() {
                Some('"' | '$' | '\\') => out.extend(input.next()),
                _ => out.push('\\'),
            },
            c => out.push(c),
        }
    }
    Err("a quotation mark is not closed".to_owned())
}

/// What comes after a `$`.
fn variable(input: &mut Peekable<Chars<'_>>, env: &Env<'_>) -> Result<String, String> {
    if input.peek() != Some(&'{') {
        let name = name(input);
        return Ok(if name.is_empty() { "$".to_owned() } else { env(&name).unwrap_or_default() });
    }
    input.next();
    let name = name(input);
    if name.is_empty() {
        return Err("a variable has no name".to_owned());
    }
    let value = env(&name);
    let (colon, modifier) = match input.next() {
        Some('}') => return Ok(value.unwrap_or_default()),
        Some(':') => (true, input.next()),
        other => (false, other),
    };
    // With a colon, an empty variable counts as unset.
    let is_set = value.as_ref().is_some_and(|value| !colon || !value.is_empty());
    let rest = |input: &mut Peekable<Chars<'_>>| expand_until(input, env, Some('}')).map(|word| word.text);
    match modifier {
        Some('-') => rest(input).map(|rest| value.filter(|_| is_set).unwrap_or(rest)),
        Some('+') => rest(input).map(|rest| if is_set { rest } else { String::new() }),
        Some('?') => {
            let rest = rest(input)?;
            let reason = if rest.is_empty() { "is not set".to_owned() } else { rest };
            value.filter(|_| is_set).ok_or_else(|| format!("{name}: {reason}"))
        }
        Some(other) => Err(format!("unknown modifier {other:?} of a variable")),
        None => Err("a brace is not closed".to_owned()),
    }
}

/// Letters, digits and `_`; a digit or a special parameter (`@`, `*`, `#`, …) is a name by itself.
fn name(input: &mut Peekable<Chars<'_>>) -> String {
    let mut name = String::new();
    match input.peek() {
        Some(&c) if c.is_ascii_digit() || matches!(c, '@' | '*' | '#') => {
            name.extend(input.next());
        }
        _ => {
            while let Some(&c) = input.peek().filter(|c| c.is_alphanumeric() || **c == '_') {
                name.push(c);
                input.next();
            }
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of buildkit's own table (`envVarTest`) that need no pattern, and a few more.
    #[test]
    fn expanded() {
        let env = |name: &str| match name {
            "PWD" => Some("/home".to_owned()),
            "KOREAN" => Some("한국어".to_owned()),
            "SP" => Some("a b".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let table = [
            ("hello", "hello"),
            ("he'll'o", "hello"),
            ("he\"ll\"o", "hello"),
            (r"he\'llo", "he'llo"),
            (r"he\\llo", r"he\llo"),
            (r"abc\tdef", "abctdef"),
            ("'abc\\tdef'", "abc\\tdef"),
            (r#""abc\tdef""#, r"abc\tdef"),
            (r#""a\"b\$c\\d""#, r#"a"b$c\d"#),
            ("$PWD", "/home"),
            ("'$PWD'", "$PWD"),
            ("\"$PWD\"x", "/homex"),
            (r"\$PWD", "$PWD"),
            ("${PWD}x$PWDx", "/homex"),
            ("a$", "a$"),
            ("a$.b", "a$.b"),
            ("$1$@x", "x"),
            ("${NONE:-w}", "w"),
            ("${EMPTY:-w}${EMPTY-w}", "w"),
            ("${NONE-w}", "w"),
            ("${PWD:-w}", "/home"),
            ("${PWD:+w}${NONE:+w}${EMPTY:+w}", "w"),
            ("${EMPTY+w}", "w"),
            ("${NONE:-$PWD}", "/home"),
            ("${NONE:-a${PWD}b}", "a/homeb"),
            ("${NONE:-\"x y\"}", "x y"),
            ("$KOREAN", "한국어"),
            ("/opt/x:$PWD", "/opt/x:/home"),
            ("trailing\\", "trailing"),
        ];
        for (text, expected) in table {
            assert_eq!(expand(text, &env).as_deref(), Ok(expected), "{text}");
        }
        for bad in ["'a", "\"a", "${", "${}", "${PWD", "${PWD:}", "${PWD!x}", "${NONE:?}", "${EMPTY:?gone}"] {
            assert!(expand(bad, &env).is_err(), "{bad}");
        }
        assert_eq!(expand("${NONE:?is needed}", &env), Err("NONE: is needed".to_owned()));
        assert_eq!(
            expand_words("1 $SP \"$SP\" $NONE 2", &env),
            Ok(["1", "a", "b", "a b", "2"].map(String::from).into())
        );
    }

    #[test]
    fn split_keeps_quotes() {
        assert_eq!(split(r#" a="b c"  d='e f' g\ h "" "#), [r#"a="b c""#, "d='e f'", r"g\ h", "\"\""]);
    }
}
