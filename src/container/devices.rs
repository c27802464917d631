//! Devices of the host in a container: `--device`, by path, or by name through the Container Device Interface (CDI: JSON
//! files in `/etc/cdi` and `/var/run/cdi` that describe what a vendor's device needs).

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::image::{ImageError, IoContext, Result, spec};

/// Directories with specifications of devices; a later one overrides an earlier one.
const CDI_DIRS: [&str; 2] = ["/var/run/cdi", "/etc/cdi"];

/// Directories of `/dev` that every container has for itself.
const OWN: [&str; 3] = ["pts", "shm", "mqueue"];

/// Adds the devices named by `words` to an OCI runtime's configuration.
///
/// # Errors
/// When a device does not exist.
pub(super) fn add(document: &mut Value, words: &[String], rootless: bool) -> Result<()> {
    for word in words {
        match word.contains('=') && !word.starts_with('/') {
            true => add_cdi(document, word, &CDI_DIRS.map(Path::new), rootless)?,
            false => add_path(document, word, rootless)?,
        }
    }
    Ok(())
}

/// True if the Container Device Interface knows a device of this name (`VENDOR/CLASS=NAME`).
pub fn is_known(word: &str) -> bool {
    add_cdi(&mut json!({}), word, &CDI_DIRS.map(Path::new), true).is_ok()
}

/// `HOST[:CONTAINER][:PERMISSIONS]`
fn add_path(document: &mut Value, word: &str, rootless: bool) -> Result<()> {
    let bad = || {
        ImageError::malformed(
            format!("--device {word}"),
            "a device reads PATH[:PATH-IN-CONTAINER][:rwm], or VENDOR/CLASS=NAME",
        )
    };
    let parts: Vec<&str> = word.split(':').collect();
    let is_access = |text: &str| !text.is_empty() && text.chars().all(|c| "rwm".contains(c));
    let (host, inside, access) = match parts[..] {
        [host] => (host, host, "rwm"),
        [host, access] if is_access(access) => (host, host, access),
        [host, inside] => (host, inside, "rwm"),
        [host, inside, access] if is_access(access) => (host, inside, access),
        _ => return Err(bad()),
    };
    if !inside.starts_with('/') || !host.starts_with('/') {
        return Err(bad());
    }
    let metadata = fs::metadata(host).at(format!("--device {host}"))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(host).at(host)? {
            let path = entry.at(host)?.path();
            let is_device = fs::metadata(&path).is_ok_and(|found| device_type(&found).is_some());
            if let (true, Some(name)) = (is_device, path.file_name()) {
                add_node(document, &path, &Path::new(inside).join(name), access, rootless)?;
            }
        }
        return Ok(());
    }
    add_node(document, Path::new(host), Path::new(inside), access, rootless)
}

fn device_type(metadata: &fs::Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_char_device() {
        return Some("c");
    }
    kind.is_block_device().then_some("b")
}

fn push(document: &mut Value, path: &[&str], value: Value) {
    let mut place = document;
    for name in path {
        place = &mut place[*name];
    }
    match place {
        Value::Array(list) => list.push(value),
        place => *place = json!([value]),
    }
}

fn add_node(document: &mut Value, host: &Path, inside: &Path, access: &str, rootless: bool) -> Result<()> {
    let metadata = fs::metadata(host).at(host)?;
    let Some(kind) = device_type(&metadata) else {
        return Err(ImageError::refused(format!("--device {}", host.display()), "is no device"));
    };
    if rootless {
        // Devices cannot be made in a user namespace, so the host's is mounted.
        let mount = json!({"destination": inside, "type": "bind", "source": host,
            "options": ["bind", "rprivate", "nosuid", "noexec"]});
        push(document, &["mounts"], mount);
        return Ok(());
    }
    let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    let device = json!({"path": inside, "type": kind, "major": major, "minor": minor, "fileMode": metadata.mode() & 0o777,
        "uid": metadata.uid(), "gid": metadata.gid()});
    push(document, &["linux", "devices"], device);
    let rule = json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": access});
    push(document, &["linux", "resources", "devices"], rule);
    Ok(())
}

