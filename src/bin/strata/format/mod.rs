//! `--format`: the part of Go's templates that scripts for docker and podman use, on JSON values.
//!
//! Supported: fields and methods (`.Name`, `.A.B`, `.Label "key"`), `table …`, variables, pipes, `if`, `else`, `range`,
//! `with`, trimming (`{{-`), and the functions of [`functions`]. `define`, `template` and `block` are refused.

mod eval;
mod functions;
mod parse;

use std::io::{self, IsTerminal, Write};
use std::str::FromStr;

use anyhow::{Context, Result};
use serde_json::Value;
use stratafs::text;

use parse::Node;

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Template {
    nodes: Vec<Node>,
    /// `table …`: the rows are aligned below a line of headings.
    table: bool,
}

/// Headings of fields: the name of the field and its heading.
pub type Headings = &'static [(&'static str, &'static str)];

impl FromStr for Template {
    type Err = anyhow::Error;

    /// Parses a template as docker's listing verbs do: `\t` and `\n` outside of actions are a tab and a newline, and
    /// `json` stands for `{{json .}}`.
    fn from_str(text: &str) -> Result<Self> {
        let trimmed = text.trim();
        if trimmed == "json" {
            return Ok(Self { nodes: parse::parse("{{json .}}")?, table: false });
        }
        let (table, body) = match trimmed.strip_prefix("table") {
            Some(rest) if rest.starts_with([' ', '\t']) || rest.starts_with("\\t") => (true, rest.trim_start()),
            _ => (false, text),
        };
        Ok(Self { nodes: parse::parse(body)?, table })
    }
}

impl Template {
    /// Parses a template of this program.
    pub fn built_in(text: &str) -> Result<Self> {
        text.parse().with_context(|| format!("built-in template {text}"))
    }

    /// Renders the template for one value. With `escape`, strings of the value are escaped for a terminal.
    pub fn render(&self, value: &Value, escape: bool) -> Result<String> {
        eval::render(&self.nodes, value, escape)
    }

    /// Prints the rows: one line each, or a table.
    pub fn print(&self, rows: &[Value], headings: Headings) -> Result<()> {
        if self.table {
            return self.print_table(rows, headings);
        }
        let escape = io::stdout().is_terminal();
        for row in rows {
            writeln!(io::stdout(), "{}", self.render(row, escape)?)?;
        }
        Ok(())
    }

    fn print_table(&self, rows: &[Value], headings: Headings) -> Result<()> {
        let head = headings.iter().map(|(field, heading)| ((*field).to_owned(), Value::from(*heading)));
        let mut lines = vec![cells(&self.render(&Value::Object(head.collect()), true)?)];
        for row in rows {
            lines.push(cells(&self.render(row, true)?));
        }
        print_aligned(&lines)
    }
}

fn cells(line: &str) -> Vec<String> {
    line.split('\t').map(str::to_owned).collect()
}

