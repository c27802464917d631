//! `report`: one page for a browser that needs nothing else, no network and no other file.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};
use stratafs::store::Image;
use stratafs::store::anatomy::{Anatomy, Effect, Kind};
use stratafs::text::{shown, shown_bytes};

use super::{commands, wasted_percent};
use crate::images::names;

const PAGE: &str = include_str!("report/page.html");
const STYLE: &str = include_str!("report/page.css");
const SCRIPT: &str = include_str!("report/page.js");

/// Number of wasted files in the page; the sums include all.
const WASTED_LISTED: usize = 1000;

/// The page.
pub fn page(image: &Image, anatomy: &Anatomy) -> Result<String> {
    let title = shown(&image.label()).into_owned();
    // In a script element, only `</` and `<!` end or change anything, so the data must contain no `<`.
    let data = serde_json::to_string(&data(image, anatomy))?.replace('<', "\\u003c").replace('\u{2028}', "\\u2028");
    let parts =
        [("@TITLE@", html(&title)), ("@STYLE@", STYLE.to_owned()), ("@SCRIPT@", SCRIPT.to_owned()), ("@DATA@", data)];
    // Replaced in one pass, so that data which looks like a placeholder is not replaced.
    let mut page = String::with_capacity(PAGE.len() + SCRIPT.len() + 1024);
    let mut rest = PAGE;
    while let Some((at, (mark, text))) =
        parts.iter().filter_map(|part| Some((rest.find(part.0)?, part))).min_by_key(|(at, _)| *at)
    {
        page.push_str(&rest[..at]);
        page.push_str(text);
        rest = &rest[at + mark.len()..];
    }
    page.push_str(rest);
    Ok(page)
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A directory of the page's tree.
#[derive(Default)]
struct Node {
    leaf: Option<Value>,
    layer: usize,
    children: BTreeMap<Vec<u8>, Node>,
}

impl Node {
    /// `[name, bytes, layer, kind]` for a file, `[name, layer, [children]]` for a directory.
    fn document(&self, name: &[u8]) -> Value {
        match &self.leaf {
            Some(leaf) => leaf.clone(),
            None => {
                let children: Value = self.children.iter().map(|(name, child)| child.document(name)).collect();
                json!([shown_bytes(name), self.layer, children])
            }
        }
    }
}

fn tree(anatomy: &Anatomy) -> Value {
    let mut root = Node::default();
    for (path, shown) in &anatomy.shown {
        let mut node = &mut root;
        let mut name: &[u8] = b"";
        for part in path.split(|&byte| byte == b'/') {
            node = node.children.entry(part.to_vec()).or_default();
            name = part;
        }
        node.layer = shown.layer;
        let kind = match shown.kind {
            Kind::Directory => continue,
            Kind::File => 0,
            Kind::Symlink => 1,
            Kind::Special => 2,
        };
        node.leaf = Some(json!([shown_bytes(name), shown.bytes, shown.layer, kind]));
    }
    root.document(b"")
}

fn data(image: &Image, anatomy: &Anatomy) -> Value {
    let commands = commands(image);
    let layer = |(number, part): (usize, &stratafs::store::anatomy::Part)| {
        let count = |effect: Effect| part.changes.iter().filter(|change| change.effect == effect).count();
        json!({"id": part.diff_id, "command": commands.get(number), "bytes": part.bytes, "files": part.files,
            "wasted": anatomy.wasted_of(number), "hides": part.changes.iter().map(|change| change.hides).sum::<u64>(),
            "added": count(Effect::Added), "replaced": count(Effect::Replaced), "deleted": count(Effect::Deleted)})
    };
    let waste = |waste: &stratafs::store::anatomy::Waste| {
        json!([
            shown_bytes(&[b"/", waste.path.as_slice()].concat()),
            waste.bytes,
            waste.layer,
            waste.hidden_by,
            waste.deleted
        ])
    };
    let step = |line: stratafs::image::config::History| {
        json!({"created": line.created, "by": line.created_by, "comment": line.comment, "author": line.author,
            "empty": line.empty_layer == Some(true)})
    };
    let document = image.config.document();
    let field = |name: &str| document.get(name).cloned().unwrap_or(Value::Null);
    json!({
        "label": image.label(),
        "id": image.id(),
        "names": names(image),
        "created": field("created"),
        "platform": image.config.platform().map(|platform| platform.to_string()),
        "config": field("config"),
        "bytes": anatomy.bytes(),
        "wasted": anatomy.wasted_bytes(),
        "wastedPercent": wasted_percent(anatomy),
        "wastedFiles": anatomy.wasted.len(),
        "files": anatomy.shown.values().filter(|shown| shown.kind != Kind::Directory).count(),
        "layers": anatomy.parts.iter().enumerate().map(layer).collect::<Value>(),
        "waste": anatomy.wasted.iter().take(WASTED_LISTED).map(waste).collect::<Value>(),
        "history": image.config.history().into_iter().map(step).collect::<Value>(),
        "tree": tree(anatomy),
        "version": env!("CARGO_PKG_VERSION"),
    })
}
