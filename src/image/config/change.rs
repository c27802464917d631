//! `--change`: instructions of a Dockerfile that are applied to a configuration. Syntax: docker's "Dockerfile reference". docker
//! accepts the same instructions in `commit --change` and `import --change`, and applies them as a build would.
//!
//! podman (`podman commit --change`, seen with 4.3) differs: it replaces no variables, keeps `CMD` when `ENTRYPOINT`
//! changes, takes one pair in `ENV` and one port in `EXPOSE`, refuses ranges of ports, keeps a relative `WORKDIR` as it
//! is, writes `STOPSIGNAL` as a number, and drops `ONBUILD` from OCI images.

use std::str::FromStr;

use serde_json::{Map, Value, json};

use super::signal;
use super::words::{Env, expand, expand_words, split};
use crate::image::{ImageError, Result};

/// Instructions, one on each line. Variables are replaced when the instructions are applied, by the configuration's values at
/// that time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigChange {
    /// A verb in upper case, and the rest of the line.
    instructions: Vec<(Verb, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Cmd,
    Entrypoint,
    Env,
    Expose,
    Label,
    OnBuild,
    StopSignal,
    User,
    Volume,
    WorkingDir,
}

const VERBS: [(&str, Verb); 10] = [
    ("CMD", Verb::Cmd),
    ("ENTRYPOINT", Verb::Entrypoint),
    ("ENV", Verb::Env),
    ("EXPOSE", Verb::Expose),
    ("LABEL", Verb::Label),
    ("ONBUILD", Verb::OnBuild),
    ("STOPSIGNAL", Verb::StopSignal),
    ("USER", Verb::User),
    ("VOLUME", Verb::Volume),
    ("WORKDIR", Verb::WorkingDir),
];

impl FromStr for ConfigChange {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |reason: String| ImageError::malformed(text, reason);
        // A backslash at the end of a line continues it in the next.
        let joined = text.replace("\\\r\n", "").replace("\\\n", "");
        let mut instructions = Vec::new();
        for line in joined.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (verb, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let known = VERBS.iter().find(|(name, _)| name.eq_ignore_ascii_case(verb));
            let (_, verb) = known.ok_or_else(|| {
                let names = VERBS.map(|(name, _)| name).join(" ");
                bad(format!("not an instruction that can be applied ({names})"))
            })?;
            instructions.push((*verb, rest.trim().to_owned()));
        }
        if instructions.is_empty() {
            return Err(bad("an instruction is missing".to_owned()));
        }
        let change = Self { instructions };
        // Errors that do not depend on variables are reported at once.
        let mut trial = Map::new();
        let unknown = |_: &str| Some("1".to_owned());
        for (verb, rest) in &change.instructions {
            apply(*verb, rest, &mut trial, &unknown).map_err(bad)?;
        }
        Ok(change)
    }
}

impl ConfigChange {
    /// Applies changes to the object `config` of an image's configuration.
    ///
    /// # Errors
    /// When an instruction is malformed with the variables that the configuration has.
    pub(super) fn apply_all(changes: &[Self], process: &mut Map<String, Value>) -> Result<()> {
        let mut has_command = false;
        for (verb, rest) in changes.iter().flat_map(|change| &change.instructions) {
            // A new entry point does not get the old one's arguments, unless the same change sets them.
            if *verb == Verb::Entrypoint && !has_command {
                process.remove("Cmd");
            }
            has_command |= *verb == Verb::Cmd;
            // All assignments of one instruction see the values before it.
            let list = process.get("Env").cloned();
            let env = |name: &str| value_of(list.as_ref()?, name);
            apply(*verb, rest, process, &env).map_err(|reason| ImageError::malformed(rest, reason))?;
        }
        Ok(())
    }
}

fn value_of(list: &Value, name: &str) -> Option<String> {
    let lines = list.as_array()?.iter().rev().filter_map(Value::as_str);
    lines.filter_map(|line| line.split_once('=')).find(|(known, _)| *known == name).map(|(_, value)| value.to_owned())
}

