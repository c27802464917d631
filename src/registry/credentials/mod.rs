//! Passwords of registries, as docker and podman store them: in `auths` of a JSON file, or in a helper
//! program (`docker-credential-NAME`, protocol of docker-credential-helpers) that the file names.
//!
//! Files are searched in this order, and the first one with a password counts:
//!
//! 1. `--authfile` or `$REGISTRY_AUTH_FILE`; if one is given, it is the only one;
//! 2. `$DOCKER_CONFIG/config.json`, if the variable is set;
//! 3. podman's: `$XDG_RUNTIME_DIR/containers/auth.json`, or `/run/containers/UID/auth.json` if that variable is not set;
//!    `$XDG_CONFIG_HOME/containers/auth.json`, or `~/.config/containers/auth.json`;
//! 4. docker's: `~/.docker/config.json`, and `~/.dockercfg` of docker before 1.7.
//!
//! In a file, the helper for the registry (`credHelpers`, or else `credsStore`) takes precedence over `auths`. There, a
//! key with a path (`HOST/team/tool`, containers-auth.json(5)) takes precedence over a shorter one. If a helper is
//! missing or fails, or a file that the user did not name is damaged, a warning says so and the search goes on.
//!
//! The crate `docker_credential` is not used: it reads only docker's file, with no podman files and no keys with a
//! path, and a missing helper ends its search.

mod file;
mod helper;

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::image::{ImageError, Result};

/// The name under which docker keeps the password of its own registry.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Other names of docker's own registry.
const HUB_ALIASES: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// A user's credentials for a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token with which access tokens are requested.
    Identity(String),
    /// A token that is sent to the registry.
    Token(String),
}

/// Without the secret.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "Password {{ user: {user:?} }}"),
            Self::Identity(_) => f.write_str("Identity"),
            Self::Token(_) => f.write_str("Token"),
        }
    }
}

impl Credentials {
    /// The value of an `Authorization` header; `None` if this is not a password.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Self::Password { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Self::Identity(_) | Self::Token(_) => None,
        }
    }
}

/// The files that are searched for passwords, and the file for new ones.
#[derive(Clone, Debug, Default)]
pub struct Files {
    read: Vec<PathBuf>,
    write: Option<PathBuf>,
    /// True if the user named the file: an error in it is fatal.
    named: bool,
}

