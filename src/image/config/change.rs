//! `--change`: one instruction of a Dockerfile, applied to a configuration. Syntax: docker's "Dockerfile
//! reference"; docker and podman take the same instructions in `commit --change` and `import --change`.

use std::str::FromStr;

use serde_json::{Map, Value, json};

use crate::image::{ImageError, Result};

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// `CMD`
    Cmd(Vec<String>),
    /// `ENTRYPOINT`
    Entrypoint(Vec<String>),
    /// `ENV`: names and values.
    Env(Vec<(String, String)>),
    /// `LABEL`: names and values.
    Label(Vec<(String, String)>),
    /// `EXPOSE`: `PORT/PROTOCOL`.
    Expose(Vec<String>),
    /// `VOLUME`
    Volume(Vec<String>),
    /// `USER`
    User(String),
    /// `WORKDIR`; a relative one goes on from the present one.
    WorkingDir(String),
    /// `STOPSIGNAL`
    StopSignal(String),
}

impl Change {
    /// Applies the instruction to the object `config` of an image's configuration.
    pub(crate) fn apply(&self, process: &mut Map<String, Value>) {
        match self {
            Self::Cmd(words) => set(process, "Cmd", json!(words)),
            Self::Entrypoint(words) => set(process, "Entrypoint", json!(words)),
            Self::Env(pairs) => pairs.iter().for_each(|(name, value)| set_env(process, name, value)),
            Self::Label(pairs) => pairs.iter().for_each(|(name, value)| insert(process, "Labels", name, json!(value))),
            Self::Expose(ports) => ports.iter().for_each(|port| insert(process, "ExposedPorts", port, json!({}))),
            Self::Volume(paths) => paths.iter().for_each(|path| insert(process, "Volumes", path, json!({}))),
            Self::User(user) => set(process, "User", json!(user)),
            Self::StopSignal(signal) => set(process, "StopSignal", json!(signal)),
            Self::WorkingDir(path) => {
                let present = process.get("WorkingDir").and_then(Value::as_str).unwrap_or("/");
                let joined = match path.strip_prefix('/') {
                    Some(_) => path.clone(),
                    None => format!("{}/{path}", if present.is_empty() { "" } else { present.trim_end_matches('/') }),
                };
                set(process, "WorkingDir", json!(joined));
            }
        }
    }
}

fn set(process: &mut Map<String, Value>, key: &str, value: Value) {
    process.insert(key.to_owned(), value);
}

/// Puts `name` into the object `key`, which is made if it is not there.
fn insert(process: &mut Map<String, Value>, key: &str, name: &str, value: Value) {
    let object = process.entry(key).or_insert(Value::Null);
    if !object.is_object() {
        *object = json!({});
    }
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_owned(), value);
    }
}

fn set_env(process: &mut Map<String, Value>, name: &str, value: &str) {
    let assignment = json!(format!("{name}={value}"));
    let list = process.entry("Env").or_insert(Value::Null);
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    let names = |item: &Value| item.as_str().and_then(|item| item.split_once('=')).is_some_and(|(n, _)| n == name);
    match list.iter_mut().find(|item| names(item)) {
        Some(present) => *present = assignment,
        None => list.push(assignment),
    }
}

impl FromStr for Change {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |reason: &str| ImageError::malformed(text, reason);
        let (verb, rest) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
        let rest = rest.trim();
        let words = || words_of(rest).ok_or_else(|| bad("a quotation mark is not closed"));
        let some = |list: Vec<String>| if list.is_empty() { Err(bad("an argument is missing")) } else { Ok(list) };
        let one = || if rest.is_empty() { Err(bad("an argument is missing")) } else { Ok(rest.to_owned()) };
        match verb.to_ascii_uppercase().as_str() {
            "CMD" => Ok(Self::Cmd(command_of(rest))),
            "ENTRYPOINT" => Ok(Self::Entrypoint(command_of(rest))),
            "ENV" => pairs_of(rest).map(Self::Env).ok_or_else(|| bad("reads ENV NAME=VALUE …")),
            "LABEL" => pairs_of(rest).map(Self::Label).ok_or_else(|| bad("reads LABEL NAME=VALUE …")),
            "EXPOSE" => {
                ports_of(&some(words()?)?).map(Self::Expose).ok_or_else(|| bad("reads EXPOSE PORT[/tcp|/udp|/sctp] …"))
            }
            "VOLUME" => match serde_json::from_str(rest) {
                Ok(list) => some(list).map(Self::Volume),
                Err(_) => some(words()?).map(Self::Volume),
            },
            "USER" => one().map(Self::User),
            "WORKDIR" => one().map(Self::WorkingDir),
            "STOPSIGNAL" => one().map(Self::StopSignal),
            _ => Err(bad(
                "not an instruction that can be applied (CMD ENTRYPOINT ENV EXPOSE LABEL STOPSIGNAL USER VOLUME WORKDIR)",
            )),
        }
    }
}

