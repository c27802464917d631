//! Archives of docker before 1.10: no `manifest.json`, but `repositories`, and for each layer a directory with its
//! tar and its part of the configuration (moby's "Docker Image Specification v1.0"). The present form of the
//! configuration is assembled as docker does when it loads them (moby, `image/v1/imagev1.go`,
//! `MakeConfigFromV1Config`).

use std::collections::BTreeMap;
use std::io::{self, BufReader};

use serde_json::{Map, Value, json};

use crate::image::archive::docker::usable_names;
use crate::image::archive::{Archive, FoundImage, FoundLayer};
use crate::image::config::ImageConfig;
use crate::image::digest::{Digest, DigestReader};
use crate::image::document;
use crate::image::error::{ImageError, IoContext, Result};
use crate::image::spec;
use crate::tar::compression::{decoder, sniff};
use crate::tar::limits::Bounded;

/// Docker never allowed as many layers.
const DEPTH: usize = 256;

type Repositories = BTreeMap<String, Option<BTreeMap<String, String>>>;

pub(crate) fn images(archive: &Archive) -> Result<Vec<FoundImage>> {
    let repositories: Repositories = spec::parse(&archive.locate("repositories"), &archive.document("repositories")?)?;
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (repository, tags) in repositories {
        for (tag, id) in tags.unwrap_or_default() {
            names.entry(id).or_default().push(format!("{repository}:{tag}"));
        }
    }
    names.into_iter().map(|(id, names)| image(archive, &id, names)).collect()
}

fn image(archive: &Archive, id: &str, names: Vec<String>) -> Result<FoundImage> {
    let steps = steps(archive, id)?;
    let mut layers = Vec::new();
    let mut history = Vec::new();
    for (id, step) in &steps {
        let member = format!("{id}/layer.tar");
        let throwaway = step.get("throwaway") == Some(&Value::Bool(true));
        if !throwaway {
            layers.push(FoundLayer { diff_id: diff_id(archive, &member)?, member, descriptor: None });
        }
        history.push(history_of(step, throwaway));
    }
    let mut document = steps.into_iter().next_back().map(|(_, step)| step).unwrap_or_default();
    for gone in ["id", "parent", "Size", "parent_id", "layer_id", "throwaway"] {
        document.remove(gone);
    }
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
    document.insert("rootfs".to_owned(), json!({"type": "layers", "diff_ids": diff_ids}));
    document.insert("history".to_owned(), Value::Array(history));
    let config = ImageConfig::parse(&archive.locate(id), spec::serialize("config", &document)?)?;
    Ok(FoundImage { names: usable_names(names), config, layers, manifest: None })
}

/// The image's parts of the configuration, the lowest layer's first.
fn steps(archive: &Archive, top: &str) -> Result<Vec<(String, Map<String, Value>)>> {
    let mut steps = Vec::new();
    let mut next = Some(top.to_owned());
    while let Some(id) = next {
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(archive.error(format!("{id:?} is no layer's id")));
        }
        if steps.len() == DEPTH {
            return Err(archive.error(format!("more than {DEPTH} layers, or one that is its own parent")));
        }
        let member = format!("{id}/json");
        let bad = |reason: String| ImageError::document(archive.locate(&member), reason);
        let value = document::value(&archive.document(&member)?).map_err(|error| bad(error.to_string()))?;
        let step = document::object(value).ok_or_else(|| bad("is not a JSON object".to_owned()))?;
        let step = document::normal(step, document::VERSION_1).map_err(bad)?;
        next = step.get("parent").and_then(Value::as_str).filter(|parent| !parent.is_empty()).map(str::to_owned);
        steps.push((id, step));
    }
    steps.reverse();
    Ok(steps)
}

fn history_of(step: &Map<String, Value>, throwaway: bool) -> Value {
    let mut line = Map::new();
    for field in ["created", "author"] {
        if let Some(value) = step.get(field).filter(|value| value.is_string()) {
            line.insert(field.to_owned(), value.clone());
        }
    }
    let words = step.get("container_config").and_then(|config| config.get("Cmd")).and_then(Value::as_array);
    let command: Vec<&str> = words.into_iter().flatten().filter_map(Value::as_str).collect();
    if !command.is_empty() {
        line.insert("created_by".to_owned(), json!(command.join(" ")));
    }
    if let Some(comment) = step.get("comment").filter(|value| value.is_string()) {
        line.insert("comment".to_owned(), comment.clone());
    }
    if throwaway {
        line.insert("empty_layer".to_owned(), json!(true));
    }
    Value::Object(line)
}

/// These archives do not contain their layers' digests, so each layer is read once more.
fn diff_id(archive: &Archive, member: &str) -> Result<Digest> {
    let location = archive.locate(member);
    let (packing, input) = sniff(archive.member(member)?).at(&location)?;
    let decoder = decoder(BufReader::with_capacity(1 << 18, input), packing).at(&location)?;
    let mut plain = DigestReader::new(Bounded::new(decoder, archive.limits()));
    io::copy(&mut plain, &mut io::sink()).map_err(|error| ImageError::archive(&location, error))?;
    Ok(plain.finish().1)
}
