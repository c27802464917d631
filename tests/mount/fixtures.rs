//! The stacks in `fixtures/stacks`: each file holds the layers, topmost first, and the tree that they make.

use std::path::PathBuf;

use crate::common::Stack;
use crate::on_both;

/// The sections of a fixture: their names and texts, without comments.
fn sections(text: &str) -> Vec<(String, String)> {
    let mut sections: Vec<(String, String)> = vec![];
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(name) => sections.push((name.to_owned(), String::new())),
            None => {
                let (_, body) = sections.last_mut().expect("a section before the first entry");
                body.push_str(line);
                body.push('\n');
            }
        }
    }
    sections
}

fn stacks() -> Vec<PathBuf> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/stacks");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

on_both! {
    fn stacks_show_their_trees(driver) {
        let paths = stacks();
        assert!(!paths.is_empty());
        for path in paths {
            let text = std::fs::read_to_string(&path).unwrap();
            let mut stack = Stack::new();
            let mut expected = None;
            for (name, body) in sections(&text) {
                match name.as_str() {
                    "lower" => stack = stack.lower(&body),
                    "upper" => stack = stack.upper(&body),
                    "tree" => expected = Some(body),
                    other => panic!("{}: unknown section {other}", path.display()),
                }
            }
            println!("{}", path.display());
            stack.mount(driver).assert_tree(&expected.expect("a section [tree]"));
        }
    }
}
