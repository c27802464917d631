//! Volumes: directories of the host, and named volumes, that a container sees.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::paths::clean;
use crate::image::{ImageError, Result};

/// A directory or file of the host that a container sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// The path on the host.
    pub source: PathBuf,
    /// The path in the container.
    pub destination: PathBuf,
    /// True if the container cannot change it.
    pub read_only: bool,
    /// The name, if it is a named volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Which way mounts below it spread (`rslave`, mount_namespaces(7)); `rprivate` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propagation: Option<String>,
}

impl Volume {
    /// A writable file or directory of the host.
    pub(super) fn bind(source: PathBuf, destination: PathBuf) -> Self {
        Self { source, destination, read_only: false, volume: None, propagation: None }
    }
}

impl std::str::FromStr for Volume {
    type Err = ImageError;

    /// `SOURCE:DESTINATION[:OPTIONS]`. The last `:/` is between source and destination, so that a source may have colons in
    /// its name. A source without a slash is the name of a volume.
    fn from_str(text: &str) -> Result<Self> {
        let bad = |reason: &str| ImageError::malformed(text, reason);
        let form = "a volume reads SOURCE:DESTINATION[:ro], with an absolute destination";
        let at = text.rfind(":/").ok_or_else(|| bad(form))?;
        let (source, rest) = (&text[..at], &text[at + 1..]);
        let (destination, options) = rest.split_once(':').unwrap_or((rest, "rw"));
        let (mut read_only, mut propagation) = (false, None);
        for option in options.split(',') {
            match option {
                "ro" | "readonly" => read_only = true,
                // Accepted without effect: there are no labels and no other machine here.
                "rshared" | "shared" | "rslave" | "slave" | "rprivate" | "private" => {
                    propagation = Some(option.to_owned())
                }
                "rw" | "z" | "Z" | "nocopy" | "cached" | "delegated" | "consistent" => {}
                _ => return Err(bad("the options of a volume are ro, rw, and rshared, rslave or rprivate")),
            }
        }
        let volume = Self::new(source, destination, read_only).map_err(|reason| bad(&reason))?;
        Ok(Self { propagation, ..volume })
    }
}

impl Volume {
    /// A directory of the host, or the named volume `source`.
    ///
    /// # Errors
    /// The reason, if it is not possible.
    pub fn new(source: &str, destination: &str, read_only: bool) -> std::result::Result<Self, String> {
        if !destination.starts_with('/') || source.is_empty() {
            return Err("a volume reads SOURCE:DESTINATION[:ro], with an absolute destination".to_owned());
        }
        let destination = clean(Path::new(destination));
        if destination == Path::new("/") {
            return Err("a volume cannot be the whole file system of a container".to_owned());
        }
        let is_path = source.starts_with('/') || source.starts_with("./") || source.starts_with("../") || source == ".";
        if !is_path {
            if source.contains('/') {
                return Err(format!("a directory begins with / or ./ (./{source})"));
            }
            let volume = Some(source.to_owned());
            return Ok(Self { source: PathBuf::new(), destination, read_only, volume, propagation: None });
        }
        let source = std::path::absolute(source).map_err(|error| error.to_string())?;
        Ok(Self { source, destination, read_only, volume: None, propagation: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes() {
        let volume: Volume = "/a:/b:ro".parse().expect("volume");
        assert_eq!(volume, Volume { read_only: true, ..Volume::bind("/a".into(), "/b".into()) });
        let table = [
            ("/a:b:/c", "/a:b", "/c"),
            ("/a:/b:/c", "/a:/b", "/c"),
            ("/a\\:/c", "/a\\", "/c"),
            ("/a b:/c d", "/a b", "/c d"),
            ("/a:/b/../c//d/", "/a", "/c/d"),
        ];
        for (text, source, destination) in table {
            let volume: Volume = text.parse().expect(text);
            let expected = Volume::bind(source.into(), destination.into());
            assert_eq!(volume, expected, "{text}");
        }
        let spread: Volume = "/a:/b:ro,rslave".parse().expect("volume");
        assert_eq!((spread.read_only, spread.propagation.as_deref()), (true, Some("rslave")));
        let named: Volume = "cache:/c".parse().expect("a name");
        assert_eq!((named.volume.as_deref(), named.source.as_os_str().is_empty()), (Some("cache"), true));
        assert!("./cache:/c".parse::<Volume>().expect("a directory").source.ends_with("cache"));
        for bad in ["a/b:/c", "/a", "/a:b", ":/b", "/a:/b:x", "/a:/", "/a:/.", "/a://", "/a:/b/..", "/a:/:ro"] {
            assert!(bad.parse::<Volume>().is_err(), "{bad}");
        }
    }
}