/// Adds all devices of the host, for a privileged container.
///
/// # Errors
/// When `/dev` cannot be read.
pub(super) fn add_all(document: &mut Value, rootless: bool) -> Result<()> {
    let mut dirs = vec![PathBuf::from("/dev")];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let name = entry.file_name();
            let is_terminal =
                name.to_str().is_some_and(|name| name.starts_with("tty") || name == "console" || name == "ptmx");
            if metadata.is_dir() && !OWN.iter().any(|own| name == *own) {
                dirs.push(path);
            } else if device_type(&metadata).is_some() && !is_terminal {
                add_node(document, &path, &path, "rwm", rootless)?;
            }
        }
    }
    if !rootless {
        document["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    }
    Ok(())
}

/// `VENDOR/CLASS=NAME`
fn add_cdi(document: &mut Value, word: &str, dirs: &[&Path], rootless: bool) -> Result<()> {
    let (kind, name) = word.split_once('=').unwrap_or((word, ""));
    let mut found = None;
    for path in dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten()).map(|entry| entry.path())
    {
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let specification: Value = spec::parse(&path.display().to_string(), &fs::read(&path).at(&path)?)?;
        if specification["kind"] != kind {
            continue;
        }
        let devices = specification["devices"].as_array().cloned().unwrap_or_default();
        if let Some(device) = devices.into_iter().find(|device| device["name"] == name) {
            found = Some((specification, device));
        }
    }
    let Some((specification, device)) = found else {
        return Err(ImageError::refused(
            format!("--device {word}"),
            "no specification in /etc/cdi or /var/run/cdi has this device",
        ));
    };
    for edits in [&specification["containerEdits"], &device["containerEdits"]] {
        edit(document, edits, rootless)?;
    }
    Ok(())
}

/// Applies the `containerEdits` of a specification.
fn edit(document: &mut Value, edits: &Value, rootless: bool) -> Result<()> {
    let list = |name: &str| edits[name].as_array().cloned().unwrap_or_default();
    for assignment in list("env") {
        push(document, &["process", "env"], assignment);
    }
    for node in list("deviceNodes") {
        let inside = node["path"].as_str().unwrap_or_default().to_owned();
        let host = node["hostPath"].as_str().unwrap_or(&inside).to_owned();
        let access = node["permissions"].as_str().unwrap_or("rwm").to_owned();
        add_node(document, Path::new(&host), Path::new(&inside), &access, rootless)?;
    }
    for mount in list("mounts") {
        let options = mount["options"].as_array().cloned().unwrap_or_else(|| vec![json!("rbind"), json!("ro")]);
        let bind = json!({"destination": mount["containerPath"], "source": mount["hostPath"], "type": "bind",
            "options": options});
        push(document, &["mounts"], bind);
    }
    for hook in list("hooks") {
        let name = hook["hookName"].as_str().unwrap_or_default().to_owned();
        let mut hook = hook;
        if let Some(fields) = hook.as_object_mut() {
            fields.remove("hookName");
        }
        push(document, &["hooks", &name], hook);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Value {
        json!({"process": {"env": []}, "mounts": [], "linux": {"resources": {"devices": []}}})
    }

    #[test]
    fn devices_by_path() {
        let mut document = empty();
        add(&mut document, &["/dev/null:/dev/nothing:r".to_owned()], false).expect("null");
        assert_eq!(document["linux"]["devices"][0]["path"], "/dev/nothing");
        let rule = json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"});
        assert_eq!(document["linux"]["resources"]["devices"][0], rule);
        let mut of_user = empty();
        add(&mut of_user, &["/dev/null".to_owned()], true).expect("null");
        assert_eq!(of_user["mounts"][0]["source"], "/dev/null");
        for bad in ["null", "/dev/null:null", "/dev/null:/x:q", "/nonexistent", "/etc/passwd"] {
            assert!(add(&mut empty(), &[bad.to_owned()], false).is_err(), "{bad}");
        }
    }

    #[test]
    fn devices_by_name() {
        let dir = tempfile::tempdir().expect("tempdir");
        let specification = json!({"cdiVersion": "0.5.0", "kind": "vendor.example/card",
            "containerEdits": {"env": ["ALL=1"]},
            "devices": [{"name": "zero", "containerEdits": {
                "deviceNodes": [{"path": "/dev/card0", "hostPath": "/dev/zero", "permissions": "rw"}],
                "mounts": [{"hostPath": "/etc/passwd", "containerPath": "/lib/card", "options": ["ro", "bind"]}],
                "hooks": [{"hookName": "createContainer", "path": "/bin/true", "args": ["true"]}]}}]});
        fs::write(dir.path().join("card.json"), specification.to_string()).expect("written");
        let mut document = empty();
        add_cdi(&mut document, "vendor.example/card=zero", &[dir.path()], false).expect("the device");
        assert_eq!(document["process"]["env"], json!(["ALL=1"]));
        assert_eq!(document["linux"]["devices"][0]["minor"], 5);
        assert_eq!(document["mounts"][0]["destination"], "/lib/card");
        assert_eq!(document["hooks"], json!({"createContainer": [{"path": "/bin/true", "args": ["true"]}]}));
        let missing = add_cdi(&mut document, "vendor.example/card=one", &[dir.path()], false);
        assert!(missing.expect_err("none").to_string().contains("/etc/cdi"));
    }
}
