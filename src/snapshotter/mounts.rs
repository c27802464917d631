//! The mounts that show a snapshot, for containerd.

use super::directories::Directories;
use super::{Kind, Labels, Result, Snapshot, SnapshotError};

/// Label with the mapping of user ids in a container's user namespace: `CONTAINER:HOST:COUNT`, several are separated by commas.
pub const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
/// The same for groups.
pub const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";
/// Label of a snapshot that a layer is unpacked into.
const UNPACK_TARGET: &str = "containerd.io/snapshot.ref";

/// One mount, as containerd's `Mount` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Type of the file system. For `fuse3.stratafs`, containerd runs `mount.fuse3 … -t stratafs`.
    pub kind: String,
    /// The source.
    pub source: String,
    /// The options, one in each item.
    pub options: Vec<String>,
}

/// The settings that decide how snapshots are mounted.
pub(super) struct Mounting<'a> {
    pub(super) directories: &'a Directories,
    /// True if layers are unpacked through a mount of type `overlay`.
    pub(super) unpack_directly: bool,
}

impl Mounting<'_> {
    /// The mounts of `snapshot` above the snapshots numbered `lowers`, topmost first.
    ///
    /// # Errors
    /// `Invalid` if its labels have malformed id mappings.
    pub(super) fn of(&self, snapshot: &Snapshot, lowers: &[u64]) -> Result<Vec<Mount>> {
        let owners = id_options(&snapshot.labels)?;
        let mount = match (snapshot.kind, lowers) {
            (Kind::Committed, _) => {
                return Err(SnapshotError::refused(&snapshot.name, "is committed; it has no mounts"));
            }
            // There is only one directory.
            (kind, []) if owners.is_empty() => self.bind(snapshot.id, kind == Kind::View),
            (Kind::View, [only]) if owners.is_empty() => self.bind(*only, true),
            (Kind::Active, _) if owners.is_empty() && self.is_unpacked_directly(snapshot, lowers) => {
                self.overlay(snapshot, lowers)
            }
            _ => self.stratafs(snapshot, lowers, owners),
        };
        Ok(vec![mount])
    }

    /// True if a layer will be unpacked into the snapshot, and containerd writes it into the upper itself. For a mount
    /// of type `overlay`, containerd does so without mounting it. It writes the kernel's marks, which stratafs reads.
    pub(super) fn is_unpacked_directly(&self, snapshot: &Snapshot, lowers: &[u64]) -> bool {
        self.unpack_directly && !lowers.is_empty() && is_for_unpacking(snapshot)
    }

    fn bind(&self, id: u64, read_only: bool) -> Mount {
        let options = [if read_only { "ro" } else { "rw" }, "rbind"].map(str::to_owned).to_vec();
        Mount { kind: "bind".to_owned(), source: self.upper(id), options }
    }

    fn overlay(&self, snapshot: &Snapshot, lowers: &[u64]) -> Mount {
        let mut options =
            vec![self.work_option(snapshot.id), self.upper_option(snapshot.id), self.lower_option(lowers)];
        // In case it is mounted: an index would tie the upper to this mount's layers.
        if std::path::Path::new("/sys/module/overlay/parameters/index").exists() {
            options.push("index=off".to_owned());
        }
        Mount { kind: "overlay".to_owned(), source: "overlay".to_owned(), options }
    }

    fn stratafs(&self, snapshot: &Snapshot, lowers: &[u64], owners: Vec<String>) -> Mount {
        let mut options = Vec::new();
        if snapshot.kind == Kind::Active {
            options.extend([self.work_option(snapshot.id), self.upper_option(snapshot.id)]);
        }
        options.push(self.lower_option(lowers));
        options.extend(owners);
        // Otherwise an attribute of a layer's root would decide.
        options.push("xattr_permissions=0".to_owned());
        Mount { kind: "fuse3.stratafs".to_owned(), source: "stratafs".to_owned(), options }
    }

    fn upper(&self, id: u64) -> String {
        self.directories.upper(id).display().to_string()
    }

    fn upper_option(&self, id: u64) -> String {
        format!("upperdir={}", self.upper(id))
    }

    fn work_option(&self, id: u64) -> String {
        format!("workdir={}", self.directories.work(id).display())
    }

    fn lower_option(&self, lowers: &[u64]) -> String {
        let paths: Vec<String> = lowers.iter().map(|&id| self.upper(id)).collect();
        match paths.is_empty() {
            true => format!("lowerdir={}", self.directories.empty().display()),
            false => format!("lowerdir={}", paths.join(":")),
        }
    }
}

