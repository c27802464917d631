//! Reads the sources (as tokens, by `proc-macro2`) and enforces what the compiler does not: the table of modules in
//! `docs/architecture.md`, where `unsafe` and `fuser` may appear, the length of files, no swallowed errors and no panics in the driver.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

/// Longest file, in lines before its tests.
const LONGEST_FILE: usize = 500;

/// Modules that run inside a mount: an error there goes to the caller, and nothing panics.
const DRIVER: [&str; 4] = ["fuse", "driver", "union", "inventory"];

/// The module that alone may hold `unsafe`.
const UNSAFE_MODULE: &str = "sys";

/// The module that alone may name `fuser`.
const FUSER_MODULE: &str = "fuse";

/// The directory that alone may name `ureq`.
const UREQ_DIRECTORY: &str = "src/registry/";

/// Module -> modules that it may use.
type Table = BTreeMap<String, BTreeSet<String>>;

#[test]
fn sources_are_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = layering(&fs::read_to_string(root.join("docs/architecture.md")).expect("docs/architecture.md"));
    assert!(table.len() > 8, "docs/architecture.md has no table of modules: {table:?}");
    let library = fs::read_to_string(root.join("src/lib.rs")).expect("src/lib.rs");
    let modules = library.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "));
    let missing: Vec<_> =
        modules.map(|name| name.trim_end_matches(';')).filter(|name| !table.contains_key(*name)).collect();
    assert!(missing.is_empty(), "docs/architecture.md has no row for {missing:?}");
    let mut findings = vec![];
    for path in files_below(&root.join("src"), &["rs"]) {
        // `#[cfg(test)] mod tests;`
        if path.file_name().is_some_and(|name| name == "tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source file");
        let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
        findings.extend(check(&name, &text, &table));
    }
    for directory in ["src", "tests", "scripts", ".ci"] {
        for path in files_below(&root.join(directory), &["rs", "py", "sh", ""]) {
            let Ok(text) = fs::read_to_string(&path) else { continue };
            findings.extend(check_notes(&path.to_string_lossy(), &text));
        }
    }
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

/// The tables that say which test tries what (in the tests' own documentation, and of the hostile fixtures) name tests
/// that are there.
#[test]
fn tests_that_are_named_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &PathBuf| fs::read_to_string(path).expect("a source file");
    let tests = files_below(&root.join("tests"), &["rs"]);
    let sources: String = tests.iter().chain(&files_below(&root.join("src"), &["rs"])).map(read).collect();
    let hostile = root.join("fixtures/hostile/README.md");
    let mut named = 0;
    for path in tests.iter().chain([&hostile, &root.join("docs/semantics.md")]) {
        let mut in_table = false;
        for row in read(path).lines().map(|line| line.trim_start_matches("//! ")) {
            let cells = row.strip_suffix(" |").and_then(|row| row.rsplit_once(" | "));
            in_table = row.starts_with('|') && (in_table || cells.is_some_and(|(_, last)| last == "tests"));
            let Some((_, cells)) = cells.filter(|_| in_table) else { continue };
            let proves = cells == "tests" || cells.contains('`');
            assert!(proves, "{}: no test proves: {row}", path.display());
            for name in cells.split('`').skip(1).step_by(2) {
                named += 1;
                assert!(sources.contains(&format!("fn {name}(")), "{}: there is no {name}", path.display());
            }
        }
    }
    assert!(named > 100, "the tables were not found: {named}");
}

