//! Parses the text of a template into nodes.

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Deepest nesting of actions and parentheses.
const DEPTH_LIMIT: usize = 50;

/// A part of a template.
#[derive(Clone, Debug)]
pub enum Node {
    /// Printed unchanged.
    Text(String),
    /// `{{pipe}}`
    Print(Pipe),
    /// `{{if}}`: conditions with their bodies, tried in order.
    If(Vec<(Pipe, Vec<Node>)>, Vec<Node>),
    /// `{{range}}`
    Range { names: Vec<String>, over: Pipe, body: Vec<Node>, otherwise: Vec<Node> },
    /// `{{with}}`
    With { over: Pipe, body: Vec<Node>, otherwise: Vec<Node> },
}

/// Commands, each of which gets the previous result as its last argument. With `name`, the result goes into that
/// variable instead of the output.
#[derive(Clone, Debug)]
pub struct Pipe {
    pub name: Option<String>,
    pub commands: Vec<Vec<Operand>>,
}

/// One word of a command.
#[derive(Clone, Debug)]
pub enum Operand {
    /// `.A.B`; without names, the dot itself.
    Field(Vec<String>),
    /// `$x.A.B`; the name `$` is the value at the start of rendering.
    Variable(String, Vec<String>),
    Literal(Value),
    Function(String),
    /// `(pipe).A.B`
    Nested(Box<Pipe>, Vec<String>),
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// `.A.B`
    Field(Vec<String>),
    Variable(String, Vec<String>),
    Word(String),
    Literal(Value),
    Open,
    /// `)`, and the fields after it.
    Close(Vec<String>),
    Bar,
    Comma,
    Assign,
}

enum Segment {
    Text(String),
    Action(String),
}

pub fn parse(text: &str) -> Result<Vec<Node>> {
    let mut parser = Parser { segments: segments(text)?.into_iter().peekable(), depth: 0 };
    let (nodes, end) = parser.nodes()?;
    match end {
        None => Ok(nodes),
        Some(keyword) => bail!("unexpected {{{{{keyword}}}}}"),
    }
}

/// Splits at `{{` and `}}`, and trims for `{{-` and `-}}`.
fn segments(text: &str) -> Result<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut rest = text;
    let mut trims = false;
    loop {
        let Some((plain, action)) = rest.split_once("{{") else {
            let plain = if trims { rest.trim_start() } else { rest };
            segments.push(Segment::Text(unescaped(plain)));
            return Ok(segments);
        };
        let plain = if trims { plain.trim_start() } else { plain };
        let trims_before = action.starts_with("- ") || action.starts_with("-\n") || action.starts_with("-}");
        segments.push(Segment::Text(unescaped(if trims_before { plain.trim_end() } else { plain })));
        let action = if trims_before { &action[1..] } else { action };
        let end = action_end(action)?;
        let (inside, after) = (&action[..end], &action[end + 2..]);
        trims = inside.ends_with(" -") || inside.ends_with("\n-");
        let inside = if trims { &inside[..inside.len() - 1] } else { inside };
        segments.push(Segment::Action(inside.trim().to_owned()));
        rest = after;
    }
}

/// The position of the action's `}}`, which may also occur in its strings.
fn action_end(action: &str) -> Result<usize> {
    let bytes = action.as_bytes();
    if action.trim_start().starts_with("/*") {
        let close = action.find("*/").context("a comment is not closed")?;
        let end = action[close..].find("}}").context("}} is missing")?;
        return Ok(close + end);
    }
    let mut quote = None;
    let mut at = 0;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(b'"'), b'\\') => at += 1,
            (Some(open), byte) if open == byte => quote = None,
            (None, byte @ (b'"' | b'`')) => quote = Some(byte),
            (None, b'}') if bytes.get(at + 1) == Some(&b'}') => return Ok(at),
            _ => {}
        }
        at += 1;
    }
    match quote {
        Some(_) => bail!("a quote is not closed in {{{{{action}"),
        None => bail!("}}}} is missing after {{{{{action}"),
    }
}

