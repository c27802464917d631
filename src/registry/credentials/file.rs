//! A file with passwords.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Map, Value};

use crate::image::files::{read_limited, sync_dir};
use crate::image::{ImageError, IoContext, Result};

/// True for the file of docker before 1.7, which holds only the entries of `auths`.
fn is_legacy(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == ".dockercfg")
}

/// Reads a file; `None` if it does not exist.
pub(super) fn read(path: &Path) -> Result<Option<Map<String, Value>>> {
    let name = path.display().to_string();
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error).at(path),
    };
    let bytes = read_limited(&mut file, &name)?;
    if bytes.trim_ascii().is_empty() {
        return Ok(Some(Map::new()));
    }
    let document: Map<String, Value> =
        serde_json::from_slice(&bytes).map_err(|error| ImageError::document(name, error))?;
    match is_legacy(path) && !document.contains_key("auths") {
        true => Ok(Some(Map::from_iter([("auths".to_owned(), Value::Object(document))]))),
        false => Ok(Some(document)),
    }
}

/// Replaces the file; only its owner can read it. If it is a symbolic link, its target is replaced.
pub(super) fn write(path: &Path, mut document: Map<String, Value>) -> Result<()> {
    if is_legacy(path)
        && let Some(Value::Object(auths)) = document.remove("auths")
    {
        document = auths;
    }
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !dir.exists() {
        fs::create_dir_all(dir).at(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).at(dir)?;
    }
    let mut file = tempfile::NamedTempFile::new_in(dir).at(dir)?;
    serde_json::to_writer_pretty(&mut file, &document)
        .map_err(|error| ImageError::document(path.display().to_string(), error))?;
    file.write_all(b"\n").at(&path)?;
    file.as_file().sync_all().at(&path)?;
    file.persist(&path).map_err(|error| error.error).at(&path)?;
    sync_dir(dir)
}