/// Every file below `directory` with one of the extensions, sorted.
fn files_below(directory: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return vec![] };
    let mut files = vec![];
    for entry in entries {
        let path = entry.expect("an entry").path();
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            files.extend(files_below(&path, extensions));
        } else if extensions.contains(&extension.as_str()) {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Reads the table of modules in `docs/architecture.md`: name in the first column, what it may use in the last.
fn layering(text: &str) -> Table {
    let mut table = Table::new();
    for line in text.lines() {
        let Some(row) = line.strip_prefix("| `") else { continue };
        let Some((name, _)) = row.split_once("` |") else { continue };
        let last = row.trim_end().trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        let uses = last.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        table.insert(name.to_owned(), uses);
    }
    table
}

/// Findings in one file below `src`.
fn check(name: &str, text: &str, table: &Table) -> Vec<String> {
    let own_part = text.split("\n#[cfg(test)]").next().unwrap_or_default();
    let code = tokens(own_part);
    let module = module_of(name);
    let mut findings = vec![];
    let mut find = |line: usize, message: String| findings.push(format!("{name}:{line}: {message}"));

    let length = own_part.lines().count();
    if length > LONGEST_FILE {
        find(length, format!("{length} lines before the tests; {LONGEST_FILE} at most"));
    }
    if let Some((room, allowed)) = room_of(&module_path(name), table) {
        for (line, used) in modules_used(name, &code) {
            let inside = |module: &str| used == module || used.starts_with(&format!("{module}::"));
            let known = used.split("::").next().is_some_and(|first| table.contains_key(first));
            if known && !inside(room) && !allowed.iter().any(|module| inside(module)) {
                find(line, format!("`{room}` may not use `{used}` (table in docs/architecture.md)"));
            }
        }
    }
    let in_driver = module.is_some_and(|module| DRIVER.contains(&module));
    for (at, token) in code.iter().enumerate() {
        let follows = |pattern: &[&str]| {
            code[at..].iter().map(|token| token.text.as_str()).take(pattern.len()).eq(pattern.iter().copied())
        };
        let mut find = |message: String| find(token.line, message);
        if module != Some(UNSAFE_MODULE) && token.text == "unsafe" {
            find(format!("unsafe outside of {UNSAFE_MODULE}/"));
        }
        if module != Some(UNSAFE_MODULE) && follows(&["allow", "(", "unsafe_code", ")"]) {
            find(format!("unsafe allowed outside of {UNSAFE_MODULE}/"));
        }
        if module != Some(FUSER_MODULE) && token.text == "fuser" {
            find(format!("fuser outside of {FUSER_MODULE}/"));
        }
        if !name.starts_with(UREQ_DIRECTORY) && token.text == "ureq" {
            find(format!("ureq outside of {UREQ_DIRECTORY}"));
        }
        if in_driver && follows(&["let", "_", "="]) {
            find("`let _ =` drops a result silently in the driver".to_owned());
        }
        let calls: [&[&str]; 6] = [
            &[".", "unwrap", "(", ")"],
            &[".", "expect", "("],
            &["panic", "!"],
            &["unreachable", "!"],
            &["unimplemented", "!"],
            &["todo", "!"],
        ];
        if let Some(call) = calls.iter().find(|call| in_driver && follows(call)) {
            find(format!("`{}` panics in the driver", call.concat()));
        }
    }
    findings
}

/// Notes to self, which belong in an issue.
fn check_notes(name: &str, text: &str) -> Vec<String> {
    let notes = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let mut findings = vec![];
    for (number, line) in text.lines().enumerate() {
        if let Some(note) = notes.iter().find(|note| has_word(line, note)) {
            findings.push(format!("{name}:{}: {note}", number + 1));
        }
    }
    findings
}

/// The top-level module that a file belongs to; none for `lib.rs` and the binaries.
fn module_of(name: &str) -> Option<&str> {
    let inside = name.strip_prefix("src/")?;
    let first = inside.split('/').next()?;
    match first.trim_end_matches(".rs") {
        "lib" | "bin" | "main" => None,
        module => Some(module),
    }
}

/// The path of the module that a file is, without `crate::`.
fn module_path(name: &str) -> String {
    let inside = name.strip_prefix("src/").unwrap_or(name).trim_end_matches(".rs");
    inside.trim_end_matches("/mod").replace('/', "::")
}

/// The row of the table that stands for a module: that of the module itself or of the nearest one around it.
fn room_of<'t>(module: &str, table: &'t Table) -> Option<(&'t str, &'t BTreeSet<String>)> {
    let mut path = module;
    loop {
        if let Some((room, allowed)) = table.get_key_value(path) {
            return Some((room, allowed));
        }
        path = path.rsplit_once("::")?.0;
    }
}

/// A token of Rust, without its content if it is a literal. Comments are none.
struct Token {
    text: String,
    line: usize,
}

fn tokens(text: &str) -> Vec<Token> {
    let mut flat = vec![];
    flatten(text.parse().expect("tokens of Rust"), &mut flat);
    flat
}

fn flatten(stream: TokenStream, flat: &mut Vec<Token>) {
    let mut joins = false;
    for tree in stream {
        let line = tree.span().start().line;
        let text = match &tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                flat.push(Token { text: open.to_owned(), line });
                flatten(group.stream(), flat);
                close.to_owned()
            }
            TokenTree::Literal(_) => "literal".to_owned(),
            TokenTree::Ident(name) => name.to_string(),
            TokenTree::Punct(sign) => {
                let second = std::mem::replace(&mut joins, sign.spacing() == Spacing::Joint && sign.as_char() == ':');
                if let Some(first) =
                    flat.last_mut().filter(|first| second && first.text == ":" && sign.as_char() == ':')
                {
                    first.text = "::".to_owned();
                    joins = false;
                    continue;
                }
                sign.to_string()
            }
        };
        flat.push(Token { text, line });
    }
}

/// Paths (two names at most) that follow `crate::` (or a `super::` that means the crate's root), with their lines.
fn modules_used(name: &str, code: &[Token]) -> Vec<(usize, String)> {
    let depth = name.matches('/').count() - usize::from(name.ends_with("/mod.rs"));
    let from_here = vec!["super"; depth];
    let mut used = vec![];
    for at in 0..code.len() {
        for root in [&["crate"][..], &from_here] {
            let prefix = root.iter().flat_map(|name| [*name, "::"]);
            let inside_a_path = at > 0 && code[at - 1].text == "::";
            let rest = code.get(at + 2 * root.len()..).unwrap_or_default();
            if !root.is_empty()
                && !inside_a_path
                && code[at..].iter().map(|token| token.text.as_str()).take(2 * root.len()).eq(prefix)
            {
                used.extend(heads(rest).into_iter().map(|head| (code[at].line, head)));
            }
        }
    }
    used
}

