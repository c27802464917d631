//! `--filter KEY=VALUE`, as in docker and podman: filters with one key are alternatives; filters with different keys
//! must all match, and so must all labels.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::{Result, bail};
use serde_json::Value;
use stratafs::image::time::Timestamp;

/// One filter.
#[derive(Clone, Debug)]
pub struct Filter {
    pub key: String,
    pub value: String,
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("a filter reads KEY=VALUE")?;
        Ok(Self { key: key.to_ascii_lowercase(), value: value.to_owned() })
    }
}

/// Returns whether all filters match. `holds` decides about one key and value.
///
/// # Errors
/// When a key is not in `keys`, or a value is malformed.
pub fn all_hold(filters: &[Filter], keys: &[&str], holds: impl Fn(&str, &str) -> Result<bool>) -> Result<bool> {
    let mut alternatives: BTreeMap<(&str, usize), bool> = BTreeMap::new();
    for (number, Filter { key, value }) in filters.iter().enumerate() {
        if !keys.contains(&key.as_str()) {
            bail!("--filter {key}={value}: there is no such filter; there are {}", keys.join(" "));
        }
        // Each label is a filter of its own.
        let group = if key == "label" { number } else { 0 };
        *alternatives.entry((key, group)).or_insert(false) |= holds(key, value)?;
    }
    Ok(alternatives.values().all(|holds| *holds))
}

/// `KEY` or `KEY=VALUE`.
pub fn has_label(labels: &Value, wanted: &str) -> bool {
    let (key, value) = wanted.split_once('=').map_or((wanted, None), |(key, value)| (key, Some(value)));
    let found = labels.get(key);
    found.is_some_and(|found| value.is_none_or(|value| found.as_str() == Some(value)))
}

/// The boolean value of a filter.
pub fn truth(key: &str, value: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "t" => Ok(true),
        "false" | "0" | "f" => Ok(false),
        _ => bail!("--filter {key}={value}: is neither true nor false"),
    }
}

/// A time: RFC 3339, a date, seconds since 1970, or a duration before now (`24h`, `10m30s`).
pub fn moment(key: &str, value: &str) -> Result<Timestamp> {
    let day = || Timestamp::parse(&format!("{value}T00:00:00Z")).or_else(|| Timestamp::parse(&format!("{value}Z")));
    if let Some(time) = Timestamp::parse(value).or_else(day) {
        return Ok(time);
    }
    if let Some(seconds) =
        value.parse::<i64>().ok().or_else(|| value.split_once('.').and_then(|(whole, _)| whole.parse().ok()))
    {
        return Ok(Timestamp::at(seconds));
    }
    match duration(value) {
        Some(seconds) => Ok(Timestamp::now().earlier(seconds)),
        None => bail!("--filter {key}={value}: is no time; write 24h, 10m, or 2024-01-31T12:00:00Z"),
    }
}

/// Go's durations, in whole seconds.
fn duration(text: &str) -> Option<i64> {
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit_end = rest[end..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| end + at);
        seconds += number
            * match &rest[end..unit_end] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    (!text.is_empty()).then_some(seconds as i64)
}

/// A shell pattern with `*` and `?`. `*` does not match `/`.
pub fn matches_pattern(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            let end = text.iter().position(|&byte| byte == b'/').unwrap_or(text.len());
            (0..=end).any(|skipped| matches_pattern(rest, &text[skipped..]))
        }
        (Some((b'?', rest)), Some((_, text))) => matches_pattern(rest, text),
        (Some((wanted, rest)), Some((found, text))) => wanted == found && matches_pattern(rest, text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_a_key_are_alternatives() {
        let filters = |list: &[&str]| list.iter().map(|text| text.parse().expect(text)).collect::<Vec<Filter>>();
        let holds = |key: &str, value: &str| Ok(matches!((key, value), ("a", "1") | ("b", "2") | ("label", "x")));
        let keys = ["a", "b", "label"];
        for (list, expected) in [
            (&[][..], true),
            (&["a=1"], true),
            (&["a=7", "a=1"], true),
            (&["a=1", "b=1"], false),
            (&["a=1", "b=2"], true),
            (&["label=x", "label=y"], false),
        ] {
            assert_eq!(all_hold(&filters(list), &keys, holds).expect("known keys"), expected, "{list:?}");
        }
        assert!(all_hold(&filters(&["c=1"]), &keys, holds).is_err());
        assert!("nothing".parse::<Filter>().is_err());
    }

    #[test]
    fn durations_and_patterns() {
        for (text, seconds) in [
            ("24h", Some(86_400)),
            ("1h30m", Some(5400)),
            ("90s", Some(90)),
            ("2d", Some(172_800)),
            ("", None),
            ("h", None),
            ("3x", None),
        ] {
            assert_eq!(duration(text), seconds, "{text}");
        }
        for (pattern, text, matches) in [
            ("deb*", "debian", true),
            ("deb*", "a/debian", false),
            ("*:latest", "busybox:latest", true),
            ("*", "a/b", false),
            ("*/b", "a/b", true),
            ("b?sybox", "busybox", true),
            ("busybox", "busybox2", false),
        ] {
            assert_eq!(matches_pattern(pattern.as_bytes(), text.as_bytes()), matches, "{pattern} {text}");
        }
        assert!(
            moment("until", "24h").is_ok() && moment("until", "2024-01-31").is_ok() && moment("until", "x").is_err()
        );
    }
}
