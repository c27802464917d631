//! Pictures of images and containers: trees of layers' changes, wasted bytes, and a page for a browser.

pub mod report;
pub mod tree;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use stratafs::image::snapshot::{Change, ChangeKind};
use stratafs::store::anatomy::{Anatomy, Effect, Kind, Part, absolute};
use stratafs::store::{Image, Store, short_id};
use stratafs::text::{shown, shown_bytes};

use super::args::Layers;
use super::output::{print_json, print_line, print_table, shorten, size};
use tree::Tree;

/// Number of wasted files in the table without `--all`.
const LISTED: usize = 40;

/// Width of a command.
const COMMAND_WIDTH: usize = 70;

/// The commands that made the layers, the lowest first, from the image's history.
pub fn commands(image: &Image) -> Vec<String> {
    let history = image.config.history();
    let lines = history.into_iter().filter(|line| line.empty_layer != Some(true));
    let told = |line: stratafs::image::config::History| {
        let text = line.created_by.filter(|text| !text.trim().is_empty()).or(line.comment).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    lines.map(told).collect()
}

/// `layers --tree`: the changes of each layer, the topmost first.
pub fn layers(image: &Image, anatomy: &Anatomy, depth: usize) -> Result<()> {
    let commands = commands(image);
    for (number, part) in anatomy.parts.iter().enumerate().rev() {
        let command = commands.get(number).map(String::as_str).unwrap_or_default();
        print_line(&format!("{}  {}", short_id(&part.diff_id), shorten(command, COMMAND_WIDTH)))?;
        print_line(&summary(part, anatomy.wasted_of(number)))?;
        let mut tree = Tree::default();
        for change in &part.changes {
            let mark = match change.effect {
                Effect::Added => 'A',
                Effect::Replaced => 'C',
                Effect::Deleted => 'D',
            };
            tree.insert(&change.path, mark, change.adds, change.hides);
        }
        tree.print(depth, true)?;
        if number > 0 {
            print_line("")?;
        }
    }
    Ok(())
}

fn summary(part: &Part, wasted: u64) -> String {
    let count = |effect: Effect| part.changes.iter().filter(|change| change.effect == effect).count();
    let hides: u64 = part.changes.iter().map(|change| change.hides).sum();
    let wasted = if wasted > 0 { format!("; {} of it hidden by layers above", size(wasted)) } else { String::new() };
    format!(
        "  {} in {} files: {} added, {} replaced, {} deleted; hides {}{wasted}",
        size(part.bytes),
        part.files,
        count(Effect::Added),
        count(Effect::Replaced),
        count(Effect::Deleted),
        size(hides),
    )
}

/// Percentage of the image's bytes that no container sees.
pub fn wasted_percent(anatomy: &Anatomy) -> f64 {
    match anatomy.bytes() {
        0 => 0.0,
        bytes => anatomy.wasted_bytes() as f64 * 100.0 / bytes as f64,
    }
}

/// `layers --wasted`.
pub fn wasted(image: &Image, anatomy: &Anatomy, args: &Layers) -> Result<()> {
    let percent = wasted_percent(anatomy);
    if args.json {
        let file = |waste: &stratafs::store::anatomy::Waste| {
            json!({"Path": String::from_utf8_lossy(&absolute(&waste.path)), "Bytes": waste.bytes,
                "Layer": id(anatomy, waste.layer), "HiddenBy": id(anatomy, waste.hidden_by), "Deleted": waste.deleted})
        };
        print_json(&json!({"Size": anatomy.bytes(), "Wasted": anatomy.wasted_bytes(), "WastedPercent": percent,
            "Files": anatomy.wasted.iter().map(file).collect::<Value>()}))?;
    } else {
        let row = |waste: &stratafs::store::anatomy::Waste| {
            let how = if waste.deleted { "deleted by" } else { "replaced by" };
            vec![
                size(waste.bytes),
                number(anatomy, waste.layer),
                format!("{how} {}", number(anatomy, waste.hidden_by)),
                shown_bytes(&absolute(&waste.path)),
            ]
        };
        let listed = if args.all { usize::MAX } else { LISTED };
        let rows: Vec<Vec<String>> = anatomy.wasted.iter().take(listed).map(row).collect();
        if !rows.is_empty() {
            print_table(&["SIZE", "LAYER", "HIDDEN", "PATH"], &rows)?;
        }
        if anatomy.wasted.len() > rows.len() {
            print_line(&format!("and {} smaller files (--all)", anatomy.wasted.len() - rows.len()))?;
        }
        let (wasted, all) = (size(anatomy.wasted_bytes()), size(anatomy.bytes()));
        print_line(&format!("{wasted} of {all} are wasted ({percent:.1}%)"))?;
    }
    match args.max_wasted {
        Some(most) if percent > most.0 => {
            bail!("{}: {percent:.1}% of its bytes are wasted, more than {}%", image.label(), most.0)
        }
        _ => Ok(()),
    }
}

fn id(anatomy: &Anatomy, number: usize) -> Option<String> {
    anatomy.parts.get(number).map(|part| part.diff_id.to_string())
}

/// Layers are counted from 1, the lowest.
fn number(anatomy: &Anatomy, number: usize) -> String {
    let id = anatomy.parts.get(number).map(|part| short_id(&part.diff_id)).unwrap_or_default();
    format!("{} ({id})", number + 1)
}

/// `diff --tree`. `bytes` returns the size of a path.
pub fn diff(changes: &[Change], depth: usize, bytes: impl Fn(&[u8]) -> u64) -> Result<()> {
    let mut tree = Tree::default();
    for change in changes {
        let mark = match change.kind {
            ChangeKind::Added => 'A',
            ChangeKind::Changed => 'C',
            ChangeKind::Deleted => 'D',
        };
        let path = change.path.strip_prefix(b"/").unwrap_or(&change.path);
        let adds = if change.kind == ChangeKind::Deleted { 0 } else { bytes(path) };
        tree.insert(path, mark, adds, 0);
    }
    tree.print(depth, false)
}

/// `report`: writes the page.
pub fn report(store: &Store, args: &super::args::Report) -> Result<()> {
    let image = store.find(&args.image)?;
    let anatomy = Anatomy::of(&store.layers_of(&image)?)?;
    let page = report::page(&image, &anatomy)?;
    super::archives::write_bytes(args.output.as_deref(), page.as_bytes())?;
    let files = anatomy.shown.values().filter(|shown| shown.kind != Kind::Directory).count();
    if let Some(path) = &args.output {
        print_line(&format!("{}: {}, {} files", shown(&path.display().to_string()), image.label(), files))?;
    }
    Ok(())
}