/// The first two names of a path, or those of each member of a `{…}` group.
fn heads(rest: &[Token]) -> Vec<String> {
    let path = |rest: &[Token]| match rest {
        [first, colons, second, ..] if colons.text == "::" && second.text.starts_with(char::is_alphabetic) => {
            format!("{}::{}", first.text, second.text)
        }
        [first, ..] => first.text.clone(),
        [] => String::new(),
    };
    if rest.first().is_none_or(|first| first.text != "{") {
        return vec![path(rest)];
    }
    let mut depth = 0;
    let mut heads = vec![];
    for (at, token) in rest.iter().enumerate() {
        if depth == 1 && matches!(rest[at - 1].text.as_str(), "{" | ",") && token.text != "}" {
            heads.push(path(&rest[at..]));
        }
        match token.text.as_str() {
            "{" => depth += 1,
            "}" if depth == 1 => break,
            "}" => depth -= 1,
            _ => {}
        }
    }
    heads
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(is_part);
        let after = line[at + word.len()..].chars().next().is_some_and(is_part);
        !before && !after
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample_table() -> Table {
        layering(
            "| module | what | may use |\n|---|---|---|\n| `driver` | verbs | `union` |\n\
             | `driver::node` | inode table | `union::layer` types |\n| `union` | layers | `sys` |\n\
             | `fuse` | requests | `driver` `sys` |\n| `sys` | calls | nothing |\n",
        )
    }

    #[test]
    fn the_table_is_read() {
        let table = sample_table();
        assert_eq!(table["driver"], ["union"].map(str::to_owned).into());
        assert_eq!(table["driver::node"], ["union::layer"].map(str::to_owned).into());
        assert!(table["sys"].is_empty());
    }

    #[test]
    fn each_rule_finds_its_sample() {
        let table = sample_table();
        let long = "fn f() {}\n".repeat(LONGEST_FILE + 1);
        for (name, text, expected) in [
            ("src/union/mod.rs", "use crate::driver::types;", "`union` may not use `driver::types`"),
            ("src/union/mod.rs", "use super::driver::types;", "`union` may not use `driver::types`"),
            ("src/union/layer.rs", "use super::super::driver;", "`union` may not use `driver`"),
            ("src/union/mod.rs", "use crate::{\n    sys::A,\n    fuse::{B, C},\n};", "`union` may not use `fuse`"),
            ("src/driver/node/mod.rs", "fn f() { crate::sys::call() }", "`driver::node` may not use `sys::call`"),
            ("src/driver/node/table.rs", "use crate::driver::verbs::A;", "`driver::node` may not use `driver::verbs`"),
            ("src/driver/node/table.rs", "use crate::union::merge::A;", "`driver::node` may not use `union::merge`"),
            ("src/union/mod.rs", "fn f() { unsafe { g() } }", "unsafe outside"),
            ("src/union/mod.rs", "#![allow(unsafe_code)]", "unsafe allowed outside"),
            ("src/bin/stratafs/main.rs", "use fuser::Session;", "fuser outside"),
            ("src/image/load.rs", "use ureq::Agent;", "ureq outside"),
            ("src/union/mod.rs", "let _ = f();", "drops a result"),
            ("src/driver/node/mod.rs", "f().unwrap();", "panics"),
            ("src/union/mod.rs", "f().expect(\"x\");", "panics"),
            ("src/image/mod.rs", &long, "lines before the tests"),
        ] {
            let findings = check(name, text, &table);
            assert_eq!(findings.len(), 1, "{text:?}: {findings:?}");
            assert!(findings[0].contains(expected), "{text:?}: {findings:?}");
        }
        assert_eq!(check_notes("a", concat!("x\n// TO", "DO: later")).len(), 1);
    }

    #[test]
    fn what_is_allowed_is_not_found() {
        let table = sample_table();
        for (name, text) in [
            ("src/driver/mod.rs", "use crate::driver::node::NodeId; use crate::driver::types;"),
            ("src/driver/lookup.rs", "use super::types::Attr;"),
            ("src/driver/node/table.rs", "use crate::driver::node::Node; use crate::union::layer::Stat;"),
            ("src/union/mod.rs", "// use crate::driver; unsafe; let _ = f().unwrap();"),
            ("src/union/mod.rs", "/// See [`crate::fuse`].\nconst A: &str = \"unsafe crate::fuse fuser\";"),
            ("src/union/mod.rs", "const A: &str = r#\"a \" unsafe\"#; const B: char = '\"';"),
            ("src/union/mod.rs", "fn f() {}\n#[cfg(test)]\nmod tests { fn g() { f().unwrap(); } }"),
            ("src/union/mod.rs", "f().unwrap_or_default();"),
            ("src/sys/mod.rs", "fn f() { unsafe { g() } }"),
            ("src/fuse/mod.rs", "use fuser::Session;"),
            ("src/image/mod.rs", "f().unwrap();"),
            ("src/registry/http.rs", "use ureq::Agent;"),
        ] {
            assert_eq!(check(name, text, &table), Vec::<String>::new(), "{text:?}");
        }
    }
}
