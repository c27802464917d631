//! Functions of templates: Go's own (`and or not len index slice print printf println eq ne lt le gt ge`) and docker's
//! (`json split join title lower upper pad truncate`).

use std::cmp::Ordering;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::eval::{Given, Scope, plain};

/// Widest padding.
const WIDTH_LIMIT: usize = 10_000;

pub fn call(scope: &Scope<'_>, name: &str, arguments: Vec<Given>) -> Result<Given> {
    let text = |given: &Given| scope.text(given);
    let is_true = |given: &Given| truth(given);
    match (name, arguments.as_slice()) {
        ("json", [given]) => Ok(Given::Text(json(given)?)),
        ("lower", [given]) => Ok(Given::Text(text(given).to_lowercase())),
        ("upper", [given]) => Ok(Given::Text(text(given).to_uppercase())),
        ("title", [given]) => Ok(Given::Text(title(&text(given)))),
        ("split", [given, separator]) => {
            let parts = raw(given).split(&text(separator)).map(Value::from).collect();
            Ok(Given::Data(Value::Array(parts)))
        }
        ("join", [given, separator]) => {
            let parts: Vec<String> = list(given)?.iter().map(|part| text(&Given::Data(part.clone()))).collect();
            Ok(Given::Text(parts.join(&text(separator))))
        }
        ("truncate", [given, width]) => Ok(Given::Text(text(given).chars().take(size(width)?).collect())),
        ("pad", [given, before, after]) => {
            let (before, after) = (size(before)?.min(WIDTH_LIMIT), size(after)?.min(WIDTH_LIMIT));
            Ok(Given::Text(format!("{}{}{}", " ".repeat(before), text(given), " ".repeat(after))))
        }
        ("len", [given]) => Ok(Given::Data(length(given)?.into())),
        ("index", [given, keys @ ..]) => keys.iter().try_fold(given.clone(), |given, key| element(&given, key)),
        ("slice", [given, bounds @ ..]) => slice(given, bounds),
        ("print", all) => Ok(Given::Text(print(scope, all))),
        ("println", all) => {
            let words: Vec<String> = all.iter().map(text).collect();
            Ok(Given::Text(format!("{}\n", words.join(" "))))
        }
        ("printf", [format, rest @ ..]) => Ok(Given::Text(printf(scope, &text(format), rest)?)),
        ("not", [given]) => Ok(Given::Data((!is_true(given)).into())),
        ("and", [_, ..]) => Ok(chosen(arguments, |given| !is_true(given))),
        ("or", [_, ..]) => Ok(chosen(arguments, is_true)),
        ("eq", [first, others @ ..]) if !others.is_empty() => {
            Ok(Given::Data(others.iter().any(|other| raw(first) == raw(other)).into()))
        }
        ("ne", [one, other]) => Ok(Given::Data((raw(one) != raw(other)).into())),
        ("lt" | "le" | "gt" | "ge", [one, other]) => {
            let order = order(one, other);
            let is = match name {
                "lt" => order == Ordering::Less,
                "le" => order != Ordering::Greater,
                "gt" => order == Ordering::Greater,
                _ => order != Ordering::Less,
            };
            Ok(Given::Data(is.into()))
        }
        (
            "json" | "lower" | "upper" | "title" | "split" | "join" | "truncate" | "pad" | "len" | "index" | "slice"
            | "printf" | "not" | "and" | "or" | "eq" | "ne" | "lt" | "le" | "gt" | "ge",
            _,
        ) => bail!("wrong number of arguments for {name}"),
        _ => bail!("no function {name}"),
    }
}

/// The value of a label; empty if there is none. Labels are a map, or docker's text `a=b,c=d`.
pub fn label(labels: &Given, key: &str) -> Result<Given> {
    Ok(match labels {
        Given::Data(Value::Object(map)) => map.get(key).cloned().map_or(Given::Text(String::new()), Given::Data),
        Given::Data(Value::String(text)) => {
            let found = text.split(',').filter_map(|label| label.split_once('=')).find(|(name, _)| *name == key);
            found.map_or(Given::Text(String::new()), |(_, value)| Given::Data(value.into()))
        }
        _ => Given::Text(String::new()),
    })
}

fn truth(given: &Given) -> bool {
    match given {
        Given::Nothing | Given::Data(Value::Null) => false,
        Given::Text(text) => !text.is_empty(),
        Given::Data(Value::Bool(is)) => *is,
        Given::Data(Value::Number(number)) => number.as_f64() != Some(0.0),
        Given::Data(Value::String(text)) => !text.is_empty(),
        Given::Data(Value::Array(list)) => !list.is_empty(),
        Given::Data(Value::Object(map)) => !map.is_empty(),
    }
}

/// The first argument for which `decides` is true, or else the last one.
fn chosen(arguments: Vec<Given>, decides: impl Fn(&Given) -> bool) -> Given {
    let last = arguments.len() - 1;
    arguments
        .into_iter()
        .enumerate()
        .find(|(at, given)| *at == last || decides(given))
        .map_or(Given::Nothing, |(_, given)| given)
}

fn raw(given: &Given) -> String {
    match given {
        Given::Nothing => String::new(),
        Given::Text(text) => text.clone(),
        Given::Data(value) => plain(value),
    }
}

fn json(given: &Given) -> Result<String> {
    let document = match given {
        Given::Nothing => "null".to_owned(),
        Given::Text(text) => serde_json::to_string(text)?,
        Given::Data(value) => serde_json::to_string(value)?,
    };
    // The same document for every reader.
    Ok(stratafs::text::json(&document).into_owned())
}

