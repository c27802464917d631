//! An image's configuration (OCI image specification, "Image Configuration"; docker writes the same document).
//! Its bytes are its identity: an image's id is their sha256. Unknown fields, order and exact bytes are kept.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::image::digest::Digest;
use crate::image::document;
use crate::image::spec::Platform;
use crate::image::time::Timestamp;
use crate::image::{ImageError, Result};

mod change;
mod signal;
mod words;
pub use change::ConfigChange;

/// A configuration and its original bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageConfig {
    bytes: Vec<u8>,
    document: Map<String, Value>,
    diff_ids: Vec<Digest>,
}

/// One line of an image's history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Time, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The author.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// The command that made the layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// The message of a commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// True if the step made no layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_layer: Option<bool>,
}

/// How to run a container of the image. A field that is missing, null or of another shape is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// `USER[:GROUP]`, names or numbers.
    pub user: String,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// The command's fixed beginning.
    pub entrypoint: Vec<String>,
    /// The command, or its default arguments.
    pub cmd: Vec<String>,
    /// The working directory.
    pub working_dir: String,
    /// Directories whose content should outlive the container.
    pub volumes: Vec<String>,
    /// The signal that asks it to end.
    pub stop_signal: i32,
}

impl ImageConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// When it is not a JSON object, or `rootfs.diff_ids` is not a list of sha256 digests.
    pub fn parse(name: &str, bytes: Vec<u8>) -> Result<Self> {
        let bad = |reason: String| ImageError::document(name, reason);
        let value = document::value(&bytes).map_err(|error| bad(error.to_string()))?;
        let object = document::object(value).ok_or_else(|| bad("is not a JSON object".to_owned()))?;
        let document = document::normal(object, document::CONFIG).map_err(bad)?;
        let diff_ids = match document.get("rootfs").and_then(|rootfs| rootfs.get("diff_ids")) {
            None => Vec::new(),
            Some(list) => Vec::<Digest>::deserialize(list).map_err(|error| bad(format!("rootfs.diff_ids: {error}")))?,
        };
        Ok(Self { bytes, document, diff_ids })
    }

    /// The configuration of an image without layers, for this machine's platform.
    ///
    /// # Errors
    /// None in practice.
    pub fn empty(platform: &Platform, created: Timestamp) -> Result<Self> {
        let mut document = Map::new();
        document.insert("created".to_owned(), json!(created.to_string()));
        document.insert("architecture".to_owned(), json!(platform.architecture));
        if let Some(variant) = &platform.variant {
            document.insert("variant".to_owned(), json!(variant));
        }
        document.insert("os".to_owned(), json!(platform.os));
        document.insert("config".to_owned(), json!({}));
        document.insert("rootfs".to_owned(), json!({"type": "layers", "diff_ids": []}));
        document.insert("history".to_owned(), json!([]));
        Self::from_document(document)
    }

    fn from_document(document: Map<String, Value>) -> Result<Self> {
        let bytes = serde_json::to_vec(&document).map_err(|error| ImageError::document("config", error))?;
        Self::parse("config", bytes)
    }

    /// This configuration with one more layer and one more line of history. Everything else stays, except for `changes`.
    ///
    /// # Errors
    /// When a part that must change does not have the shape that the specification demands.
    pub fn with_layer(&self, diff_id: Digest, history: &History, changes: &[ConfigChange]) -> Result<Self> {
        Self::add_layer(self.document.clone(), diff_id, history, changes)
    }

    /// This configuration with one layer and one line of history in place of all present ones.
    ///
    /// # Errors
    /// As [`with_layer`](Self::with_layer).
    pub(crate) fn with_only_layer(&self, diff_id: Digest, history: &History, changes: &[ConfigChange]) -> Result<Self> {
        let mut document = self.document.clone();
        document.insert("history".to_owned(), json!([]));
        document.insert("rootfs".to_owned(), json!({"type": "layers", "diff_ids": []}));
        Self::add_layer(document, diff_id, history, changes)
    }

    fn add_layer(
        mut document: Map<String, Value>,
        diff_id: Digest,
        history: &History,
        changes: &[ConfigChange],
    ) -> Result<Self> {
        complete(&mut document);
        if let Some(created) = &history.created {
            document.insert("created".to_owned(), json!(created));
        }
        if let Some(author) = &history.author {
            document.insert("author".to_owned(), json!(author));
        }
        let diff_ids = document.get_mut("rootfs").and_then(|rootfs| rootfs.get_mut("diff_ids"));
        let Some(Value::Array(diff_ids)) = diff_ids else {
            return Err(ImageError::document("config", "rootfs.diff_ids is not a list"));
        };
        let below = diff_ids.len();
        diff_ids.push(json!(diff_id));
        let line = serde_json::to_value(history).map_err(|error| ImageError::document("history", error))?;
        let lines = document.entry("history").or_insert_with(|| json!([]));
        let Value::Array(lines) = lines else { return Err(ImageError::document("config", "history is not a list")) };
        match_layers(lines, below);
        lines.push(line);
        if !changes.is_empty() {
            let process = document.entry("config").or_insert_with(|| json!({}));
            let Value::Object(process) = process else {
                return Err(ImageError::document("config", "config is not an object"));
            };
            ConfigChange::apply_all(changes, process)?;
        }
        Self::from_document(document)
    }

    /// The image's id.
    pub fn id(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    /// The exact bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The document, for showing.
    pub fn document(&self) -> &Map<String, Value> {
        &self.document
    }

    /// The digests of the layers' uncompressed tars, the lowest first.
    pub fn diff_ids(&self) -> &[Digest] {
        &self.diff_ids
    }

    /// Time of creation.
    pub fn created(&self) -> Option<Timestamp> {
        // Go's zero time was dropped when the document was read.
        self.document.get("created").and_then(Value::as_str).and_then(Timestamp::parse)
    }

    /// Its platform, if it names one.
    pub fn platform(&self) -> Option<Platform> {
        let field = |name: &str| self.document.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let variant = field("variant").map(str::to_owned);
        Some(Platform {
            architecture: field("architecture")?.to_owned(),
            os: field("os")?.to_owned(),
            variant,
            unknown: Map::new(),
        })
    }

    /// The history, the oldest line first. Lines of another shape read as empty.
    pub fn history(&self) -> Vec<History> {
        let lines = self.document.get("history").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        lines.iter().map(|line| History::deserialize(line).unwrap_or_default()).collect()
    }

    /// How to run it.
    pub fn process(&self) -> Process {
        let config = self.document.get("config");
        let field = |name: &str| config.and_then(|config| config.get(name));
        let text = |name: &str| field(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let list = |name: &str| -> Vec<String> {
            let items = field(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let volumes = field("Volumes").and_then(Value::as_object);
        let working_dir = text("WorkingDir");
        Process {
            user: text("User"),
            env: list("Env"),
            entrypoint: list("Entrypoint"),
            cmd: list("Cmd"),
            // A relative path starts at the root.
            working_dir: if working_dir.is_empty() { working_dir } else { absolute(&working_dir, "/") },
            volumes: volumes.map(|volumes| volumes.keys().cloned().collect()).unwrap_or_default(),
            stop_signal: stop_signal(&text("StopSignal")),
        }
    }
}

/// The signal that asks a container to end. SIGTERM if the image names no signal or an unknown one, as in moby.
fn stop_signal(name: &str) -> i32 {
    const TERM: i32 = 15;
    match signal::number(name) {
        Some(number) => number,
        None => {
            if !name.is_empty() {
                tracing::warn!("{name}: the image's stop signal is none; SIGTERM is sent instead");
            }
            TERM
        }
    }
}

/// True for a signal's name, with or without `SIG`, or its number.
pub fn is_signal(text: &str) -> bool {
    signal::number(text).is_some()
}

/// Resolves `path` relative to `from`, without `.`, `..` and repeated slashes.
fn absolute(path: &str, from: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("/{from}/{path}") };
    let mut steps: Vec<&str> = Vec::new();
    for step in whole.split('/') {
        match step {
            "" | "." => {}
            ".." => drop(steps.pop()),
            step => steps.push(step),
        }
    }
    format!("/{}", steps.join("/"))
}

/// Adds required fields that an old or careless tool left out.
fn complete(document: &mut Map<String, Value>) {
    let host = Platform::host();
    for (name, ours) in [("architecture", host.architecture), ("os", host.os)] {
        let value = document.entry(name).or_insert_with(|| json!(""));
        if value == "" {
            *value = json!(ours);
        }
    }
    let rootfs = document.entry("rootfs").or_insert_with(|| json!({}));
    if let Some(rootfs) = rootfs.as_object_mut() {
        rootfs.entry("type").or_insert_with(|| json!("layers"));
        rootfs.entry("diff_ids").or_insert_with(|| json!([]));
    }
}

/// Makes the number of history lines with a layer equal to the number of layers: podman and docker refuse the image
/// otherwise. Missing lines are assumed for the upper layers, and so are superfluous lines.
fn match_layers(lines: &mut Vec<Value>, layers: usize) {
    let mut told = 0;
    for line in lines.iter_mut() {
        let Some(line) = line.as_object_mut().filter(|line| line.get("empty_layer") != Some(&json!(true))) else {
            continue;
        };
        told += 1;
        if told > layers {
            line.insert("empty_layer".to_owned(), json!(true));
        }
    }
    for _ in told..layers {
        lines.push(json!({"comment": "missing from the history"}));
    }
}

/// The chain id of every layer, the lowest first (OCI image specification, "Layer ChainID").
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => *diff_id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[test]
    fn a_commit_keeps_order_and_unknown_fields() {
        let parent = format!(
            r#"{{"zeta":{{"b":1,"a":[2]}},"config":{{"Odd":true,"Cmd":["x"]}},"rootfs":{{"type":"layers","diff_ids":["{A}"]}},"history":[{{"x-note":"kept"}}],"os":"linux","architecture":"amd64"}}"#
        );
        let config = ImageConfig::parse("c", parent.clone().into_bytes()).expect("parse");
        assert_eq!(config.bytes(), parent.as_bytes());
        let history = History { comment: Some("why".to_owned()), ..History::default() };
        let change: ConfigChange = r#"CMD ["y"]"#.parse().expect("change");
        let child = config.with_layer(Digest::of(b"layer"), &history, &[change]).expect("with_layer");
        let expected = format!(
            r#"{{"zeta":{{"b":1,"a":[2]}},"config":{{"Odd":true,"Cmd":["y"]}},"rootfs":{{"type":"layers","diff_ids":["{A}","{}"]}},"history":[{{"x-note":"kept"}},{{"comment":"why"}}],"os":"linux","architecture":"amd64"}}"#,
            Digest::of(b"layer")
        );
        assert_eq!(String::from_utf8_lossy(child.bytes()), expected);
        assert_eq!(child.diff_ids().len(), 2);
    }

    #[test]
    fn shapes_that_do_not_fit() {
        for bad in ["[]", "1", "{", r#"{"rootfs":{"diff_ids":["sha256:00"]}}"#, r#"{"rootfs":{"diff_ids":{}}}"#] {
            assert!(ImageConfig::parse("c", bad.as_bytes().to_vec()).is_err(), "{bad}");
        }
        let odd = r#"{"config":{"Env":null,"Cmd":"x","User":5,"Volumes":{"/v":{}},"WorkingDir":"a/../b//c",
            "StopSignal":"NONE"},"rootfs":{"diff_ids":null}}"#;
        let config = ImageConfig::parse("c", odd.as_bytes().to_vec()).expect("parse");
        assert_eq!(config.bytes(), odd.as_bytes(), "what is not changed keeps its bytes");
        let expected = Process {
            cmd: vec!["x".to_owned()],
            user: "5".to_owned(),
            working_dir: "/b/c".to_owned(),
            volumes: vec!["/v".to_owned()],
            stop_signal: 15,
            ..Process::default()
        };
        assert_eq!(config.process(), expected);
    }

    /// `empty_layer` of each line after a commit, above two layers.
    #[test]
    fn a_commit_tells_of_each_layer_once() {
        let table = [
            ("null", vec![false, false, false]),
            ("[]", vec![false, false, false]),
            (r#"[{"created_by":"a"}]"#, vec![false, false, false]),
            (r#"[{"empty_layer":true},{"created_by":"a"}]"#, vec![true, false, false, false]),
            (r#"[{},{},{},{"empty_layer":true},{}]"#, vec![false, false, true, true, true, false]),
            (r#"[null,1]"#, vec![false, false, false]),
            ("{}", vec![false, false, false]),
        ];
        for (history, expected) in table {
            let parent = format!(r#"{{"rootfs":{{"diff_ids":["{A}","{A}"]}},"history":{history}}}"#);
            let config = ImageConfig::parse("c", parent.into_bytes()).expect(history);
            let child = config.with_layer(Digest::of(b"layer"), &History::default(), &[]).expect(history);
            let told: Vec<bool> = child.history().iter().map(|line| line.empty_layer == Some(true)).collect();
            assert_eq!(told, expected, "{history}");
            assert_eq!(child.diff_ids().len(), 3);
            let platform = child.platform().expect("a platform");
            assert_eq!((platform.os, platform.architecture), (Platform::host().os, Platform::host().architecture));
        }
    }

    #[test]
    fn chains() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(chain_ids(&[a, b]), [a, Digest::of(format!("{a} {b}").as_bytes())]);
        assert!(chain_ids(&[]).is_empty());
    }
}