impl Files {
    /// The user's files, or `file` alone. A new password is written to docker's file.
    pub fn of_user(file: Option<PathBuf>) -> Self {
        Self::new(file, &|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
    }

    fn new(file: Option<PathBuf>, variable: &dyn Fn(&str) -> Option<PathBuf>) -> Self {
        if let Some(file) = file.or_else(|| variable("REGISTRY_AUTH_FILE")) {
            return Self { read: vec![file.clone()], write: Some(file), named: true };
        }
        let home = variable("HOME");
        let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
        let chosen = variable("DOCKER_CONFIG").map(|dir| dir.join("config.json"));
        let uid = rustix::process::getuid().as_raw();
        let runtime = match variable("XDG_RUNTIME_DIR") {
            Some(dir) => dir.join("containers/auth.json"),
            None => PathBuf::from(format!("/run/containers/{uid}/auth.json")),
        };
        let config = variable("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
        let podman = config.map(|dir| dir.join("containers/auth.json"));
        let docker = in_home(".docker/config.json");
        let write = chosen.clone().or_else(|| docker.clone());
        let all = [chosen, Some(runtime), podman, docker, in_home(".dockercfg")];
        Self { read: all.into_iter().flatten().collect(), write, named: false }
    }

    /// The credentials for a repository of a registry.
    ///
    /// # Errors
    /// When a file that the user named is malformed.
    pub fn find(&self, registry: &str, repository: &str) -> Result<Option<Credentials>> {
        for path in &self.read {
            match self.find_in(path, registry, repository) {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error) if self.named => return Err(error),
                Err(error) => tracing::warn!("{error}; passwords are looked for elsewhere"),
            }
        }
        Ok(None)
    }

    fn find_in(&self, path: &Path, registry: &str, repository: &str) -> Result<Option<Credentials>> {
        let Some(document) = file::read(path)? else { return Ok(None) };
        if let Some(helper) = helper_of(&document, registry) {
            match helper::get(helper, &server(registry)) {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error) => tracing::warn!("{error}; passwords are looked for elsewhere"),
            }
        }
        let Some(auths) = document.get("auths").and_then(Value::as_object) else { return Ok(None) };
        for key in keys(auths, registry, repository) {
            let malformed = || ImageError::document(path.display().to_string(), format!("auths.{key} is malformed"));
            if let Some(found) =
                auths.get(&key).map(|entry| from_entry(entry).ok_or_else(malformed)).transpose()?.flatten()
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Stores a password; returns where.
    ///
    /// # Errors
    /// When the file cannot be replaced, or the helper fails.
    pub fn keep(&self, registry: &str, user: &str, password: &str) -> Result<String> {
        let path = self.write.as_ref().ok_or_else(|| {
            ImageError::refused("password", "there is no place for it: HOME is not set; give --authfile")
        })?;
        let mut document = file::read(path)?.unwrap_or_default();
        if let Some(helper) = helper_of(&document, registry) {
            helper::store(helper, &server(registry), user, password)?;
            return Ok(helper::program(helper));
        }
        let auths = document.entry("auths").or_insert(Value::Null);
        if auths.is_null() {
            *auths = json!({});
        }
        let auths = auths
            .as_object_mut()
            .ok_or_else(|| ImageError::document(path.display().to_string(), "auths is not an object"))?;
        keys(auths, registry, "").iter().for_each(|key| drop(auths.remove(key)));
        auths.insert(server(registry), json!({"auth": STANDARD.encode(format!("{user}:{password}"))}));
        file::write(path, document)?;
        Ok(path.display().to_string())
    }

    /// Removes the password of a registry from all files and helpers; returns false if there was none.
    ///
    /// # Errors
    /// When a file cannot be replaced, or a helper fails.
    pub fn forget(&self, registry: &str) -> Result<bool> {
        let mut forgot = false;
        for path in &self.read {
            let mut document = match file::read(path) {
                Ok(Some(document)) => document,
                Ok(None) => continue,
                Err(error) if self.named => return Err(error),
                Err(error) => {
                    tracing::warn!("{error}");
                    continue;
                }
            };
            if let Some(helper) = helper_of(&document, registry) {
                match helper::get(helper, &server(registry)) {
                    Ok(Some(_)) => {
                        helper::erase(helper, &server(registry))?;
                        forgot = true;
                    }
                    Ok(None) => {}
                    Err(error) => tracing::warn!("{error}"),
                }
            }
            let Some(auths) = document.get_mut("auths").and_then(Value::as_object_mut) else { continue };
            let keys = keys(auths, registry, "");
            if keys.iter().filter(|key| auths.remove(*key).is_some()).count() > 0 {
                file::write(path, document)?;
                forgot = true;
            }
        }
        Ok(forgot)
    }
}

/// Docker's name for a registry in its file and for helpers.
fn server(registry: &str) -> String {
    if HUB_ALIASES.contains(&registry) { DOCKER_HUB.to_owned() } else { registry.to_owned() }
}

/// The names of a registry.
fn names(registry: &str) -> Vec<&str> {
    match HUB_ALIASES.contains(&registry) {
        true => HUB_ALIASES.to_vec(),
        false => vec![registry],
    }
}

/// The keys of `auths` for a repository, the most specific first: those with a path, the longest first; then
/// the registry's own; then addresses, which older versions of docker wrote.
fn keys(auths: &Map<String, Value>, registry: &str, repository: &str) -> Vec<String> {
    let names = names(registry);
    let mut path = repository;
    let mut wanted = Vec::new();
    while !path.is_empty() {
        wanted.extend(names.iter().map(|name| format!("{name}/{path}")));
        path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    wanted.push(server(registry));
    wanted.extend(names.iter().map(|name| (*name).to_owned()));
    let is_address = |key: &&String| {
        let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
        rest.is_some_and(|rest| names.contains(&rest.split('/').next().unwrap_or_default()))
    };
    let mut found: Vec<String> = wanted.into_iter().filter(|key| auths.contains_key(key)).collect();
    found.extend(auths.keys().filter(is_address).cloned());
    found
}

/// `None` if malformed. `Some(None)` for an entry without a password, which docker leaves if a helper stores it.
fn from_entry(entry: &Value) -> Option<Option<Credentials>> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Some(Some(Credentials::Identity(token.to_owned())));
    }
    if let Some(token) = text("registrytoken") {
        return Some(Some(Credentials::Token(token.to_owned())));
    }
    if let Some((user, password)) = text("username").zip(text("password")) {
        return Some(Some(of_pair(user, password)));
    }
    let Some(auth) = text("auth") else { return Some(None) };
    let decoded = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some(Some(of_pair(user, password.trim_end_matches('\0'))))
}

/// Helpers and files store a token as the password of this user.
fn of_pair(user: &str, password: &str) -> Credentials {
    match user {
        "<token>" => Credentials::Identity(password.to_owned()),
        _ => Credentials::Password { user: user.to_owned(), password: password.to_owned() },
    }
}

/// The helper that a file names for a registry.
fn helper_of<'d>(document: &'d Map<String, Value>, registry: &str) -> Option<&'d str> {
    let helpers = document.get("credHelpers").and_then(Value::as_object);
    let server = server(registry);
    let mut keys = std::iter::once(server.as_str()).chain(names(registry));
    let text = |value: &'d Value| value.as_str().filter(|name| !name.is_empty());
    let own = helpers.and_then(|helpers| keys.find_map(|key| helpers.get(key)));
    own.and_then(text).or_else(|| document.get("credsStore").and_then(text))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn files(text: &str) -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("config.json");
        fs::write(&path, text).expect("write");
        let files = Files::of_user(Some(path));
        (dir, files)
    }

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn entries_that_docker_and_podman_write() {
        let (_dir, files) = files(
            r#"{"auths": {"a.example": {"auth": "bWU6cGE6c3M="}, "https://b.example/v1/": {"auth": "eDp5"},
            "https://index.docker.io/v1/": {"username": "u", "password": "p"}, "c.example": {"identitytoken": "t"},
            "d.example": {}, "e.example": {"auth": "%"}, "f.example": {"auth": "bWU="}}}"#,
        );
        for (registry, expected) in [
            ("a.example", password("me", "pa:ss")),
            ("b.example", password("x", "y")),
            ("docker.io", password("u", "p")),
            ("c.example", Some(Credentials::Identity("t".to_owned()))),
            ("d.example", None),
            ("g.example", None),
        ] {
            assert_eq!(files.find(registry, "").expect(registry), expected, "{registry}");
        }
        assert!(files.find("e.example", "").is_err() && files.find("f.example", "").is_err());
        assert_eq!(format!("{:?}", password("me", "secret")), "Some(Password { user: \"me\" })");
    }

    #[test]
    fn what_is_kept_is_found_and_forgotten_and_the_rest_stays() {
        let (dir, files) = files(r#"{"HttpHeaders": {"x": "y"}, "auths": {"other": {"auth": "eDp5"}}}"#);
        let path = dir.path().join("config.json");
        assert!(!files.forget("docker.io").expect("forget"));
        files.keep("docker.io", "me", "a:b").expect("keep");
        assert_eq!(files.find("docker.io", "library/x").expect("find"), password("me", "a:b"));
        assert_eq!(fs::metadata(&path).expect("stat").permissions().mode() & 0o777, 0o600);
        assert!(files.forget("docker.io").expect("forget"));
        let left: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("json");
        assert_eq!(left, json!({"HttpHeaders": {"x": "y"}, "auths": {"other": {"auth": "eDp5"}}}));
        fs::remove_file(&path).expect("remove");
        files.keep("a.example:5000", "me", "b").expect("keep");
        assert_eq!(files.find("a.example:5000", "").expect("find"), password("me", "b"));
    }

    #[test]
    fn the_longest_key_wins() {
        let auth = |user: &str| json!({"username": user, "password": "p"});
        let document = json!({"auths": {
            "h.example": auth("host"), "h.example/team": auth("team"), "h.example/team/tool": auth("tool"),
            "https://h.example:5000/v2/": auth("port"), "docker.io/me": auth("me"), "index.docker.io": auth("hub"),
            "h.example/team/empty": {}, "p.example/team": auth("only"),
        }});
        let (_dir, files) = files(&document.to_string());
        for (registry, repository, user) in [
            ("h.example", "x", Some("host")),
            ("h.example", "team", Some("team")),
            ("h.example", "team/x/y", Some("team")),
            ("h.example", "team/tool", Some("tool")),
            ("h.example", "team/tool/deep", Some("tool")),
            ("h.example", "team/toolbox", Some("team")),
            ("h.example", "teams/x", Some("host")),
            ("h.example", "team/empty", Some("team")),
            ("h.example:5000", "team/tool", Some("port")),
            ("h.example:5001", "team/tool", None),
            ("docker.io", "me/x", Some("me")),
            ("docker.io", "library/x", Some("hub")),
            ("registry-1.docker.io", "library/x", Some("hub")),
            ("p.example", "team/x", Some("only")),
            ("p.example", "x", None),
        ] {
            let found = files.find(registry, repository).expect("find");
            let found = match &found {
                Some(Credentials::Password { user, .. }) => Some(user.as_str()),
                _ => None,
            };
            assert_eq!(found, user, "{registry}/{repository}");
        }
    }

    #[test]
    fn where_files_are() {
        let uid = rustix::process::getuid().as_raw();
        for (variables, expected) in [
            (
                &[("HOME", "/h")][..],
                &[
                    "/run/containers/UID/auth.json",
                    "/h/.config/containers/auth.json",
                    "/h/.docker/config.json",
                    "/h/.dockercfg",
                ][..],
            ),
            (
                &[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r"), ("XDG_CONFIG_HOME", "/c")],
                &["/r/containers/auth.json", "/c/containers/auth.json", "/h/.docker/config.json", "/h/.dockercfg"],
            ),
            (&[("DOCKER_CONFIG", "/d")], &["/d/config.json", "/run/containers/UID/auth.json"]),
            (&[("HOME", "/h"), ("REGISTRY_AUTH_FILE", "/a")], &["/a"]),
            (&[], &["/run/containers/UID/auth.json"]),
        ] {
            let variable =
                |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| PathBuf::from(value));
            let files = Files::new(None, &variable);
            let read: Vec<String> = files.read.iter().map(|path| path.display().to_string()).collect();
            let expected: Vec<String> = expected.iter().map(|path| path.replace("UID", &uid.to_string())).collect();
            assert_eq!(read, expected, "{variables:?}");
        }
    }

    #[test]
    fn what_is_damaged_or_missing_does_not_end_the_search() {
        let home = tempfile::tempdir().expect("tempdir");
        let variable = |name: &str| match name {
            "HOME" => Some(home.path().to_owned()),
            "XDG_RUNTIME_DIR" => Some(home.path().join("run")),
            _ => None,
        };
        let write = |path: &str, text: &str| {
            let path = home.path().join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            fs::write(path, text).expect("write");
        };
        let files = Files::new(None, &variable);
        let found = |registry| files.find(registry, "x").expect("find");
        write("run/containers/auth.json", "{damaged");
        write(".config/containers/auth.json", r#"{"auths": {"a.example": {"auth": "%"}}}"#);
        write(
            ".docker/config.json",
            r#"{"credsStore": "not-installed", "auths": {"a.example": {"auth": "bWU6cA=="}}}"#,
        );
        write(".dockercfg", r#"{"https://old.example/v1/": {"auth": "bWU6b2xk", "email": "x"}}"#);
        assert_eq!(found("a.example"), password("me", "p"));
        assert_eq!(found("old.example"), password("me", "old"));
        assert_eq!(found("b.example"), None);
        write(".docker/config.json", r#"{"credHelpers": {"a.example": "no/path"}, "auths": null}"#);
        assert_eq!(found("a.example"), None);
        assert!(Files::of_user(Some(home.path().join("run/containers/auth.json"))).find("a.example", "x").is_err());
    }
}
