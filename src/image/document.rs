//! Reads the JSON documents of images as moby reads them: Go's `encoding/json` first, then moby's own types. All
//! documents are read here (configuration, manifest, index, `manifest.json`, docker's version 1), so a document always
//! has the same meaning. The result has the shape given by the specification, and is written in this shape.
//!
//! | rule | where it comes from |
//! |---|---|
//! | a byte order mark at the start is skipped | Windows tools write it; podman and docker refuse it |
//! | bytes that are not UTF-8, and half surrogates, become U+FFFD | `encoding/json`, `unquote` |
//! | keys match whatever their case; the last of several wins | `encoding/json`, `foldName` |
//! | null is as absent | `encoding/json`, "The JSON null value unmarshals into an interface, map, pointer, or slice by setting it to nil … Otherwise, no effect" |
//! | one text where a list of words is | moby, `strslice.StrSlice` |
//! | a list where a set is, and the other way round | docker before 1.0 wrote both |
//! | a number, or true, where a text is; a text of digits where a number is | hand-written documents; podman and umoci write none |
//! | a value of any other shape is left out, unless the document is nothing without it | |
//! | a time is RFC 3339 with a year from 0 to 9999; any other, and Go's zero time, is as absent | `time.Time.UnmarshalJSON`, `IsZero` |
//! | unknown keys stay | they are part of a digest |

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use crate::image::time::Timestamp;

