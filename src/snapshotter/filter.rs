//! Filters of `List`, in the syntax of containerd's package `filters`:
//!
//! ```text
//! filter   := selector ("," selector)*         all must match
//! selector := path (("==" | "!=" | "~=") value)?   without an operator: the field is there
//! path     := field ("." field)*
//! field    := quoted | [A-Za-z0-9_]+
//! value    := quoted | anything but commas and white space
//! ```
//!
//! Fields are `name`, `parent`, `kind` and `labels.NAME`. `~=` matches a regular expression, which may also be quoted by
//! slashes or bars.

use std::iter::Peekable;
use std::str::Chars;

use regex::Regex;

use super::{Result, Snapshot, SnapshotError};

/// Filters, one of which must match; without any, everything matches.
#[derive(Debug)]
pub(super) struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filters {
    /// Reads the filters of a request.
    ///
    /// # Errors
    /// `Invalid`, naming the filter and the place.
    pub(super) fn parse(filters: &[String]) -> Result<Self> {
        filters.iter().map(|text| Parser::new(text).filter()).collect::<Result<_>>().map(Self)
    }

    /// True if a snapshot matches.
    pub(super) fn accept(&self, snapshot: &Snapshot) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(|selector| selector.accepts(snapshot)))
    }
}

impl Selector {
    fn accepts(&self, snapshot: &Snapshot) -> bool {
        let value = field(snapshot, &self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            Test::NotEqual(unwanted) => value != Some(unwanted),
            Test::Matches(pattern) => value.is_some_and(|value| pattern.is_match(value)),
        }
    }
}

fn field<'s>(snapshot: &'s Snapshot, path: &[String]) -> Option<&'s str> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "name" => Some(&snapshot.name),
        "parent" => Some(&snapshot.parent),
        "kind" => Some(snapshot.kind.name()),
        "labels" => snapshot.labels.get(&rest.join(".")).map(String::as_str),
        _ => None,
    }
}

struct Parser<'t> {
    text: &'t str,
    rest: Peekable<Chars<'t>>,
}

impl<'t> Parser<'t> {
    fn new(text: &'t str) -> Self {
        Self { text, rest: text.chars().peekable() }
    }

    fn wrong(&self, why: &str) -> SnapshotError {
        let left = self.rest.clone().count();
        let at = self.text.chars().count() - left + 1;
        SnapshotError::invalid(format!("filter '{}'", self.text), format!("{why} at character {at}"))
    }