fn title(text: &str) -> String {
    let mut begins = true;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match begins {
            true => out.extend(c.to_uppercase()),
            false => out.push(c),
        }
        begins = !c.is_alphanumeric();
    }
    out
}

fn list(given: &Given) -> Result<Vec<Value>> {
    match given {
        Given::Data(Value::Array(list)) => Ok(list.clone()),
        Given::Nothing | Given::Data(Value::Null) => Ok(Vec::new()),
        other => bail!("{:?} is no list", raw(other)),
    }
}

fn size(given: &Given) -> Result<usize> {
    raw(given).parse().ok().with_context(|| format!("{:?} is no number", raw(given)))
}

fn length(given: &Given) -> Result<usize> {
    match given {
        Given::Nothing | Given::Data(Value::Null) => Ok(0),
        Given::Text(text) => Ok(text.len()),
        Given::Data(Value::String(text)) => Ok(text.len()),
        Given::Data(Value::Array(list)) => Ok(list.len()),
        Given::Data(Value::Object(map)) => Ok(map.len()),
        Given::Data(other) => bail!("len of {}", plain(other)),
    }
}

fn element(given: &Given, key: &Given) -> Result<Given> {
    match given {
        Given::Data(Value::Array(list)) => {
            let at = size(key)?;
            let found = list.get(at).cloned().map(Given::Data);
            found.with_context(|| format!("index {at} is beyond the {} elements of the list", list.len()))
        }
        // The zero value of a map of strings.
        Given::Data(Value::Object(map)) => {
            Ok(map.get(&raw(key)).cloned().map_or(Given::Text(String::new()), Given::Data))
        }
        Given::Nothing | Given::Data(Value::Null) => Ok(Given::Text(String::new())),
        other => bail!("{:?} has no elements", raw(other)),
    }
}

fn slice(given: &Given, bounds: &[Given]) -> Result<Given> {
    let bounds = bounds.iter().map(size).collect::<Result<Vec<_>>>()?;
    let (length, from) = (length(given)?, bounds.first().copied().unwrap_or(0));
    let to = bounds.get(1).copied().unwrap_or(length);
    let beyond = || format!("slice {from}:{to} is beyond {length}");
    match given {
        Given::Data(Value::Array(list)) => Ok(Given::Data(list.get(from..to).with_context(beyond)?.to_vec().into())),
        Given::Data(Value::String(text)) => Ok(Given::Data(text.get(from..to).with_context(beyond)?.into())),
        Given::Text(text) => Ok(Given::Text(text.get(from..to).with_context(beyond)?.to_owned())),
        other => bail!("{:?} cannot be sliced", raw(other)),
    }
}

fn order(one: &Given, other: &Given) -> Ordering {
    let (one, other) = (raw(one), raw(other));
    match (one.parse::<f64>(), other.parse::<f64>()) {
        (Ok(one), Ok(other)) => one.partial_cmp(&other).unwrap_or(Ordering::Equal),
        _ => one.cmp(&other),
    }
}

/// A space is put between two operands that are not strings.
fn print(scope: &Scope<'_>, all: &[Given]) -> String {
    let is_string = |given: &Given| matches!(given, Given::Text(_) | Given::Data(Value::String(_)));
    let mut out = String::new();
    for (at, given) in all.iter().enumerate() {
        if at > 0 && !is_string(given) && !is_string(&all[at - 1]) {
            out.push(' ');
        }
        out.push_str(&scope.text(given));
    }
    out
}

/// `%s %v %d %q %f %t %x %%` with flags `-` and `0`, width and precision.
fn printf(scope: &Scope<'_>, format: &str, arguments: &[Given]) -> Result<String> {
    let mut arguments = arguments.iter();
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut flags = String::new();
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '+' | '0'..='9' | '.' | '#' | ' ')) {
            flags.push(flag);
        }
        let verb = chars.next().context("printf: % at the end")?;
        if verb == '%' {
            out.push('%');
            continue;
        }
        let given = arguments.next().with_context(|| format!("printf: nothing for %{verb}"))?;
        let left = flags.contains('-');
        let (width, precision) = flags.trim_start_matches(['-', '+', '#', ' ']).split_once('.').map_or_else(
            || (flags.trim_start_matches(['-', '+', '#', ' ']).to_owned(), None),
            |(width, precision)| (width.to_owned(), precision.parse::<usize>().ok().map(|digits| digits.min(100))),
        );
        let zeros = width.starts_with('0');
        let width = width.parse::<usize>().unwrap_or(0).min(WIDTH_LIMIT);
        let number = || raw(given).parse::<f64>().unwrap_or(0.0);
        let word = match (verb, precision) {
            ('q', _) => serde_json::to_string(&scope.text(given))?,
            ('f' | 'g' | 'e', digits) => format!("{:.*}", digits.unwrap_or(6), number()),
            ('x', _) => raw(given).parse::<i64>().map_or_else(|_| scope.text(given), |number| format!("{number:x}")),
            ('s' | 'v', Some(digits)) => scope.text(given).chars().take(digits).collect(),
            ('s' | 'v' | 'd' | 't' | 'c', _) => scope.text(given),
            (verb, _) => bail!("printf: %{verb} is not supported"),
        };
        let fill = width.saturating_sub(stratafs::text::width(&word));
        match (left, zeros) {
            (true, _) => out.push_str(&format!("{word}{}", " ".repeat(fill))),
            (false, true) => out.push_str(&format!("{}{word}", "0".repeat(fill))),
            (false, false) => out.push_str(&format!("{}{word}", " ".repeat(fill))),
        }
    }
    Ok(out)
}
