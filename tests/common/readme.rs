//! The shell blocks of README.md and of the pages in `docs/`.
//!
//! A block is a fence of the language `sh`. Blocks of one section (a heading of the second level) belong together: a reader
//! runs them in sequence, in a directory that is empty at first. A comment `<!-- not run: REASON -->` or `<!-- run by: TEST OR
//! SCRIPT -->` in the line above the fence exempts a block.

use std::path::{Path, PathBuf};

/// One section of a page with the shell lines of its blocks.
#[derive(Debug, PartialEq, Eq)]
pub struct Section {
    pub page: String,
    pub title: String,
    pub lines: String,
    /// The comment above the block, if it is exempt.
    pub exempt: Option<String>,
}

/// The blocks of all pages; an exempt block is a section of its own.
pub fn sections() -> Vec<Section> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut pages: Vec<PathBuf> = docs.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    pages.push(root.join("README.md"));
    pages.sort();
    let page = |path: &PathBuf| {
        let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        sections_of(&name, &std::fs::read_to_string(path).unwrap())
    };
    pages.iter().flat_map(page).collect()
}

/// The exempt block that `name` is said to run.
pub fn block_run_by(name: &str) -> String {
    let said = format!("run by: {name}");
    let found = sections().into_iter().find(|section| section.exempt.as_deref() == Some(&said));
    found.unwrap_or_else(|| panic!("no page says <!-- {said} -->")).lines
}

fn sections_of(page: &str, text: &str) -> Vec<Section> {
    let mut found: Vec<Section> = Vec::new();
    let (mut title, mut above, mut fence) = (String::new(), "", None::<bool>);
    for line in text.lines() {
        if line.starts_with("```") {
            if fence.is_some() {
                fence = None;
            } else {
                fence = Some(line == "```sh");
                let said = above.strip_prefix("<!-- ").and_then(|said| said.strip_suffix(" -->"));
                let exempt = said.filter(|said| said.starts_with("not run: ") || said.starts_with("run by: "));
                let apart =
                    found.last().is_none_or(|last| last.title != title || last.exempt.is_some() || exempt.is_some());
                if line == "```sh" && apart {
                    let (page, title, exempt) = (page.to_owned(), title.clone(), exempt.map(str::to_owned));
                    found.push(Section { page, title, lines: String::new(), exempt });
                }
            }
        } else if fence == Some(true) {
            let section = found.last_mut().expect("the fence opened one");
            section.lines.push_str(line);
            section.lines.push('\n');
        } else if fence.is_none()
            && let Some(heading) = line.strip_prefix("## ")
        {
            title = heading.to_owned();
        }
        above = line;
    }
    found
}

#[test]
fn blocks_are_found() {
    let text = "# P\n## A\n```sh\na # b\n```\n```toml\nno\n## no\n```\n```sh\nc\n```\n## B\n<!-- not run: x -->\n```sh\nd\n```\n\
                ```sh\ne\n```\n```\nno\n```\n## C\n```sh\nf\n```\n";
    let found = sections_of("p", text);
    let shown: Vec<_> = found.iter().map(|s| (s.title.as_str(), s.lines.as_str(), s.exempt.as_deref())).collect();
    assert_eq!(
        shown,
        [("A", "a # b\nc\n", None), ("B", "d\n", Some("not run: x")), ("B", "e\n", None), ("C", "f\n", None),]
    );
}