    fn filter(mut self) -> Result<Vec<Selector>> {
        let mut selectors = Vec::new();
        self.skip_space();
        if self.rest.peek().is_none() {
            return Ok(selectors);
        }
        loop {
            selectors.push(self.selector()?);
            match self.rest.next() {
                None => return Ok(selectors),
                Some(',') => self.skip_space(),
                Some(_) => return Err(self.wrong("a comma is expected")),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector> {
        let mut path = vec![self.field()?];
        while self.rest.next_if_eq(&'.').is_some() {
            path.push(self.field()?);
        }
        self.skip_space();
        let Some(operator) = self.rest.next_if(|&c| matches!(c, '=' | '!' | '~')) else {
            return Ok(Selector { path, test: Test::Present });
        };
        if self.rest.next() != Some('=') {
            return Err(self.wrong("an operator (==, !=, ~=) is expected"));
        }
        self.skip_space();
        let value = self.value(operator == '~')?;
        let test = match operator {
            '=' => Test::Equal(value),
            '!' => Test::NotEqual(value),
            _ => Test::Matches(Regex::new(&value).map_err(|_| self.wrong("a bad regular expression ends"))?),
        };
        self.skip_space();
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String> {
        if matches!(self.rest.peek(), Some('"' | '\'')) {
            return self.quoted();
        }
        let field = self.take_while(|c| c.is_alphanumeric() || c == '_');
        if field.is_empty() { Err(self.wrong("a field is expected")) } else { Ok(field) }
    }

    fn value(&mut self, is_pattern: bool) -> Result<String> {
        match self.rest.peek() {
            Some('"' | '\'') => self.quoted(),
            Some('/' | '|') if is_pattern => self.delimited(),
            _ => {
                let value = self.take_while(|c| c != ',' && !c.is_whitespace() && !c.is_control());
                if value.is_empty() { Err(self.wrong("a value is expected")) } else { Ok(value) }
            }
        }
    }

    /// A regular expression between slashes or bars; only the delimiter can be escaped in it.
    fn delimited(&mut self) -> Result<String> {
        let Some(end) = self.rest.next() else { return Err(self.wrong("a value is expected")) };
        let mut value = String::new();
        loop {
            match self.rest.next() {
                None => return Err(self.wrong("the end of a quotation is expected")),
                Some(c) if c == end => return Ok(value),
                Some('\\') if self.rest.peek() == Some(&end) => value.extend(self.rest.next()),
                Some(c) => value.push(c),
            }
        }
    }

    /// A string in Go's syntax.
    fn quoted(&mut self) -> Result<String> {
        let Some(end) = self.rest.next() else { return Err(self.wrong("a quotation is expected")) };
        let mut bytes = Vec::new();
        loop {
            match self.rest.next() {
                None => return Err(self.wrong("the end of a quotation is expected")),
                Some(c) if c == end => break,
                Some('\\') => self.escape(&mut bytes)?,
                Some(c) => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        String::from_utf8(bytes).map_err(|_| self.wrong("a quotation that is not UTF-8 ends"))
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        let Some(kind) = self.rest.next() else { return Err(self.wrong("an escape is expected")) };
        let plain = match kind {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' | '\'' | '"' => kind as u8,
            'x' => u8::try_from(self.number(2, 16)?).unwrap_or_default(),
            '0'..='3' => {
                let high = kind.to_digit(8).unwrap_or_default() * 64;
                u8::try_from(high + self.number(2, 8)?).unwrap_or_default()
            }
            'u' | 'U' => {
                let number = self.number(if kind == 'u' { 4 } else { 8 }, 16)?;
                let Some(c) = char::from_u32(number) else { return Err(self.wrong("no such character")) };
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(self.wrong("no such escape")),
        };
        bytes.push(plain);
        Ok(())
    }

    fn number(&mut self, digits: u32, radix: u32) -> Result<u32> {
        let mut number = 0;
        for _ in 0..digits {
            match self.rest.next().and_then(|c| c.to_digit(radix)) {
                Some(digit) => number = number * radix + digit,
                None => return Err(self.wrong("a digit is expected")),
            }
        }
        Ok(number)
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some(c) = self.rest.next_if(|&c| wanted(c)) {
            taken.push(c);
        }
        taken
    }

    fn skip_space(&mut self) {
        self.take_while(char::is_whitespace);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Moment, Usage};
    use super::*;

    fn sample() -> Snapshot {
        let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Snapshot {
            name: "k8s.io/4/web, 1".to_owned(),
            id: 7,
            kind: Kind::Active,
            parent: "sha256:ab".to_owned(),
            created: Moment::default(),
            updated: Moment::default(),
            labels: [label("containerd.io/snapshot.ref", "sha256:cd"), label("a.b", "1"), label("plain", "")].into(),
            usage: Usage::default(),
        }
    }

    #[test]
    fn filters_match_as_in_containerd() {
        let table: &[(&[&str], bool)] = &[
            (&[], true),
            (&[""], true),
            (&["kind==active"], true),
            (&["kind==committed"], false),
            (&["kind==committed", "parent==sha256:ab"], true),
            (&["kind==active,parent==sha256:ab"], true),
            (&["kind==active,parent==x"], false),
            (&["kind!=view"], true),
            (&["name==\"k8s.io/4/web, 1\""], true),
            (&["name=='k8s.io/4/web, 1'"], true),
            (&[r#"name=="\x6b8s.io/4/web\054\u00201""#], true),
            (&["labels.plain"], true),
            (&["labels.none"], false),
            (&["labels.none!=x"], true),
            (&["labels.a.b==1"], true),
            (&[r#"labels."containerd.io/snapshot.ref"==sha256:cd,parent=="sha256:ab""#], true),
            (&["name~=^k8s"], true),
            (&["name~=/^k8s\\.io\\/[0-9]+/"], true),
            (&["name~=|web, |"], true),
            (&["name~=\"^web\""], false),
            (&["parent ~= sha256 , kind"], true),
            (&["unknown"], false),
        ];
        for (filters, expected) in table {
            let filters: Vec<String> = filters.iter().map(|&text| text.to_owned()).collect();
            let parsed = Filters::parse(&filters).unwrap_or_else(|error| panic!("{filters:?}: {error}"));
            assert_eq!(parsed.accept(&sample()), *expected, "{filters:?}");
        }
    }

    #[test]
    fn bad_filters_are_told_with_their_place() {
        for (filter, expected) in [
            ("==a", "filter '==a': a field is expected at character 1"),
            ("name=a", "filter 'name=a': an operator (==, !=, ~=) is expected at character 7"),
            ("name==", "filter 'name==': a value is expected at character 7"),
            ("name==a b", "filter 'name==a b': a comma is expected at character 10"),
            ("name==\"a", "filter 'name==\"a': the end of a quotation is expected at character 9"),
            ("name==\"\\q\"", "filter 'name==\"\\q\"': no such escape at character 10"),
            ("name~=(", "filter 'name~=(': a bad regular expression ends at character 8"),
            ("labels.", "filter 'labels.': a field is expected at character 8"),
            ("kind,", "filter 'kind,': a field is expected at character 6"),
        ] {
            let error = Filters::parse(&[filter.to_owned()]).expect_err(filter);
            assert_eq!(error.to_string(), expected);
        }
    }
}
