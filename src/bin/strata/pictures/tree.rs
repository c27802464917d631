//! A tree of paths and their changes, drawn with lines.

use std::collections::BTreeMap;

use anyhow::Result;
use stratafs::text::{shown_bytes, width};

use crate::output::{print_line, size};

/// One directory or file. Directories have the sums of their entries.
#[derive(Debug, Default)]
pub struct Tree {
    children: BTreeMap<Vec<u8>, Tree>,
    /// `A` added, `C` changed, `D` deleted; `None` if only entries inside changed.
    mark: Option<char>,
    adds: u64,
    hides: u64,
    /// Number of marked paths inside, including this one.
    count: usize,
}

impl Tree {
    /// Notes a change at a path (without a leading `/`).
    pub fn insert(&mut self, path: &[u8], mark: char, adds: u64, hides: u64) {
        let mut node = self;
        let count = |node: &mut Self| {
            node.adds += adds;
            node.hides += hides;
            node.count += 1;
        };
        count(node);
        for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
            node = node.children.entry(name.to_vec()).or_default();
            count(node);
        }
        node.mark = Some(mark);
    }

    /// Prints directories up to `depth`, and sums for deeper ones.
    pub fn print(&self, depth: usize, hides: bool) -> Result<()> {
        let mut lines = Vec::new();
        self.draw("", depth, &mut lines);
        let widest = |column: fn(&Line) -> &str| lines.iter().map(|line| width(column(line))).max().unwrap_or(0);
        let (adds, hidden) = (widest(|line| &line.adds), widest(|line| &line.hides));
        for line in &lines {
            let mark = line.mark;
            let hides = if hides { format!("  {:>hidden$}", line.hides) } else { String::new() };
            print_line(format!("  {mark} {:>adds$}{hides}  {}", line.adds, line.text).trim_end())?;
        }
        Ok(())
    }

    fn draw(&self, indent: &str, depth: usize, lines: &mut Vec<Line>) {
        let last = self.children.len().saturating_sub(1);
        for (at, (name, child)) in self.children.iter().enumerate() {
            let (branch, below) = if at == last { ("└── ", "    ") } else { ("├── ", "│   ") };
            let is_dir = !child.children.is_empty();
            let folded = is_dir && depth <= 1;
            let inside = child.count - usize::from(child.mark.is_some());
            let more = if folded { format!("  ({inside} inside)") } else { String::new() };
            let slash = if is_dir { "/" } else { "" };
            let amount =
                |sign: char, bytes: u64| if bytes == 0 { String::new() } else { format!("{sign}{}", size(bytes)) };
            lines.push(Line {
                mark: child.mark.unwrap_or(' '),
                adds: amount('+', child.adds),
                hides: amount('-', child.hides),
                text: format!("{indent}{branch}{}{slash}{more}", shown_bytes(name)),
            });
            if !folded {
                child.draw(&format!("{indent}{below}"), depth - usize::from(is_dir), lines);
            }
        }
    }
}

struct Line {
    mark: char,
    adds: String,
    hides: String,
    text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(depth: usize) -> Vec<String> {
        let mut tree = Tree::default();
        for (path, mark, adds, hides) in
            [("usr", 'C', 0, 0), ("usr/bin/a", 'A', 1000, 0), ("usr/bin/b", 'C', 500, 400), ("etc\u{1b}", 'D', 0, 7)]
        {
            tree.insert(path.as_bytes(), mark, adds, hides);
        }
        let mut lines = Vec::new();
        tree.draw("", depth, &mut lines);
        lines.iter().map(|line| format!("{}|{}|{}|{}", line.mark, line.adds, line.hides, line.text)).collect()
    }

    #[test]
    fn directories_sum_what_is_in_them() {
        assert_eq!(
            drawn(9),
            [
                "D||-7B|├── etc\\u{1b}",
                "C|+1.5kB|-400B|└── usr/",
                " |+1.5kB|-400B|    └── bin/",
                "A|+1kB||        ├── a",
                "C|+500B|-400B|        └── b",
            ]
        );
        assert_eq!(drawn(1), ["D||-7B|├── etc\\u{1b}", "C|+1.5kB|-400B|└── usr/  (2 inside)"]);
    }
}