/// A JSON list of words, or a line for the shell.
fn command_of(rest: &str) -> Vec<String> {
    match serde_json::from_str(rest) {
        Ok(words) => words,
        Err(_) if rest.is_empty() => Vec::new(),
        Err(_) => vec!["/bin/sh".to_owned(), "-c".to_owned(), rest.to_owned()],
    }
}

/// `NAME=VALUE …`, or the old form `NAME the rest`.
fn pairs_of(rest: &str) -> Option<Vec<(String, String)>> {
    let (first, old_value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    if first.is_empty() {
        return None;
    }
    if !first.contains('=') {
        return (!old_value.is_empty()).then(|| vec![(first.to_owned(), old_value.trim().to_owned())]);
    }
    let pair = |word: String| {
        let (name, value) = word.split_once('=')?;
        (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    words_of(rest)?.into_iter().map(pair).collect()
}

fn ports_of(words: &[String]) -> Option<Vec<String>> {
    let port = |word: &String| {
        let (number, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
        let numbers = number.split_once('-').map_or(vec![number], |(from, to)| vec![from, to]);
        let valid =
            numbers.iter().all(|number| number.parse::<u16>().is_ok()) && matches!(protocol, "tcp" | "udp" | "sctp");
        valid.then(|| format!("{number}/{protocol}"))
    };
    words.iter().map(port).collect()
}

/// Splits at white space outside quotation marks; a backslash takes the next character as it is.
fn words_of(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), c) if open == c => quote = None,
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(characters.next()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions() {
        let strings = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        let table = [
            (r#"CMD ["a","b c"]"#, Change::Cmd(strings(&["a", "b c"]))),
            ("cmd a b", Change::Cmd(strings(&["/bin/sh", "-c", "a b"]))),
            ("ENTRYPOINT []", Change::Entrypoint(vec![])),
            (r#"ENV A=1 B="2 3" C=4\ 5"#, Change::Env(vec![pair("A", "1"), pair("B", "2 3"), pair("C", "4 5")])),
            ("ENV A the rest", Change::Env(vec![pair("A", "the rest")])),
            ("LABEL a.b=''", Change::Label(vec![pair("a.b", "")])),
            ("EXPOSE 80 53/udp", Change::Expose(strings(&["80/tcp", "53/udp"]))),
            (r#"VOLUME ["/a"]"#, Change::Volume(strings(&["/a"]))),
            ("USER me:us", Change::User("me:us".to_owned())),
            ("STOPSIGNAL SIGTERM", Change::StopSignal("SIGTERM".to_owned())),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<Change>().expect(text), expected, "{text}");
        }
        for bad in ["", "RUN x", "ENV", "ENV A", "ENV A=\"", "EXPOSE x", "EXPOSE", "USER", "ENV =x"] {
            assert!(bad.parse::<Change>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn applied() {
        let Value::Object(mut process) = json!({"Env": ["PATH=/bin", "A=0"], "Labels": null, "WorkingDir": "/srv"})
        else {
            unreachable!()
        };
        for text in ["ENV A=1 B=2", "LABEL x=y", "WORKDIR sub", "EXPOSE 80"] {
            text.parse::<Change>().expect(text).apply(&mut process);
        }
        let expected = json!({"Env": ["PATH=/bin", "A=1", "B=2"], "Labels": {"x": "y"}, "WorkingDir": "/srv/sub",
            "ExposedPorts": {"80/tcp": {}}});
        assert_eq!(Value::Object(process), expected);
    }
}