/// Prints columns three spaces apart, each as wide as its widest cell on a terminal. The cells are already escaped.
fn print_aligned(lines: &[Vec<String>]) -> Result<()> {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| text::width(cell)).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = io::stdout().lock();
    for line in lines {
        let mut aligned = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            aligned.push_str(cell);
            aligned.push_str(&" ".repeat(width.saturating_sub(text::width(cell)) + 3));
        }
        writeln!(out, "{}", aligned.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(template: &str) -> Result<String> {
        let value = json!({
            "Names": "web", "ID": "4f1a", "Size": 1234, "Running": true, "Nothing": null, "Empty": [], "Real": 1.5,
            "Tags": ["a:1", "b:2"], "Labels": {"com.example/x": "y", "k": "v"},
            "State": {"Pid": 7, "Status": "running"}, "Mounts": [{"Source": "/s", "RW": false}],
            "Evil": "\u{1b}[31m", "Time": "2024-01-01T00:00:00Z",
        });
        template.parse::<Template>()?.render(&value, true)
    }

    #[test]
    fn templates_give_what_docker_gives() {
        for (template, expected) in [
            ("{{.Names}}", "web"),
            ("{{ .ID }}: {{.Names}}", "4f1a: web"),
            (r"{{.ID}}\t{{.Names}}\n", "4f1a\tweb\n"),
            ("{{.State.Pid}}", "7"),
            ("{{.State.status}}", "running"),
            ("{{.Id}}", "4f1a"),
            ("{{json .Names}}", "\"web\""),
            ("{{json .State}}", "{\"Pid\":7,\"Status\":\"running\"}"),
            ("{{.State | json}}", "{\"Pid\":7,\"Status\":\"running\"}"),
            ("{{.Tags}} {{.Labels}} {{.Nothing}}", "[a:1 b:2] map[com.example/x:y k:v] <nil>"),
            ("{{index .Tags 1}}", "b:2"),
            ("{{index .Labels \"com.example/x\"}}", "y"),
            ("{{index .Labels \"missing\"}}.", "."),
            ("{{.Label \"k\"}}", "v"),
            ("{{(index .Mounts 0).Source}}", "/s"),
            ("{{range .Tags}}{{.}} {{end}}", "a:1 b:2 "),
            ("{{range $i, $t := .Tags}}{{$i}}={{$t}};{{end}}", "0=a:1;1=b:2;"),
            ("{{range $k, $v := .Labels}}{{$k}}={{$v}} {{end}}", "com.example/x=y k=v "),
            ("{{range .Empty}}x{{else}}none{{end}}", "none"),
            ("{{if .Running}}up{{else}}down{{end}}", "up"),
            ("{{if .Nothing}}a{{else if .Empty}}b{{else}}c{{end}}", "c"),
            ("{{if and .Running (not .Nothing)}}yes{{end}}", "yes"),
            ("{{if eq .State.Status \"running\"}}yes{{end}}", "yes"),
            ("{{if eq .Names \"db\" \"web\"}}yes{{end}}", "yes"),
            ("{{if gt .Size 1000}}big{{end}}", "big"),
            ("{{with .State}}{{.Pid}} {{$.Names}}{{end}}", "7 web"),
            ("{{$x := .State}}{{$x.Pid}}", "7"),
            ("{{join .Tags \", \"}}", "a:1, b:2"),
            ("{{index (split .Names \"e\") 1}}", "b"),
            ("{{upper .Names}} {{lower \"ABC\"}} {{title .Names}} {{len .Tags}}", "WEB abc Web 2"),
            ("{{truncate .ID 2}}{{pad .ID 1 1}}", "4f 4f1a "),
            (
                "{{printf \"%s has %d, %q %v %5.1f%%\" .Names .Size .ID .Tags .Real}}",
                "web has 1234, \"4f1a\" [a:1 b:2]   1.5%",
            ),
            ("{{println .Names}}", "web\n"),
            ("{{print \"a\" 1 2 .Names}}", "a1 2web"),
            ("a {{- .Names -}} b", "awebb"),
            ("{{/* nothing */}}x", "x"),
            ("{{slice .ID 0 2}}", "4f"),
            ("{{.Evil}}", "\\u{1b}[31m"),
            ("{{json .Evil}}", "\"\\u001b[31m\""),
            ("{{range $i, $t := .Tags}}{{if $i}},{{end}}{{$t}}{{end}}", "a:1,b:2"),
            ("{{.Labels.k}} {{.Labels.missing}}", "v <no value>"),
            ("{{or .Nothing .Names}}", "web"),
            ("{{`raw`}}{{\"q\\n\"}}", "rawq\n"),
        ] {
            assert_eq!(render(template).expect(template), expected, "{template}");
        }
    }

    #[test]
    fn templates_that_are_refused_say_why() {
        for (template, why) in [
            ("{{.Names", "}} is missing"),
            ("{{if .Names}}", "{{end}} is missing"),
            ("{{end}}", "unexpected {{end}}"),
            ("{{.Name}}", "no field .Name; did you mean .Names?"),
            ("{{.Xyzzy}}", "no field .Xyzzy; there are .Empty"),
            ("{{frobnicate .ID}}", "no function frobnicate"),
            ("{{template \"x\"}}", "template is not supported"),
            ("{{$x}}", "no variable $x"),
            ("{{index .Tags 7}}", "index 7"),
            ("{{.Names.First}}", ".First"),
            ("{{\"open}}", "quote"),
            ("{{}}", "empty"),
            ("{{(.ID}}", "parenthesis"),
            ("{{len 5}}", "len"),
        ] {
            let error = render(template).expect_err(template).to_string();
            assert!(error.contains(why), "{template}: {error}");
        }
    }
}