/// True if a layer will be unpacked into it: containerd says so by a label, or (until 1.6) by the key `extract-… CHAINID`.
pub(super) fn is_for_unpacking(snapshot: &Snapshot) -> bool {
    let key = snapshot.name.splitn(3, '/').nth(2).unwrap_or(&snapshot.name);
    key.starts_with("extract-") || snapshot.labels.contains_key(UNPACK_TARGET)
}

/// The options for the id mappings in `labels`. On disk, files have the owners that the container sees.
///
/// # Errors
/// `Invalid`, naming the label.
pub(super) fn id_options(labels: &Labels) -> Result<Vec<String>> {
    let mut options = Vec::new();
    for (label, option) in [(UID_MAPPING, "uidmapping"), (GID_MAPPING, "gidmapping")] {
        let Some(value) = labels.get(label) else { continue };
        let wrong = |reason: &str| SnapshotError::invalid(format!("label {label}={value}"), reason);
        let mut has_root = false;
        let mut ranges = Vec::new();
        for range in value.split(',') {
            let numbers: Option<Vec<u32>> = range.split(':').map(|number| number.parse().ok()).collect();
            let Some([inside, outside, count]) = numbers.as_deref() else {
                return Err(wrong("is not CONTAINER:HOST:COUNT"));
            };
            // The highest number means "no id".
            if *count == 0 || [inside, outside].iter().any(|first| first.checked_add(*count).is_none()) {
                return Err(wrong("holds no ids, or ids that do not exist"));
            }
            has_root |= *inside == 0;
            if ranges.iter().any(|range: &[u32; 3]| overlap(range, &[*inside, *outside, *count])) {
                return Err(wrong("maps ids twice"));
            }
            ranges.push([*inside, *outside, *count]);
        }
        if !has_root {
            return Err(wrong("does not map id 0, which owns the root of an image"));
        }
        options.push(format!("{option}={}", value.replace(',', ":")));
    }
    Ok(options)
}

/// True if two ranges have an id in common, of the container's or of the host's. No user namespace can be made of these.
fn overlap(one: &[u32; 3], other: &[u32; 3]) -> bool {
    let [a, b] = [one, other].map(|&[inside, outside, count]| [inside..inside + count, outside..outside + count]);
    a.iter().zip(&b).any(|(a, b)| a.start < b.end && b.start < a.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_become_options() {
        let labels = |value: &str| Labels::from([(UID_MAPPING.to_owned(), value.to_owned())]);
        for (value, expected) in [
            ("0:100000:65536", Ok("uidmapping=0:100000:65536")),
            ("0:1000:1,1:100000:65535", Ok("uidmapping=0:1000:1:1:100000:65535")),
            ("0:1000", Err("is not CONTAINER:HOST:COUNT")),
            ("", Err("is not CONTAINER:HOST:COUNT")),
            ("0:-1:1", Err("is not CONTAINER:HOST:COUNT")),
            ("0:0:0", Err("holds no ids, or ids that do not exist")),
            ("0:4294967295:2", Err("holds no ids, or ids that do not exist")),
            ("1:100000:65536", Err("does not map id 0, which owns the root of an image")),
            // Next to one another.
            ("0:1000:10,10:1010:10", Ok("uidmapping=0:1000:10:10:1010:10")),
            ("0:1000:10,9:2000:10", Err("maps ids twice")),
            ("0:1000:10,10:1009:10", Err("maps ids twice")),
            ("5:5:10,0:1000:6", Err("maps ids twice")),
        ] {
            let found = id_options(&labels(value)).map_err(|error| error.to_string());
            let expected = match expected {
                Ok(option) => Ok(vec![option.to_owned()]),
                Err(reason) => Err(format!("label {UID_MAPPING}={value}: {reason}")),
            };
            assert_eq!(found, expected, "{value}");
        }
    }
}
