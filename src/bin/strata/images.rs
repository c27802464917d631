//! Verbs about the names of images: listing, tagging, removing.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};
use stratafs::image::ImageError;
use stratafs::image::digest::Digest;
use stratafs::image::reference::Reference;
use stratafs::image::time::Timestamp;
use stratafs::store::{Image, Removed, Store, StoredLayer, short_id};

use super::args::{Images, Rmi, Tag};
use super::filters::{all_hold, has_label, matches_pattern, moment, truth};
use super::format::{Headings, Template};
use super::output::{created_at, each, print_json, print_line, size};
use super::ps::listed;

const NONE: &str = "<none>";

const HEADINGS: Headings = &[
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("VirtualSize", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("Containers", "CONTAINERS"),
    ("Labels", "LABELS"),
];

const FILTERS: [&str; 7] = ["dangling", "label", "reference", "before", "since", "until", "id"];

pub fn list(store: &Store, args: &Images) -> Result<()> {
    let mut images = store.images()?;
    if let Some(wanted) = &args.name {
        images.iter_mut().for_each(|image| image.names.retain(|name| means(wanted, name)));
        images.retain(|image| !image.names.is_empty());
    }
    let filter = Selection::new(store, args)?;
    let mut shown = Vec::new();
    for mut image in images {
        if filter.selects(&mut image)? {
            shown.push(image);
        }
    }
    if args.style.json {
        let users = users(store)?;
        return Ok(print_json(&shown.iter().map(|image| summary(store, image, &users)).collect())?);
    }
    let id = |image: &Image| if args.no_trunc { image.id().to_string() } else { short_id(&image.id()) };
    if args.style.quiet {
        return Ok(shown.iter().try_for_each(|image| print_line(&id(image)))?);
    }
    let rows = Rows::new(store)?;
    let rows: Vec<Value> = shown.iter().flat_map(|image| rows.of(store, image, &id(image))).collect();
    match &args.style.format {
        Some(template) => template.print(&rows, HEADINGS),
        None => {
            let digest = if args.digests { "{{.Digest}}\t" } else { "" };
            let columns = format!(
                "table {{{{.Repository}}}}\t{{{{.Tag}}}}\t{digest}{{{{.ID}}}}\t{{{{.CreatedSince}}}}\t{{{{.Size}}}}"
            );
            Template::built_in(&columns)?.print(&rows, HEADINGS)
        }
    }
}

/// `--filter`, with the times of the images that it refers to.
struct Selection<'a> {
    args: &'a Images,
    times: BTreeMap<&'a str, Option<Timestamp>>,
}

impl<'a> Selection<'a> {
    fn new(store: &Store, args: &'a Images) -> Result<Self> {
        let mut times = BTreeMap::new();
        for filter in args.filter.iter().filter(|filter| matches!(filter.key.as_str(), "before" | "since")) {
            times.insert(filter.value.as_str(), store.find(&filter.value)?.config.created());
        }
        Ok(Self { args, times })
    }

    /// Removes the names that `reference` does not match from an image.
    fn selects(&self, image: &mut Image) -> Result<bool> {
        let references: Vec<&str> = self
            .args
            .filter
            .iter()
            .filter(|filter| filter.key == "reference")
            .map(|filter| filter.value.as_str())
            .collect();
        if !references.is_empty() {
            image.names.retain(|name| references.iter().any(|pattern| matches_reference(pattern, name)));
        }
        let image = &*image;
        all_hold(&self.args.filter, &FILTERS, |key, value| {
            let created = image.config.created();
            let other = || self.times.get(value).copied().flatten();
            Ok(match key {
                "dangling" => image.names.is_empty() == truth(key, value)?,
                "label" => has_label(&labels(image), value),
                "reference" => !image.names.is_empty(),
                "before" => created < other(),
                "since" => created > other(),
                "until" => created < Some(moment(key, value)?),
                _ => image.id().hex().starts_with(value.trim_start_matches("sha256:")),
            })
        })
    }
}

/// `debian`, `deb*`, `debian:1?`: a pattern without a tag matches every tag.
fn matches_reference(pattern: &str, name: &Reference) -> bool {
    let (repository, tagged) = (name.repository(), name.to_string());
    let full = format!("{repository}:{}", name.tag());
    [repository.as_str(), &tagged, &full].iter().any(|text| matches_pattern(pattern.as_bytes(), text.as_bytes()))
}

pub fn labels(image: &Image) -> Value {
    let labels = image.config.document().get("config").and_then(|config| config.get("Labels")).cloned();
    labels.filter(Value::is_object).unwrap_or_else(|| json!({}))
}