/// How a field is read.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Text,
    /// An RFC 3339 time.
    Time,
    /// A non-negative number.
    Size,
    Number,
    Flag,
    /// A list of strings; a single string is a list of one.
    Words,
    /// `NAME=VALUE`; a bare name has an empty value.
    Assignments,
    /// An object of which only the keys matter.
    Set,
    /// An object with string values.
    Texts,
    Object(&'static Shape),
    /// A list of objects. The document is useless without it, so another shape is an error.
    List(&'static Shape),
    /// A list of objects. Anything else counts as an empty list.
    Lines(&'static Shape),
    /// A list; another shape is an error.
    Digests,
}

/// The fields that are read, with the names under which they are written.
pub(crate) type Shape = [(&'static str, Kind)];

/// An image's configuration (moby, `image.Image` and `container.Config`).
pub(crate) const CONFIG: &Shape = &[
    ("created", Kind::Time),
    ("author", Kind::Text),
    ("architecture", Kind::Text),
    ("variant", Kind::Text),
    ("os", Kind::Text),
    ("os.version", Kind::Text),
    ("os.features", Kind::Words),
    ("config", Kind::Object(PROCESS)),
    ("container_config", Kind::Object(PROCESS)),
    ("rootfs", Kind::Object(&[("type", Kind::Text), ("diff_ids", Kind::Digests)])),
    ("history", Kind::Lines(HISTORY)),
];

const HISTORY: &Shape = &[
    ("created", Kind::Time),
    ("author", Kind::Text),
    ("created_by", Kind::Text),
    ("comment", Kind::Text),
    ("empty_layer", Kind::Flag),
];

const PROCESS: &Shape = &[
    ("Hostname", Kind::Text),
    ("Domainname", Kind::Text),
    ("User", Kind::Text),
    ("ExposedPorts", Kind::Set),
    ("Env", Kind::Assignments),
    ("Cmd", Kind::Words),
    ("Entrypoint", Kind::Words),
    (
        "Healthcheck",
        Kind::Object(&[
            ("Test", Kind::Words),
            ("Interval", Kind::Number),
            ("Timeout", Kind::Number),
            ("StartPeriod", Kind::Number),
            ("StartInterval", Kind::Number),
            ("Retries", Kind::Number),
        ]),
    ),
    ("Volumes", Kind::Set),
    ("WorkingDir", Kind::Text),
    ("OnBuild", Kind::Words),
    ("Labels", Kind::Texts),
    ("StopSignal", Kind::Text),
    ("StopTimeout", Kind::Number),
    ("Shell", Kind::Words),
];

/// A part of docker's configuration of version 1 (moby, `image.V1Image`).
pub(crate) const VERSION_1: &Shape = &[
    ("id", Kind::Text),
    ("parent", Kind::Text),
    ("created", Kind::Time),
    ("author", Kind::Text),
    ("comment", Kind::Text),
    ("architecture", Kind::Text),
    ("os", Kind::Text),
    ("throwaway", Kind::Flag),
    ("config", Kind::Object(PROCESS)),
    ("container_config", Kind::Object(PROCESS)),
];

/// An entry of `manifest.json` (moby, `image/tarexport`, `manifestItem`).
pub(crate) const ARCHIVE_ITEM: &Shape = &[("Config", Kind::Text), ("RepoTags", Kind::Words), ("Layers", Kind::Words)];

/// A descriptor.
pub(crate) const DESCRIPTOR: &Shape = &[
    ("mediaType", Kind::Text),
    ("digest", Kind::Text),
    ("size", Kind::Size),
    ("platform", Kind::Object(PLATFORM)),
    ("annotations", Kind::Texts),
];

const PLATFORM: &Shape = &[
    ("architecture", Kind::Text),
    ("os", Kind::Text),
    ("variant", Kind::Text),
    ("os.version", Kind::Text),
    ("os.features", Kind::Words),
];

/// A manifest.
pub(crate) const MANIFEST: &Shape = &[
    ("schemaVersion", Kind::Size),
    ("mediaType", Kind::Text),
    ("config", Kind::Object(DESCRIPTOR)),
    ("layers", Kind::List(DESCRIPTOR)),
    ("annotations", Kind::Texts),
];

/// An index.
pub(crate) const INDEX: &Shape = &[
    ("schemaVersion", Kind::Size),
    ("mediaType", Kind::Text),
    ("manifests", Kind::List(DESCRIPTOR)),
    ("annotations", Kind::Texts),
];

/// Parses a document's bytes.
///
/// # Errors
/// The reason, if it is not JSON.
pub(crate) fn value(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = String::from_utf8_lossy(bytes);
    serde_json::from_str(&text).or_else(|error| match whole_surrogates(&text) {
        Cow::Borrowed(_) => Err(error),
        Cow::Owned(text) => serde_json::from_str(&text),
    })
}

/// Replaces each `\uD8xx` or `\uDCxx` that is only half of a character.
fn whole_surrogates(text: &str) -> Cow<'_, str> {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut out = String::new();
    let (mut at, mut copied) = (0, 0);
    while let Some(found) = text[at..].find('\\') {
        at += found;
        match unit(at) {
            Some(0xd800..=0xdbff) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => at += 12,
            Some(0xd800..=0xdfff) => {
                out.push_str(&text[copied..at]);
                out.push_str("\\ufffd");
                at += 6;
                copied = at;
            }
            // The character after a backslash belongs to the escape, and is always ASCII.
            _ => at = (at + 2).min(text.len()),
        }
        if !text.is_char_boundary(at) {
            return Cow::Borrowed(text);
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// Brings an object into the shape given by the specification. Keys keep their order.
///
/// # Errors
/// A required field has another shape.
pub(crate) fn normal(object: Map<String, Value>, shape: &Shape) -> Result<Map<String, Value>, String> {
    let mut out = Map::new();
    for (key, value) in object {
        let field =
            shape.iter().find(|(name, _)| *name == key).or_else(|| shape.iter().find(|(name, _)| folds(name, &key)));
        let Some((name, kind)) = field else {
            out.insert(key, value);
            continue;
        };
        if let Some(value) = read(value, *kind).map_err(|reason| format!("{name}: {reason}"))? {
            out.insert((*name).to_owned(), value);
        }
    }
    Ok(out)
}

/// The object, if the value is one.
pub(crate) fn object(value: Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(object) => Some(object),
        _ => None,
    }
}

/// Compares without case, by Go's rules: U+017F is an s, U+212A a k.
fn folds(name: &str, key: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    name.chars().map(fold).eq(key.chars().map(fold))
}

fn read(value: Value, kind: Kind) -> Result<Option<Value>, String> {
    if value.is_null() {
        return Ok(None);
    }
    Ok(match kind {
        Kind::Text => text(value).map(Value::String),
        Kind::Time => text(value).filter(|text| is_time(text)).map(Value::String),
        // A size of more than 63 bits is kept: its user reports that it is too large.
        Kind::Size if value.as_u64().is_some() => Some(value),
        Kind::Size => number(&value).filter(|&number| number >= 0).map(|number| json!(number)),
        Kind::Number => number(&value).map(|number| json!(number)),
        Kind::Flag => flag(&value).map(Value::Bool),
        Kind::Words => words(value).map(|words| json!(words)),
        Kind::Assignments => assignments(value).map(|words| json!(words)),
        Kind::Set => set(value).map(Value::Object),
        Kind::Texts => texts(value).map(Value::Object),
        Kind::Object(shape) => match object(value) {
            Some(object) => Some(Value::Object(normal(object, shape)?)),
            None => None,
        },
        Kind::List(shape) => Some(list(value, shape)?),
        Kind::Lines(shape) => match value {
            Value::Array(items) => {
                let line = |item| normal(object(item).unwrap_or_default(), shape).map(Value::Object);
                Some(items.into_iter().map(line).collect::<Result<_, _>>()?)
            }
            _ => None,
        },
        Kind::Digests => match value {
            Value::Array(items) => Some(Value::Array(items)),
            _ => return Err("is not a list".to_owned()),
        },
    })
}

fn list(value: Value, shape: &Shape) -> Result<Value, String> {
    let Value::Array(items) = value else { return Err("is not a list".to_owned()) };
    let item = |item| match item {
        Value::Object(object) => normal(object, shape).map(Value::Object),
        // Null counts as an empty object.
        Value::Null => Ok(Value::Object(Map::new())),
        other => Ok(other),
    };
    items.into_iter().map(item).collect()
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

fn is_time(text: &str) -> bool {
    Timestamp::parse(text).is_some_and(|time| !time.is_zero())
}

fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => {
            let whole = |number: f64| (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
            number.as_i64().or_else(|| whole(number.as_f64()?))
        }
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::String(text) => text.trim().to_ascii_lowercase().parse().ok(),
        _ => None,
    }
}

/// A single string is one word; an empty one is no word.
fn words(value: Value) -> Option<Vec<String>> {
    match value {
        Value::Array(items) => Some(items.into_iter().filter_map(text).collect()),
        Value::Object(_) => None,
        single => text(single).map(|word| if word.is_empty() { Vec::new() } else { vec![word] }),
    }
}

fn assignments(value: Value) -> Option<Vec<String>> {
    let list = match value {
        Value::Object(object) => {
            object.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", text(value)?))).collect()
        }
        other => words(other)?,
    };
    let whole = |line: String| if line.contains('=') { line } else { format!("{line}=") };
    Some(list.into_iter().map(whole).filter(|line| !line.starts_with('=')).collect())
}

fn set(value: Value) -> Option<Map<String, Value>> {
    let member = |(name, value): (String, Value)| (name, if value.is_object() { value } else { json!({}) });
    let named = |(name, _): &(String, Value)| !name.is_empty();
    match value {
        Value::Object(object) => Some(object.into_iter().map(member).filter(named).collect()),
        other => {
            let members = words(other)?.into_iter().map(|name| (name, json!({})));
            Some(members.filter(named).collect())
        }
    }
}

fn texts(value: Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(object) => {
            // In Go, null is the empty string.
            let pair = |(name, value): (String, Value)| match value.is_null() {
                true => Some((name, json!(""))),
                false => text(value).map(|text| (name, json!(text))),
            };
            Some(object.into_iter().filter_map(pair).collect())
        }
        Value::Array(items) => {
            let pair = |line: String| {
                let (name, value) = line.split_once('=').unwrap_or((&line, ""));
                (name.to_owned(), json!(value))
            };
            Some(items.into_iter().filter_map(text).map(pair).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaped(text: &str, shape: &Shape) -> Value {
        let object = object(value(text.as_bytes()).expect(text)).expect(text);
        Value::Object(normal(object, shape).expect(text))
    }

    #[test]
    fn bytes() {
        let table: [(&[u8], Value); 8] = [
            (b"\xef\xbb\xbf{\"a\":1}", json!({"a": 1})),
            (b" {\"a\":1} \r\n\t", json!({"a": 1})),
            (b"{\"a\":\"\xff\"}", json!({"a": "\u{fffd}"})),
            (br#"{"a":"\ud83d\ude00"}"#, json!({"a": "\u{1f600}"})),
            (br#"{"a":"\ud83d x"}"#, json!({"a": "\u{fffd} x"})),
            (br#"{"a":"\ude00\\ud83d"}"#, json!({"a": "\u{fffd}\\ud83d"})),
            (br#"{"a":"\ud83d"}"#, json!({"a": "\u{fffd}"})),
            (br#"{"a":1,"a":2}"#, json!({"a": 2})),
        ];
        for (bytes, expected) in table {
            assert_eq!(value(bytes).expect("json"), expected, "{}", String::from_utf8_lossy(bytes));
        }
        for bad in ["", "{", "{}x", "{'a':1}", "{\"a\":\"\\u12\"}", "{\"a\":\"\\"] {
            assert!(value(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn fields_of_a_configuration() {
        let table = [
            // Keys.
            (r#"{"Config":{"CMD":["a"]}}"#, json!({"config": {"Cmd": ["a"]}})),
            (r#"{"os":"a","OS":"b","oS":null}"#, json!({"os": "b"})),
            ("{\"o\u{17f}\":\"x\"}", json!({"os": "x"})),
            (r#"{"x-Unknown":{"Cmd":"kept"}}"#, json!({"x-Unknown": {"Cmd": "kept"}})),
            // Null, missing, other shapes.
            (r#"{"config":null,"history":null,"rootfs":null}"#, json!({})),
            (r#"{"config":[],"author":{},"os":["x"],"history":{}}"#, json!({})),
            (r#"{"config":{"Cmd":null,"Env":null,"Volumes":null,"Labels":null}}"#, json!({"config": {}})),
            // Words.
            (
                r#"{"config":{"Cmd":"ls -l","Entrypoint":"","OnBuild":"RUN x"}}"#,
                json!({"config": {"Cmd": ["ls -l"], "Entrypoint": [], "OnBuild": ["RUN x"]}}),
            ),
            (r#"{"config":{"Cmd":["a",1,true,null,{},""]}}"#, json!({"config": {"Cmd": ["a", "1", "true", ""]}})),
            (r#"{"config":{"Cmd":{"a":1}}}"#, json!({"config": {}})),
            // Variables.
            (
                r#"{"config":{"Env":["A=1","B","=x","C=","","D=a=b"]}}"#,
                json!({"config": {"Env": ["A=1", "B=", "C=", "D=a=b"]}}),
            ),
            (r#"{"config":{"Env":"A=1"}}"#, json!({"config": {"Env": ["A=1"]}})),
            (r#"{"config":{"Env":{"A":1,"B":"x"}}}"#, json!({"config": {"Env": ["A=1", "B=x"]}})),
            // Sets and labels.
            (
                r#"{"config":{"Volumes":["/a","/b"],"ExposedPorts":"80/tcp"}}"#,
                json!({"config": {"Volumes": {"/a": {}, "/b": {}}, "ExposedPorts": {"80/tcp": {}}}}),
            ),
            (
                r#"{"config":{"Volumes":{"/a":null,"":{}},"ExposedPorts":{}}}"#,
                json!({"config": {"Volumes": {"/a": {}}, "ExposedPorts": {}}}),
            ),
            (
                r#"{"config":{"Labels":{"a":1,"b":null,"c":[],"d":"x"}}}"#,
                json!({"config": {"Labels": {"a": "1", "b": "", "d": "x"}}}),
            ),
            (r#"{"config":{"Labels":["a=1","b"]}}"#, json!({"config": {"Labels": {"a": "1", "b": ""}}})),
            // Texts and numbers.
            (
                r#"{"config":{"User":1000,"StopSignal":15,"StopTimeout":"10","WorkingDir":null}}"#,
                json!({"config": {"User": "1000", "StopSignal": "15", "StopTimeout": 10}}),
            ),
            (
                r#"{"config":{"Healthcheck":{"test":"CMD","Interval":1e9,"Retries":"3"}}}"#,
                json!({"config": {"Healthcheck": {"Test": ["CMD"], "Interval": 1_000_000_000, "Retries": 3}}}),
            ),
            (r#"{"config":{"Healthcheck":"no"}}"#, json!({"config": {}})),
            // Times.
            (r#"{"created":"2024-01-01T00:00:00+02:00"}"#, json!({"created": "2024-01-01T00:00:00+02:00"})),
            (r#"{"created":"0001-01-01T00:00:00Z"}"#, json!({})),
            (r#"{"created":"0000-01-01T00:00:00Z"}"#, json!({"created": "0000-01-01T00:00:00Z"})),
            (r#"{"created":"10000-01-01T00:00:00Z"}"#, json!({})),
            (r#"{"created":"2024-13-01T00:00:00Z"}"#, json!({})),
            (r#"{"created":"yesterday"}"#, json!({})),
            (r#"{"created":1700000000}"#, json!({})),
            (
                r#"{"history":[{"Created_By":"a","EMPTY_LAYER":"true","created":"x"},null,"x"]}"#,
                json!({"history": [{"created_by": "a", "empty_layer": true}, {}, {}]}),
            ),
        ];
        for (text, expected) in table {
            assert_eq!(shaped(text, CONFIG), expected, "{text}");
        }
        for bad in [r#"{"rootfs":{"diff_ids":{}}}"#, r#"{"rootfs":{"diff_ids":"x"}}"#] {
            let object = object(value(bad.as_bytes()).expect(bad)).expect(bad);
            assert!(normal(object, CONFIG).is_err(), "{bad}");
        }
    }

    #[test]
    fn fields_of_manifests() {
        let table = [
            (r#"{"SchemaVersion":"2","Layers":null,"annotations":null}"#, MANIFEST, json!({"schemaVersion": 2})),
            (
                r#"{"config":{"MediaType":null,"Size":"7","annotations":{"a":1}}}"#,
                MANIFEST,
                json!({"config": {"size": 7, "annotations": {"a": "1"}}}),
            ),
            (
                r#"{"manifests":[{"size":1.0,"Platform":{"OS":"linux","Architecture":"amd64"},"urls":["x"]}]}"#,
                INDEX,
                json!({"manifests": [{"size": 1, "platform": {"os": "linux", "architecture": "amd64"}, "urls": ["x"]}]}),
            ),
            (
                r#"{"config":"c.json","repotags":"a:1","Layers":null}"#,
                ARCHIVE_ITEM,
                json!({"Config": "c.json", "RepoTags": ["a:1"]}),
            ),
        ];
        for (text, shape, expected) in table {
            assert_eq!(shaped(text, shape), expected, "{text}");
        }
    }
}
