//! Evaluates the nodes of a template for a value.

use anyhow::{Result, bail};
use serde_json::Value;
use stratafs::text::shown;

use super::functions;
use super::parse::{Node, Operand, Pipe};

/// Maximum size of the output in bytes: nested `range`s must not fill the memory.
const LENGTH_LIMIT: usize = 256 << 20;

/// The result of an expression.
#[derive(Clone, Debug)]
pub enum Given {
    /// From the rendered value, so it may contain anything.
    Data(Value),
    /// From the template, or already escaped.
    Text(String),
    /// The field or element does not exist: `<no value>`.
    Nothing,
}

impl Given {
    /// Go's truth: not false, 0, nil or empty.
    fn is_true(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Text(text) => !text.is_empty(),
            Self::Data(Value::Null) => false,
            Self::Data(Value::Bool(is)) => *is,
            Self::Data(Value::Number(number)) => number.as_f64() != Some(0.0),
            Self::Data(Value::String(text)) => !text.is_empty(),
            Self::Data(Value::Array(list)) => !list.is_empty(),
            Self::Data(Value::Object(map)) => !map.is_empty(),
        }
    }
}

/// The state of one rendering.
pub struct Scope<'v> {
    root: &'v Value,
    variables: Vec<(String, Given)>,
    /// True if text from the value is escaped.
    pub escape: bool,
}

pub fn render(nodes: &[Node], value: &Value, escape: bool) -> Result<String> {
    let mut scope = Scope { root: value, variables: Vec::new(), escape };
    let mut out = String::new();
    scope.nodes(nodes, &Given::Data(value.clone()), &mut out)?;
    Ok(out)
}

impl Scope<'_> {
    /// The text of a result, as Go's `%v` prints it.
    pub fn text(&self, given: &Given) -> String {
        match given {
            Given::Nothing => "<no value>".to_owned(),
            Given::Text(text) => text.clone(),
            Given::Data(value) if self.escape => shown(&plain(value)).into_owned(),
            Given::Data(value) => plain(value),
        }
    }

    fn nodes(&mut self, nodes: &[Node], dot: &Given, out: &mut String) -> Result<()> {
        let outer = self.variables.len();
        for node in nodes {
            self.node(node, dot, out)?;
            if out.len() > LENGTH_LIMIT {
                bail!("the template makes too much text");
            }
        }
        self.variables.truncate(outer);
        Ok(())
    }

    fn node(&mut self, node: &Node, dot: &Given, out: &mut String) -> Result<()> {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Print(pipe) => {
                let given = self.pipe(pipe, dot)?;
                if pipe.name.is_none() {
                    out.push_str(&self.text(&given));
                }
            }
            Node::If(branches, otherwise) => {
                for (condition, body) in branches {
                    if self.pipe(condition, dot)?.is_true() {
                        return self.nodes(body, dot, out);
                    }
                }
                self.nodes(otherwise, dot, out)?;
            }
            Node::With { over, body, otherwise } => {
                let given = self.pipe(over, dot)?;
                match given.is_true() {
                    true => self.nodes(body, &given, out)?,
                    false => self.nodes(otherwise, dot, out)?,
                }
            }
            Node::Range { names, over, body, otherwise } => {
                let elements = elements(self.pipe(over, dot)?)?;
                if elements.is_empty() {
                    self.nodes(otherwise, dot, out)?;
                }
                for (key, element) in elements {
                    let outer = self.variables.len();
                    match names.as_slice() {
                        [one] => self.variables.push((one.clone(), element.clone())),
                        [first, second] => {
                            self.variables.push((first.clone(), key));
                            self.variables.push((second.clone(), element.clone()));
                        }
                        _ => {}
                    }
                    self.nodes(body, &element, out)?;
                    self.variables.truncate(outer);
                }
            }
        }
        Ok(())
    }

    fn pipe(&mut self, pipe: &Pipe, dot: &Given) -> Result<Given> {
        let mut result = None;
        for command in &pipe.commands {
            result = Some(self.command(command, result, dot)?);
        }
        let result = result.unwrap_or(Given::Nothing);
        if let Some(name) = &pipe.name {
            self.variables.push((name.clone(), result.clone()));
        }
        Ok(result)
    }

    fn command(&mut self, command: &[Operand], piped: Option<Given>, dot: &Given) -> Result<Given> {
        let Some((first, rest)) = command.split_first() else { return Ok(Given::Nothing) };
        let mut arguments = rest.iter().map(|operand| self.operand(operand, dot)).collect::<Result<Vec<_>>>()?;
        arguments.extend(piped);
        match first {
            Operand::Function(name) => functions::call(self, name, arguments),
            _ if arguments.is_empty() => self.operand(first, dot),
            // The only method with an argument in docker.
            Operand::Field(names) if names.last().is_some_and(|name| name == "Label") => {
                let labels: Vec<String> =
                    names.iter().rev().skip(1).rev().cloned().chain(["Labels".to_owned()]).collect();
                let labels = fields(dot.clone(), &labels)?;
                functions::label(&labels, &self.text(&arguments.remove(0)))
            }
            _ => bail!("only functions take arguments"),
        }
    }

    fn operand(&mut self, operand: &Operand, dot: &Given) -> Result<Given> {
        match operand {
            Operand::Field(names) => fields(dot.clone(), names),
            Operand::Variable(name, names) if name == "$" => fields(Given::Data(self.root.clone()), names),
            Operand::Variable(name, names) => match self.variables.iter().rev().find(|(known, _)| known == name) {
                Some((_, given)) => fields(given.clone(), names),
                None => bail!("no variable {name}"),
            },
            Operand::Literal(Value::String(text)) => Ok(Given::Text(text.clone())),
            Operand::Literal(value) => Ok(Given::Data(value.clone())),
            Operand::Function(name) => functions::call(self, name, Vec::new()),
            Operand::Nested(pipe, names) => fields(self.pipe(pipe, dot)?, names),
        }
    }
}

