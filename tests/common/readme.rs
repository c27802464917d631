//! The shell lines of README.md.

use std::collections::BTreeMap;
use std::path::Path;

/// The `sh` blocks of a section of README.md (second level), by the heading of the third level above them.
pub fn blocks(section: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    blocks_of(&text, section)
}

fn blocks_of(text: &str, section: &str) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let (mut inside, mut heading, mut code) = (false, String::new(), false);
    for line in text.lines() {
        if line.starts_with("```") {
            code = !code && line == "```sh";
        } else if code && inside {
            let block = found.entry(heading.clone()).or_default();
            block.push_str(line);
            block.push('\n');
        } else if let Some(title) = line.strip_prefix("## ") {
            inside = title == section;
        } else if let Some(title) = line.strip_prefix("### ") {
            heading = title.to_owned();
        }
    }
    found
}

#[test]
fn blocks_are_found() {
    let text = "## A\n```sh\nno\n```\n## B\n### x\n```sh\na # b\n```\n```toml\nno\n```\n### y\n```sh\nc\n```\n```sh\nd\n```\n## C\n### x\n```sh\nno\n```\n";
    let found = blocks_of(text, "B");
    assert_eq!(found, BTreeMap::from([("x", "a # b\n"), ("y", "c\nd\n")].map(|(k, v)| (k.to_owned(), v.to_owned()))));
}