/// Converts `\t` and `\n`, which a shell's single quotes leave unchanged.
fn unescaped(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

struct Parser {
    segments: std::iter::Peekable<std::vec::IntoIter<Segment>>,
    depth: usize,
}

impl Parser {
    /// Nodes up to the end of the text, or to `end` or `else`, which is returned with the rest.
    fn nodes(&mut self) -> Result<(Vec<Node>, Option<String>)> {
        self.depth += 1;
        if self.depth > DEPTH_LIMIT {
            bail!("too many actions in each other");
        }
        let mut nodes = Vec::new();
        while let Some(segment) = self.segments.next() {
            let action = match segment {
                Segment::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Segment::Action(action) => action,
            };
            let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((&action, ""));
            match word {
                _ if action.starts_with("/*") => {}
                "end" | "else" => {
                    self.depth -= 1;
                    return Ok((nodes, Some(action)));
                }
                "if" => nodes.push(self.conditional(rest)?),
                "range" => nodes.push(self.range(rest)?),
                "with" => nodes.push(self.with(rest)?),
                "define" | "template" | "block" | "break" | "continue" => bail!("{word} is not supported"),
                "" => bail!("an action is empty: {{{{}}}}"),
                _ => nodes.push(Node::Print(pipe(&action)?)),
            }
        }
        self.depth -= 1;
        Ok((nodes, None))
    }

    fn conditional(&mut self, condition: &str) -> Result<Node> {
        let mut branches = Vec::new();
        let mut condition = condition.to_owned();
        loop {
            let (body, end) = self.nodes()?;
            branches.push((pipe(&condition)?, body));
            match end.as_deref() {
                None => bail!("{{{{end}}}} is missing after {{{{if {condition}}}}}"),
                Some("end") => return Ok(Node::If(branches, Vec::new())),
                Some("else") => return Ok(Node::If(branches, self.until_end()?)),
                Some(other) => {
                    match other.strip_prefix("else").map(str::trim_start).and_then(|rest| rest.strip_prefix("if ")) {
                        Some(next) => condition = next.to_owned(),
                        None => bail!("unexpected {{{{{other}}}}}"),
                    }
                }
            }
        }
    }

    fn until_end(&mut self) -> Result<Vec<Node>> {
        match self.nodes()? {
            (body, Some(end)) if end == "end" => Ok(body),
            _ => bail!("{{{{end}}}} is missing after {{{{else}}}}"),
        }
    }

    /// The body of `range` or `with`, and the alternative for an empty value.
    fn body(&mut self, what: &str) -> Result<(Vec<Node>, Vec<Node>)> {
        let (body, end) = self.nodes()?;
        match end.as_deref() {
            Some("end") => Ok((body, Vec::new())),
            Some("else") => Ok((body, self.until_end()?)),
            Some(other) => bail!("unexpected {{{{{other}}}}}"),
            None => bail!("{{{{end}}}} is missing after {{{{{what}}}}}"),
        }
    }

    fn range(&mut self, text: &str) -> Result<Node> {
        let tokens = tokens(text)?;
        let (names, tokens) = match tokens.iter().position(|token| *token == Token::Assign) {
            Some(at) => (range_names(&tokens[..at])?, tokens[at + 1..].to_vec()),
            None => (Vec::new(), tokens),
        };
        let over = Tokens::new(tokens).whole()?;
        let (body, otherwise) = self.body("range")?;
        Ok(Node::Range { names, over, body, otherwise })
    }

    fn with(&mut self, text: &str) -> Result<Node> {
        let over = pipe(text)?;
        let (body, otherwise) = self.body("with")?;
        Ok(Node::With { over, body, otherwise })
    }
}

fn range_names(tokens: &[Token]) -> Result<Vec<String>> {
    match tokens {
        [Token::Variable(one, _)] => Ok(vec![one.clone()]),
        [Token::Variable(key, _), Token::Comma, Token::Variable(value, _)] => Ok(vec![key.clone(), value.clone()]),
        _ => bail!("a range reads $x := or $i, $x := before what it goes over"),
    }
}

fn pipe(text: &str) -> Result<Pipe> {
    Tokens::new(tokens(text)?).whole()
}

struct Tokens {
    rest: std::iter::Peekable<std::vec::IntoIter<Token>>,
    depth: usize,
}

impl Tokens {
    fn new(tokens: Vec<Token>) -> Self {
        Self { rest: tokens.into_iter().peekable(), depth: 0 }
    }

    fn whole(mut self) -> Result<Pipe> {
        let pipe = self.pipe()?;
        match self.rest.next() {
            None => Ok(pipe),
            Some(Token::Close(_)) => bail!("a parenthesis closes that was not opened"),
            Some(token) => bail!("unexpected {token:?}"),
        }
    }

    fn pipe(&mut self) -> Result<Pipe> {
        let mut commands = vec![Vec::new()];
        let mut name = None;
        while let Some(token) = self.rest.peek() {
            let Some(command) = commands.last_mut() else { break };
            match token {
                Token::Close(_) => break,
                Token::Bar => {
                    self.rest.next();
                    commands.push(Vec::new());
                }
                Token::Assign => {
                    self.rest.next();
                    match std::mem::take(command).as_slice() {
                        [Operand::Variable(variable, fields)] if fields.is_empty() => name = Some(variable.clone()),
                        _ => bail!(":= needs a variable before it"),
                    }
                }
                _ => {
                    let operand = self.operand()?;
                    if let Some(command) = commands.last_mut() {
                        command.push(operand);
                    }
                }
            }
        }
        if commands.iter().any(Vec::is_empty) {
            bail!("a command is empty");
        }
        Ok(Pipe { name, commands })
    }

    fn operand(&mut self) -> Result<Operand> {
        match self.rest.next() {
            Some(Token::Field(names)) => Ok(Operand::Field(names)),
            Some(Token::Variable(name, fields)) => Ok(Operand::Variable(name, fields)),
            Some(Token::Literal(value)) => Ok(Operand::Literal(value)),
            Some(Token::Word(word)) => Ok(match word.as_str() {
                "true" => Operand::Literal(true.into()),
                "false" => Operand::Literal(false.into()),
                "nil" => Operand::Literal(Value::Null),
                _ => Operand::Function(word),
            }),
            Some(Token::Open) => {
                self.depth += 1;
                if self.depth > DEPTH_LIMIT {
                    bail!("too many parentheses in each other");
                }
                let inner = self.pipe()?;
                self.depth -= 1;
                match self.rest.next() {
                    Some(Token::Close(fields)) => Ok(Operand::Nested(Box::new(inner), fields)),
                    _ => bail!("a parenthesis is not closed"),
                }
            }
            token => bail!("unexpected {token:?}"),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, after) = match first {
            '(' => (Token::Open, &rest[1..]),
            ')' => {
                let (fields, after) = fields(&rest[1..]);
                (Token::Close(fields), after)
            }
            '|' => (Token::Bar, &rest[1..]),
            ',' => (Token::Comma, &rest[1..]),
            ':' if rest.starts_with(":=") => (Token::Assign, &rest[2..]),
            '=' => (Token::Assign, &rest[1..]),
            '.' => {
                let (names, after) = fields(rest);
                (Token::Field(names.clone()), if names.is_empty() { &rest[1..] } else { after })
            }
            '$' => {
                let (name, after) = name(&rest[1..]);
                let (fields, after) = fields(after);
                (Token::Variable(format!("${name}"), fields), after)
            }
            '"' | '`' => string(rest)?,
            '-' | '+' | '0'..='9' => number(rest)?,
            _ => match name(rest) {
                ("", _) => bail!("unexpected {first:?} in {{{{{text}}}}}"),
                (word, after) => (Token::Word(word.to_owned()), after),
            },
        };
        tokens.push(token);
        rest = after.trim_start();
    }
    Ok(tokens)
}

fn name(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    text.split_at(end)
}

/// `.A.B` and the rest.
fn fields(text: &str) -> (Vec<String>, &str) {
    let mut names = Vec::new();
    let mut rest = text;
    while let Some(after) = rest.strip_prefix('.') {
        let (found, after) = name(after);
        if found.is_empty() {
            break;
        }
        names.push(found.to_owned());
        rest = after;
    }
    (names, rest)
}

fn string(text: &str) -> Result<(Token, &str)> {
    if let Some(raw) = text.strip_prefix('`') {
        let (inside, after) = raw.split_once('`').context("a quote is not closed")?;
        return Ok((Token::Literal(inside.into()), after));
    }
    let mut inside = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((Token::Literal(inside.into()), &text[at + 1..])),
            '\\' => match chars.next().map(|(_, escaped)| escaped) {
                Some('n') => inside.push('\n'),
                Some('t') => inside.push('\t'),
                Some('r') => inside.push('\r'),
                Some(same @ ('"' | '\\' | '\'')) => inside.push(same),
                _ => bail!("unknown escape in {text}"),
            },
            c => inside.push(c),
        }
    }
    bail!("a quote is not closed in {text}")
}

fn number(text: &str) -> Result<(Token, &str)> {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '-' | '+')).unwrap_or(text.len());
    let (digits, after) = text.split_at(end);
    let whole = digits.parse::<i64>().map(Value::from);
    let value = whole
        .or_else(|_| digits.parse::<f64>().map(Value::from))
        .ok()
        .with_context(|| format!("{digits} is no number"))?;
    Ok((Token::Literal(value), after))
}