/// `debian` matches every tag of that repository, `debian:12` one.
fn means(wanted: &str, name: &Reference) -> bool {
    let same = |reference: Reference| {
        let tagged = wanted.rsplit('/').next().is_some_and(|last| last.contains(':'));
        reference.repository() == name.repository() && (!tagged || reference.tag() == name.tag())
    };
    wanted.parse().is_ok_and(same) || matches_reference(wanted, name)
}

/// Size of file contents if the layers are here, otherwise of the tars.
pub fn content_size(store: &Store, image: &Image) -> u64 {
    let contents = |layers: Vec<StoredLayer>| layers.iter().map(|layer| layer.record.content_size).sum();
    store.layers_of(image).map_or_else(|_| image.size(), contents)
}

/// Data for the rows of the list other than the image.
struct Rows {
    now: Timestamp,
    users: BTreeMap<Digest, Vec<String>>,
    containers: Vec<Digest>,
}

impl Rows {
    fn new(store: &Store) -> Result<Self> {
        let containers = listed(store)?.iter().map(|container| container.record.image).collect();
        Ok(Self { now: Timestamp::now(), users: users(store)?, containers })
    }

    /// docker's fields as text; one row for each name.
    fn of(&self, store: &Store, image: &Image, id: &str) -> Vec<Value> {
        let created = image.config.created();
        let bytes = content_size(store, image);
        let shared = shared_size(store, image, &self.users);
        let digests = image.repo_digests();
        let row = |repository: &str, tag: &str| {
            let digest =
                digests.iter().filter_map(|digest| digest.split_once('@')).find(|(name, _)| *name == repository);
            json!({
                "Repository": repository,
                "Tag": tag,
                "Digest": digest.map_or(NONE, |(_, digest)| digest),
                "ID": id,
                "CreatedSince": created.map_or_else(|| "N/A".to_owned(), |created| created.ago(self.now)),
                "CreatedAt": created.map_or_else(|| "N/A".to_owned(), created_at),
                "Size": size(bytes),
                "VirtualSize": size(bytes),
                "SharedSize": size(shared),
                "UniqueSize": size(bytes.saturating_sub(shared)),
                "Containers": self.containers.iter().filter(|used| **used == image.id()).count().to_string(),
                "Labels": labels(image),
            })
        };
        match image.names.as_slice() {
            [] => vec![row(NONE, NONE)],
            names => names.iter().map(|name| row(&name.repository(), name.tag())).collect(),
        }
    }
}

/// Size of the layers that other images have too.
fn shared_size(store: &Store, image: &Image, users: &BTreeMap<Digest, Vec<String>>) -> u64 {
    let layers = store.layers_of(image).unwrap_or_default();
    let is_shared = |layer: &&StoredLayer| users.get(&layer.id()).is_some_and(|users| users.len() > 1);
    layers.iter().filter(is_shared).map(|layer| layer.record.content_size).sum()
}

/// The image with the keys of docker's engine.
fn summary(store: &Store, image: &Image, users: &BTreeMap<Digest, Vec<String>>) -> Value {
    json!({
        "Id": image.id(),
        "RepoTags": names(image),
        "RepoDigests": image.repo_digests(),
        "Digest": image.descriptor.digest,
        "Created": image.config.created().map(|created| created.to_string()),
        "Size": image.size(),
        "SharedSize": shared_size(store, image, users),
        "Labels": labels(image),
        "Layers": image.config.diff_ids(),
    })
}

pub fn names(image: &Image) -> Vec<String> {
    image.names.iter().map(Reference::to_string).collect()
}

pub fn tag(store: &Store, args: &Tag) -> Result<()> {
    Ok(store.tag(&store.find(&args.image)?, &args.name)?)
}

pub fn remove(store: &Store, args: &Rmi) -> Result<()> {
    each(&args.images, |image| {
        let Removed { untagged, deleted, .. } = match store.remove(image, args.force) {
            // The image does not exist, as wanted.
            Err(ImageError::NoSuchImage { .. }) if args.force => return Ok(()),
            removed => removed?,
        };
        for name in untagged {
            print_line(&format!("Untagged: {name}"))?;
        }
        Ok(deleted.map_or(Ok(()), |id| print_line(&format!("Deleted: {id}")))?)
    })
}

/// The images that have each layer.
pub fn users(store: &Store) -> Result<BTreeMap<Digest, Vec<String>>> {
    let mut users: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    for image in store.images()? {
        for layer in store.layers_of(&image).unwrap_or_default() {
            users.entry(layer.id()).or_default().push(image.label());
        }
    }
    users.values_mut().for_each(|names| names.dedup());
    Ok(users)
}
