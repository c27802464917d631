//! Reads the sources and enforces what the compiler does not: the layering table of `src/lib.rs`, where `unsafe` and
//! `fuser` may appear, the length of files, no swallowed errors and no panics in the driver.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

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
    let table = layering(&fs::read_to_string(root.join("src/lib.rs")).expect("src/lib.rs"));
    assert!(table.len() > 8, "src/lib.rs has no layering table: {table:?}");
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
    for path in tests.iter().chain([&hostile]) {
        let mut in_table = false;
        for row in read(path).lines().map(|line| line.trim_start_matches("//! ")) {
            let cells = row.strip_suffix(" |").and_then(|row| row.rsplit_once(" | "));
            in_table = row.starts_with('|') && (in_table || cells.is_some_and(|(_, last)| last == "tests"));
            let Some((_, cells)) = cells.filter(|_| in_table) else { continue };
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

/// Reads the table in the module documentation of `src/lib.rs`: name in the first column, what it may use in the last.
fn layering(text: &str) -> Table {
    let mut table = Table::new();
    for line in text.lines() {
        let Some(row) = line.strip_prefix("//! | [`") else { continue };
        let Some((name, _)) = row.split_once("`]") else { continue };
        let last = row.trim_end().trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        let uses = last.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        table.insert(name.to_owned(), uses);
    }
    table
}

/// Findings in one file below `src`.
fn check(name: &str, text: &str, table: &Table) -> Vec<String> {
    let own_part = text.split("\n#[cfg(test)]").next().unwrap_or_default();
    let code = blank_comments_and_strings(own_part);
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
                find(line, format!("`{room}` may not use `{used}` (table in src/lib.rs)"));
            }
        }
    }
    for (number, line) in code.lines().enumerate() {
        let number = number + 1;
        if module != Some(UNSAFE_MODULE) && has_word(line, "unsafe") {
            find(number, format!("unsafe outside of {UNSAFE_MODULE}/"));
        }
        if module != Some(UNSAFE_MODULE) && line.contains("allow(unsafe_code)") {
            find(number, format!("unsafe allowed outside of {UNSAFE_MODULE}/"));
        }
        if module != Some(FUSER_MODULE) && has_word(line, "fuser") {
            find(number, format!("fuser outside of {FUSER_MODULE}/"));
        }
        if !name.starts_with(UREQ_DIRECTORY) && has_word(line, "ureq") {
            find(number, format!("ureq outside of {UREQ_DIRECTORY}"));
        }
        if module.is_some_and(|module| DRIVER.contains(&module)) {
            for (pattern, why) in [
                ("let _ =", "drops a result silently"),
                (".unwrap()", "panics"),
                (".expect(", "panics"),
                ("panic!(", "panics"),
                ("unreachable!(", "panics"),
                ("unimplemented!(", "panics"),
                ("todo!(", "panics"),
            ] {
                if line.contains(pattern) {
                    find(number, format!("`{pattern}` {why} in the driver"));
                }
            }
        }
    }
    findings
}

/// Notes to self, which belong into an issue.
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

/// Paths (two names at most) that follow `crate::` (or a `super::` that means the crate's root), with their lines.
fn modules_used(name: &str, code: &str) -> Vec<(usize, String)> {
    let depth = name.matches('/').count();
    let root_from_here = match name.strip_prefix("src/") {
        Some(inside) if inside.ends_with("/mod.rs") => "super::".repeat(depth - 1),
        _ => "super::".repeat(depth),
    };
    let mut used = vec![];
    for prefix in ["crate::", root_from_here.as_str()] {
        for (at, _) in code.match_indices(prefix) {
            let preceded = code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
            if preceded || prefix.is_empty() {
                continue;
            }
            let line = code[..at].matches('\n').count() + 1;
            let rest = &code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(group) => used.extend(group_heads(group).into_iter().map(|head| (line, head))),
                None => used.push((line, path(rest))),
            }
        }
    }
    used
}

/// First names of each member of a `{…}` import group, whose opening brace has been taken off.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = vec![];
    let mut depth = 0;
    let mut at_member = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_member = true,
            c if c.is_whitespace() => {}
            _ if at_member => {
                heads.push(path(&group[at..]));
                at_member = false;
            }
            _ => {}
        }
    }
    heads
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The first two names of a path, or the only one.
fn path(text: &str) -> String {
    let first = identifier(text);
    match text[first.len()..].strip_prefix("::").map(identifier) {
        Some(second) if !second.is_empty() => format!("{first}::{second}"),
        _ => first,
    }
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(is_part);
        let after = line[at + word.len()..].chars().next().is_some_and(is_part);
        !before && !after
    })
}

/// Replaces comments and the content of literals by spaces; line numbers stay.
fn blank_comments_and_strings(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_string_hashes(rest, &code) {
            let close = format!("\"{}", "#".repeat(hashes));
            let start = rest.find('"').unwrap_or_default() + 1;
            rest[start..].find(&close).map_or(rest.len(), |end| start + end + close.len())
        } else if c == '"' {
            closing(rest, '"')
        } else if rest.starts_with("'\\") || (c == '\'' && rest.chars().nth(2) == Some('\'')) {
            closing(rest, '\'')
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        code.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[length..];
    }
    code
}

/// Bytes up to and with the quote that ends a literal.
fn closing(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Number of `#` of a raw string that starts here.
fn raw_string_hashes(rest: &str, before: &str) -> Option<usize> {
    if before.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let inside = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = inside.chars().take_while(|&c| c == '#').count();
    inside[hashes..].starts_with('"').then_some(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample_table() -> Table {
        layering(
            "//! | module | what | may use |\n//! |---|---|---|\n//! | [`driver`] | verbs | `union` |\n\
             //! | [`driver::node`] | inode table | `union::layer` types |\n//! | [`union`] | layers | `sys` |\n\
             //! | [`fuse`] | requests | `driver` `sys` |\n//! | [`sys`] | calls | nothing |\n",
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
            ("src/bin/stratafs.rs", "use fuser::Session;", "fuser outside"),
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