/// Elements of a list or a map with their keys; a number counts up.
fn elements(given: Given) -> Result<Vec<(Given, Given)>> {
    let data = |value: Value| Given::Data(value);
    Ok(match given {
        Given::Nothing | Given::Data(Value::Null) => Vec::new(),
        Given::Data(Value::Array(list)) => {
            list.into_iter().enumerate().map(|(at, element)| (data(at.into()), data(element))).collect()
        }
        Given::Data(Value::Object(map)) => {
            let mut entries: Vec<_> = map.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            entries.into_iter().map(|(key, element)| (data(key.into()), data(element))).collect()
        }
        Given::Data(other) => bail!("range cannot go over {}", plain(&other)),
        Given::Text(text) => bail!("range cannot go over {text:?}"),
    })
}

/// Looks fields up. A field that a document lacks is an error; a key that a map lacks has no value.
fn fields(given: Given, names: &[String]) -> Result<Given> {
    let mut given = given;
    for name in names {
        let value = match given {
            Given::Data(value) => value,
            Given::Nothing => bail!("nothing has no field .{name}"),
            Given::Text(text) => bail!("the text {text:?} has no field .{name}"),
        };
        given = field(&value, name)?;
    }
    Ok(given)
}

fn field(value: &Value, name: &str) -> Result<Given> {
    let Value::Object(map) = value else {
        bail!("{} has no field .{name}", shown(&plain(value)));
    };
    // Go's structures have `ID` where their JSON has `Id`.
    let same = || map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, found)| found);
    if let Some(found) = map.get(name).or_else(same) {
        return Ok(Given::Data(found.clone()));
    }
    let is_document = map.keys().any(|key| key.starts_with(|c: char| c.is_ascii_uppercase()));
    if !is_document {
        return Ok(Given::Nothing);
    }
    let near = map.keys().find(|key| {
        let (key, name) = (key.to_ascii_lowercase(), name.to_ascii_lowercase());
        key.starts_with(&name) || name.starts_with(&key)
    });
    match near {
        Some(near) => bail!("no field .{name}; did you mean .{near}?"),
        None => {
            let mut all: Vec<String> = map.keys().map(|key| format!(".{key}")).collect();
            all.sort();
            bail!("no field .{name}; there are {}", all.join(" "))
        }
    }
}

/// As Go's `%v` prints it.
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Bool(is) => is.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(plain).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut entries: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", plain(value))).collect();
            entries.sort();
            format!("map[{}]", entries.join(" "))
        }
    }
}