fn apply(verb: Verb, rest: &str, process: &mut Map<String, Value>, env: &Env<'_>) -> Result<(), String> {
    let missing = || "an argument is missing".to_owned();
    let one = || if rest.is_empty() { Err(missing()) } else { expand(rest, env) };
    match verb {
        Verb::Cmd => set(process, "Cmd", json!(command_of(rest, process))),
        Verb::Entrypoint => set(process, "Entrypoint", json!(command_of(rest, process))),
        Verb::Env => pairs_of(rest, env, "ENV")?.iter().for_each(|(name, value)| set_env(process, name, value)),
        Verb::Label => {
            let pairs = pairs_of(rest, env, "LABEL")?;
            pairs.iter().for_each(|(name, value)| insert(process, "Labels", name, json!(value)));
        }
        Verb::Expose => {
            let words = Some(expand_words(rest, env)?).filter(|words| !words.is_empty()).ok_or_else(missing)?;
            for port in ports_of(&words).ok_or("reads EXPOSE PORT[-PORT][/tcp|/udp|/sctp] …")? {
                insert(process, "ExposedPorts", &port, json!({}));
            }
        }
        Verb::Volume => {
            let paths = match list_of(rest) {
                Some(list) => list,
                None => split(rest),
            };
            let paths = paths.iter().map(|path| expand(path, env)).collect::<Result<Vec<_>, _>>()?;
            if paths.is_empty() || paths.iter().any(String::is_empty) {
                return Err(missing());
            }
            paths.iter().for_each(|path| insert(process, "Volumes", path, json!({})));
        }
        Verb::OnBuild => {
            let mut list = process.get("OnBuild").and_then(Value::as_array).cloned().unwrap_or_default();
            list.push(json!(if rest.is_empty() { return Err(missing()) } else { rest }));
            set(process, "OnBuild", json!(list));
        }
        Verb::User => set(process, "User", json!(one()?)),
        Verb::StopSignal => {
            let name = one()?;
            signal::number(&name).ok_or_else(|| format!("{name}: not a signal"))?;
            set(process, "StopSignal", json!(name));
        }
        Verb::WorkingDir => {
            let present = process.get("WorkingDir").and_then(Value::as_str).unwrap_or("/");
            let joined = super::absolute(&one()?, present);
            set(process, "WorkingDir", json!(joined));
        }
    }
    Ok(())
}

fn set(process: &mut Map<String, Value>, key: &str, value: Value) {
    process.insert(key.to_owned(), value);
}

/// Sets `name` in the object `key`; makes the object if it is missing.
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
    let names = |item: &Value| item.as_str().and_then(|item| item.split('=').next()).is_some_and(|n| n == name);
    match list.iter_mut().find(|item| names(item)) {
        Some(present) => *present = assignment,
        None => list.push(assignment),
    }
}

/// A JSON list of words.
fn list_of(rest: &str) -> Option<Vec<String>> {
    serde_json::from_str(rest).ok()
}

/// A JSON list of words, or a command line for the shell, which the image may have chosen.
fn command_of(rest: &str, process: &Map<String, Value>) -> Vec<String> {
    if let Some(words) = list_of(rest) {
        return words;
    }
    if rest.is_empty() {
        return Vec::new();
    }
    let chosen = process.get("Shell").and_then(|shell| serde_json::from_value::<Vec<String>>(shell.clone()).ok());
    let mut words =
        chosen.filter(|shell| !shell.is_empty()).unwrap_or_else(|| ["/bin/sh", "-c"].map(String::from).into());
    words.push(rest.to_owned());
    words
}

/// `NAME=VALUE …`, or the old form `NAME the rest`.
fn pairs_of(rest: &str, env: &Env<'_>, verb: &str) -> Result<Vec<(String, String)>, String> {
    let form = || format!("reads {verb} NAME=VALUE …");
    let words = split(rest);
    let first = words.first().ok_or_else(form)?;
    if !first.contains('=') {
        let (name, value) = rest.split_once(char::is_whitespace).ok_or_else(form)?;
        return Ok(vec![(expand(name, env)?, expand(value.trim(), env)?)]);
    }
    let pair = |word: &String| {
        let (name, value) = word.split_once('=').ok_or_else(form)?;
        let (name, value) = (expand(name, env)?, expand(value, env)?);
        if name.is_empty() { Err(form()) } else { Ok((name, value)) }
    };
    words.iter().map(pair).collect()
}

