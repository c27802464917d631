//! The mounts that a container has on top of its image: directories of the host, volumes, directories in memory.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use stratafs::container::Container;

use super::ps::bundle;

/// The kind of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory or file of the host.
    Bind,
    /// A volume; one that belongs to the container alone has a number as its name.
    Volume(String),
    /// A directory in memory.
    Memory(String),
}

/// A mount in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub kind: Kind,
    /// On the host; empty for a directory in memory.
    pub source: PathBuf,
    pub destination: PathBuf,
    pub read_only: bool,
}

impl Seen {
    /// The mounts that the user asked for, and a container's own volumes once it has run.
    pub fn by(container: &Container) -> Vec<Self> {
        let options = &container.record.options;
        let of_user = options.volumes.iter().map(|volume| Self {
            kind: volume.volume.clone().map_or(Kind::Bind, Kind::Volume),
            source: volume.source.clone(),
            destination: volume.destination.clone(),
            read_only: volume.read_only,
        });
        let in_memory = options.tmpfs.iter().map(|word| {
            let (destination, options) = word.split_once(':').unwrap_or((word, ""));
            Self {
                kind: Kind::Memory(options.to_owned()),
                source: PathBuf::new(),
                destination: destination.into(),
                read_only: options.split(',').any(|option| option == "ro"),
            }
        });
        of_user.chain(own_volumes(container)).chain(in_memory).collect()
    }

    /// The name of a volume, or else the source, as `ps` lists mounts.
    pub fn label(&self) -> Option<String> {
        match &self.kind {
            Kind::Bind => Some(self.source.display().to_string()),
            Kind::Volume(name) => Some(name.clone()),
            Kind::Memory(_) => None,
        }
    }

    /// True if `--filter volume=` matches it: by its name, its source or its destination.
    pub fn is_meant_by(&self, word: &str) -> bool {
        let by_name = matches!(&self.kind, Kind::Volume(name) if name == word);
        by_name || self.source == Path::new(word) || self.destination == Path::new(word)
    }

    /// With docker's keys, as `inspect` prints them.
    pub fn document(&self) -> Value {
        let mut document = json!({
            "Type": "bind",
            "Source": self.source.display().to_string(),
            "Destination": self.destination.display().to_string(),
            "Mode": if self.read_only { "ro" } else { "" },
            "RW": !self.read_only,
            "Propagation": "rprivate",
        });
        match &self.kind {
            Kind::Bind => {}
            Kind::Volume(name) => {
                document["Type"] = "volume".into();
                document["Name"] = name.as_str().into();
                document["Driver"] = "local".into();
                document["Propagation"] = "".into();
            }
            Kind::Memory(options) => {
                document["Type"] = "tmpfs".into();
                document["Mode"] = options.as_str().into();
                document["Propagation"] = "".into();
            }
        }
        document
    }
}

/// Directories beside the container's upper, as listed in its bundle.
fn own_volumes(container: &Container) -> Vec<Seen> {
    let (bundle, dir) = (bundle(container), container.dir().join("volumes"));
    let mounts = bundle["mounts"].as_array().into_iter().flatten();
    let own = |mount: &Value| {
        let number = Path::new(mount["source"].as_str()?).strip_prefix(&dir).ok()?;
        Some(Seen {
            kind: Kind::Volume(number.display().to_string()),
            source: dir.join(number),
            destination: mount["destination"].as_str()?.into(),
            read_only: false,
        })
    };
    mounts.filter_map(own).collect()
}
