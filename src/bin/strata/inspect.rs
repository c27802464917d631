//! `inspect` and `history`.

mod container;

use anyhow::Result;
use serde_json::{Value, json};
use stratafs::container::Container;
use stratafs::image::time::Timestamp;
use stratafs::store::{Image, Store, short_id};

use super::args::{History, Inspect, KindArg};
use super::format::{Headings, Template};
use super::images::names;
use super::output::{created_at, each, print_document, print_json, print_line, shorten, size};

const HEADINGS: Headings = &[
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

/// Width of a command in the table.
const COMMAND_WIDTH: usize = 45;

pub fn inspect(store: &Store, args: &Inspect) -> Result<()> {
    if args.r#type == Some(KindArg::Volume) {
        return super::volumes::inspect(store, &args.names, args.format.as_ref());
    }
    let mut all = Vec::new();
    let found = each(&args.names, |name| {
        if !args.config
            && args.r#type != Some(KindArg::Image)
            && let Some(value) = of_container(store, name, args)?
        {
            all.push(value);
            return Ok(());
        }
        let image = store.find(name)?;
        if args.config {
            print_document(image.config.bytes())?;
        } else {
            all.push(describe(store, &image));
        }
        Ok(())
    });
    match &args.format {
        Some(template) => template.print(&all, &[])?,
        None if !args.config => print_json(&Value::Array(all))?,
        None => {}
    }
    found
}

/// The document of the container with this name; `None` if there is none and the name may be an image's.
fn of_container(store: &Store, name: &str, args: &Inspect) -> Result<Option<Value>> {
    match Container::open(store, name) {
        Ok(container) => container::describe(store, container, args.size).map(Some),
        Err(error) if args.r#type == Some(KindArg::Container) => Err(error.into()),
        Err(_) => Ok(None),
    }
}

/// The fields of `docker image inspect` that have a meaning here, and the directories of the layers.
fn describe(store: &Store, image: &Image) -> Value {
    let document = image.config.document();
    let field = |name: &str| document.get(name).cloned().unwrap_or(Value::Null);
    let layer_dirs: Vec<String> = store
        .layers_of(image)
        .map(|layers| layers.iter().map(|layer| layer.diff().display().to_string()).collect())
        .unwrap_or_default();
    let lower: Vec<&str> = layer_dirs.iter().rev().map(String::as_str).collect();
    json!({
        "Id": image.id(),
        "RepoTags": names(image),
        "RepoDigests": image.repo_digests(),
        "Digest": image.descriptor.digest,
        "Parent": "",
        "Comment": image.config.history().last().and_then(|line| line.comment.clone()).unwrap_or_default(),
        "Created": field("created"),
        "Author": field("author"),
        "Architecture": field("architecture"),
        "Variant": field("variant"),
        "Os": field("os"),
        "Size": image.size(),
        "VirtualSize": image.size(),
        "Config": field("config"),
        "GraphDriver": {"Name": "stratafs", "Data": {"LowerDir": lower.join(":")}},
        "RootFS": {"Type": "layers", "Layers": image.config.diff_ids()},
        "History": field("history"),
        "LayerDirs": layer_dirs,
    })
}

/// A line of an image's history.
struct Step {
    line: stratafs::image::config::History,
    bytes: u64,
}

fn steps(store: &Store, image: &Image) -> Vec<Step> {
    let sizes: Vec<u64> = match store.layers_of(image) {
        Ok(layers) => layers.iter().map(|layer| layer.record.content_size).collect(),
        Err(_) => image.manifest.layers.iter().map(|layer| layer.size).collect(),
    };
    let mut sizes = sizes.into_iter();
    let step = |line: stratafs::image::config::History| {
        let bytes = if line.empty_layer == Some(true) { 0 } else { sizes.next().unwrap_or(0) };
        Step { line, bytes }
    };
    let mut steps: Vec<Step> = image.config.history().into_iter().map(step).collect();
    steps.reverse();
    steps
}

pub fn history(store: &Store, args: &History) -> Result<()> {
    let image = store.find(&args.image)?;
    let steps = steps(store, &image);
    let id_of = |number: usize| match number {
        0 if args.no_trunc => image.id().to_string(),
        0 => short_id(&image.id()),
        _ => "<missing>".to_owned(),
    };
    if args.style.json {
        let document = |(number, step): (usize, &Step)| {
            json!({"Id": if number == 0 { image.id().to_string() } else { id_of(number) },
                "Created": step.line.created, "CreatedBy": step.line.created_by,
                "Author": step.line.author, "Comment": step.line.comment,
                "EmptyLayer": step.line.empty_layer == Some(true), "Size": step.bytes,
                "Tags": if number == 0 { names(&image) } else { Vec::new() }})
        };
        return Ok(print_json(&steps.iter().enumerate().map(document).collect())?);
    }
    if args.style.quiet {
        return Ok((0..steps.len()).try_for_each(|number| print_line(&id_of(number)))?);
    }
    let now = Timestamp::now();
    let row = |(number, Step { line, bytes }): (usize, &Step)| {
        let created = line.created.as_deref().and_then(Timestamp::parse);
        let command = line.created_by.as_deref().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        let since = match (created, args.human) {
            (None, _) => "N/A".to_owned(),
            (Some(created), true) => created.ago(now),
            (Some(created), false) => created.to_string(),
        };
        json!({
            "ID": id_of(number),
            "CreatedSince": since,
            "CreatedAt": created.map_or_else(|| "N/A".to_owned(), created_at),
            "CreatedBy": if args.no_trunc { command } else { shorten(&command, COMMAND_WIDTH) },
            "Size": if args.human { size(*bytes) } else { bytes.to_string() },
            "Comment": line.comment.clone().unwrap_or_default(),
        })
    };
    let rows: Vec<Value> = steps.iter().enumerate().map(row).collect();
    let table = "table {{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";
    match &args.style.format {
        Some(template) => template.print(&rows, HEADINGS),
        None => Template::built_in(table)?.print(&rows, HEADINGS),
    }
}