/// Ranges are expanded, as docker does.
fn ports_of(words: &[String]) -> Option<Vec<String>> {
    let mut ports = Vec::new();
    for word in words {
        let (range, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
        let protocol = protocol.to_ascii_lowercase();
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let (from, to): (u16, u16) = (from.parse().ok()?, to.parse().ok()?);
        if from > to || !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
            return None;
        }
        ports.extend((from..=to).map(|port| format!("{port}/{protocol}")));
    }
    Some(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies some changes to a configuration.
    fn changed(from: Value, changes: &[&str]) -> Value {
        let Value::Object(mut process) = from else { unreachable!() };
        let changes: Vec<ConfigChange> = changes.iter().map(|text| text.parse().expect(text)).collect();
        ConfigChange::apply_all(&changes, &mut process).expect("apply");
        Value::Object(process)
    }

    #[test]
    fn instructions() {
        let base = json!({"Env": ["PATH=/bin", "A=0", "N=80 81"], "WorkingDir": "/srv", "Cmd": ["old"]});
        let table = [
            (r#"CMD ["a","b c"]"#, "Cmd", json!(["a", "b c"])),
            ("cmd a $A", "Cmd", json!(["/bin/sh", "-c", "a $A"])),
            ("CMD []", "Cmd", json!([])),
            ("ENTRYPOINT []", "Cmd", Value::Null),
            (r#"ENTRYPOINT ["x"]"#, "Cmd", Value::Null),
            ("CMD new\nENTRYPOINT [\"x\"]", "Cmd", json!(["/bin/sh", "-c", "new"])),
            ("ENV PATH=/opt/x:$PATH", "Env", json!(["PATH=/opt/x:/bin", "A=0", "N=80 81"])),
            (
                r#"ENV A=1 B="2 $A" C=4\ 5 D='$A'"#,
                "Env",
                json!(["PATH=/bin", "A=1", "N=80 81", "B=2 0", "C=4 5", "D=$A"]),
            ),
            ("ENV A the ${A} rest", "Env", json!(["PATH=/bin", "A=the 0 rest", "N=80 81"])),
            ("ENV B=${A:-x}${X:-y}${A:+z}\\\n C=d", "Env", json!(["PATH=/bin", "A=0", "N=80 81", "B=0yz", "C=d"])),
            ("LABEL a.b='' \"c d\"=$A", "Labels", json!({"a.b": "", "c d": "0"})),
            ("LABEL one=1 \\\n  two=2", "Labels", json!({"one": "1", "two": "2"})),
            (
                "EXPOSE 80 53/UDP 90-92",
                "ExposedPorts",
                json!({"80/tcp": {}, "53/udp": {}, "90/tcp": {}, "91/tcp": {}, "92/tcp": {}}),
            ),
            ("EXPOSE $N", "ExposedPorts", json!({"80/tcp": {}, "81/tcp": {}})),
            (r#"VOLUME ["/a b","/$A"]"#, "Volumes", json!({"/a b": {}, "/0": {}})),
            ("VOLUME /x${A} /y", "Volumes", json!({"/x0": {}, "/y": {}})),
            ("USER me:$A", "User", json!("me:0")),
            ("WORKDIR sub/../other//$A", "WorkingDir", json!("/srv/other/0")),
            ("WORKDIR /a/b/..", "WorkingDir", json!("/a")),
            ("WORKDIR a\nWORKDIR b", "WorkingDir", json!("/srv/a/b")),
            ("STOPSIGNAL SIGRTMIN+3", "StopSignal", json!("SIGRTMIN+3")),
            ("ONBUILD RUN x", "OnBuild", json!(["RUN x"])),
            ("# comment\nUSER x", "User", json!("x")),
        ];
        for (text, field, expected) in table {
            assert_eq!(changed(base.clone(), &[text])[field], expected, "{text}");
        }
        let bad = [
            "",
            "RUN x",
            "ENV",
            "ENV A",
            "ENV A=\"",
            "EXPOSE x",
            "EXPOSE",
            "EXPOSE 9-8",
            "USER",
            "ENV =x",
            "VOLUME",
            "STOPSIGNAL NONE",
            "ENV A=${",
            "WORKDIR",
            "LABEL x=1 y",
        ];
        for bad in bad {
            assert!(bad.parse::<ConfigChange>().is_err(), "{bad:?}");
        }
        let later: ConfigChange = "EXPOSE $A".parse().expect("its variable may be a port");
        assert!(ConfigChange::apply_all(&[later], &mut Map::new()).is_err());
    }

    #[test]
    fn several_changes_see_each_other() {
        let from = json!({"Env": ["A=0"], "Labels": null});
        let to = changed(from, &["ENV A=1", "ENV B=$A", "LABEL x=$B", "ENTRYPOINT [\"e\"]", "CMD [\"c\"]"]);
        let expected = json!({"Env": ["A=1", "B=1"], "Labels": {"x": "1"}, "Entrypoint": ["e"], "Cmd": ["c"]});
        assert_eq!(to, expected);
    }

    #[test]
    fn a_shell_that_the_image_chose() {
        let to = changed(json!({"Shell": ["/bin/bash", "-ec"]}), &["CMD a b"]);
        assert_eq!(to["Cmd"], json!(["/bin/bash", "-ec", "a b"]));
    }
}
