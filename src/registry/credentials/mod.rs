//! Passwords of registries, as docker and podman keep them: `auths` of a JSON file, or a helper program
//! (`docker-credential-NAME`, protocol of docker-credential-helpers) that the file names.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::image::files::{read_limited, sync_dir};
use crate::image::{ImageError, IoContext, Result};

/// The name under which docker keeps the password of its own registry.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Who one is to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that access tokens are got with.
    Identity(String),
}

/// Without the secret.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "Password {{ user: {user:?} }}"),
            Self::Identity(_) => f.write_str("Identity"),
        }
    }
}

impl Credentials {
    /// The value of an `Authorization` header; none for what is no password.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Self::Password { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Self::Identity(_) => None,
        }
    }
}

/// Where passwords are looked for, and where a new one is written.
#[derive(Clone, Debug, Default)]
pub struct Files {
    read: Vec<PathBuf>,
    write: Option<PathBuf>,
}

impl Files {
    /// The user's: `file` if one is given, else `$REGISTRY_AUTH_FILE`; else podman's (`$XDG_RUNTIME_DIR` or
    /// `$XDG_CONFIG_HOME`, `containers/auth.json`) and docker's (`$DOCKER_CONFIG` or `~/.docker`, `config.json`), of
    /// which the last is written.
    pub fn of_user(file: Option<PathBuf>) -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(file) = file.or_else(|| variable("REGISTRY_AUTH_FILE")) {
            return Self { read: vec![file.clone()], write: Some(file) };
        }
        let home = variable("HOME");
        let config = variable("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
        let podman =
            [variable("XDG_RUNTIME_DIR"), config].into_iter().flatten().map(|dir| dir.join("containers/auth.json"));
        let docker =
            variable("DOCKER_CONFIG").or_else(|| Some(home?.join(".docker"))).map(|dir| dir.join("config.json"));
        Self { read: podman.chain(docker.clone()).collect(), write: docker }
    }

    /// What is known for a registry.
    ///
    /// # Errors
    /// When a file is malformed, or a helper that it names fails.
    pub fn find(&self, registry: &str) -> Result<Option<Credentials>> {
        for path in &self.read {
            let Some(document) = read(path)? else { continue };
            if let Some(helper) = helper_of(&document, registry)
                && let Some(found) = ask_helper(helper, &server(registry))?
            {
                return Ok(Some(found));
            }
            let auths = document.get("auths").and_then(Value::as_object);
            for key in keys(registry) {
                let Some(entry) = auths.and_then(|auths| auths.get(&key)) else { continue };
                if let Some(found) = from_entry(entry).ok_or_else(|| {
                    ImageError::document(path.display().to_string(), format!("auths.{key} is malformed"))
                })? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// Keeps a password; returns where.
    ///
    /// # Errors
    /// When the file cannot be replaced, or the helper fails.
    pub fn keep(&self, registry: &str, user: &str, password: &str) -> Result<String> {
        let path = self.write.as_ref().ok_or_else(|| {
            ImageError::refused("password", "there is no place for it: HOME is not set; give --authfile")
        })?;
        let mut document = read(path)?.unwrap_or_default();
        if let Some(helper) = helper_of(&document, registry) {
            let said = json!({"ServerURL": server(registry), "Username": user, "Secret": password});
            run_helper(helper, "store", &said.to_string())?;
            return Ok(program_of(helper));
        }
        let auths = document.entry("auths").or_insert_with(|| json!({}));
        let auths = auths
            .as_object_mut()
            .ok_or_else(|| ImageError::document(path.display().to_string(), "auths is not an object"))?;
        keys(registry).iter().for_each(|key| drop(auths.remove(key)));
        auths.insert(server(registry), json!({"auth": STANDARD.encode(format!("{user}:{password}"))}));
        write(path, &document)?;
        Ok(path.display().to_string())
    }

    /// Forgets the password of a registry everywhere; false if there was none.
    ///
    /// # Errors
    /// When a file cannot be replaced, or a helper fails.
    pub fn forget(&self, registry: &str) -> Result<bool> {
        let mut forgot = false;
        for path in &self.read {
            let Some(mut document) = read(path)? else { continue };
            if let Some(helper) = helper_of(&document, registry)
                && ask_helper(helper, &server(registry))?.is_some()
            {
                run_helper(helper, "erase", &server(registry))?;
                forgot = true;
            }
            let auths = document.get_mut("auths").and_then(Value::as_object_mut);
            let removed =
                auths.is_some_and(|auths| keys(registry).iter().filter(|key| auths.remove(*key).is_some()).count() > 0);
            if removed {
                write(path, &document)?;
                forgot = true;
            }
        }
        Ok(forgot)
    }
}

/// How docker calls a registry in its file, and to a helper.
fn server(registry: &str) -> String {
    if registry == "docker.io" { DOCKER_HUB.to_owned() } else { registry.to_owned() }
}

/// The names that an entry for a registry may have; docker used to write addresses.
fn keys(registry: &str) -> Vec<String> {
    let mut keys = vec![server(registry), registry.to_owned()];
    for suffix in ["", "/", "/v1/", "/v2/"] {
        keys.push(format!("https://{registry}{suffix}"));
        keys.push(format!("http://{registry}{suffix}"));
    }
    keys.dedup();
    keys
}

/// `None`: malformed. `Some(None)`: an entry without a password, as docker leaves one where a helper has it.
fn from_entry(entry: &Value) -> Option<Option<Credentials>> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Some(Some(Credentials::Identity(token.to_owned())));
    }
    if let Some((user, password)) = text("username").zip(text("password")) {
        return Some(Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() }));
    }
    let Some(auth) = text("auth") else { return Some(None) };
    let decoded = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    let password = password.trim_end_matches('\0').to_owned();
    Some(Some(Credentials::Password { user: user.to_owned(), password }))
}

/// The helper that a file names for a registry.
fn helper_of<'d>(document: &'d Map<String, Value>, registry: &str) -> Option<&'d str> {
    let own =
        document.get("credHelpers").and_then(|helpers| helpers.get(server(registry)).or_else(|| helpers.get(registry)));
    own.or_else(|| document.get("credsStore")).and_then(Value::as_str).filter(|name| !name.is_empty())
}

fn program_of(helper: &str) -> String {
    format!("docker-credential-{helper}")
}

/// Asks a helper for a password; none if it has none.
fn ask_helper(helper: &str, server: &str) -> Result<Option<Credentials>> {
    let answer = match run_helper(helper, "get", server) {
        Ok(answer) => answer,
        // The text is part of the protocol.
        Err(error) if error.to_string().contains("credentials not found") => return Ok(None),
        Err(error) => return Err(error),
    };
    let program = program_of(helper);
    let answer: Value = serde_json::from_slice(&answer).map_err(|error| ImageError::document(&program, error))?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
    let (user, secret) = text("Username")
        .zip(text("Secret"))
        .ok_or_else(|| ImageError::document(&program, "its answer has no Username and Secret"))?;
    Ok(Some(match user.as_str() {
        "<token>" => Credentials::Identity(secret),
        _ => Credentials::Password { user, password: secret },
    }))
}

fn run_helper(helper: &str, verb: &str, input: &str) -> Result<Vec<u8>> {
    let program = program_of(helper);
    if helper.contains('/') {
        return Err(ImageError::malformed(helper, "is no name of a credential helper"));
    }
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .at(&program)?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            result => result.at(&program)?,
        }
    }
    let output = child.wait_with_output().at(&program)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    // Helpers tell their errors on standard output.
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told).trim().replace('\n', "; ");
    Err(ImageError::refused(program, if told.is_empty() { output.status.to_string() } else { told }))
}

fn read(path: &Path) -> Result<Option<Map<String, Value>>> {
    let name = path.display().to_string();
    match fs::File::open(path) {
        Ok(mut file) => {
            let bytes = read_limited(&mut file, &name)?;
            if bytes.trim_ascii().is_empty() {
                return Ok(Some(Map::new()));
            }
            serde_json::from_slice(&bytes).map(Some).map_err(|error| ImageError::document(name, error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at(path),
    }
}

/// Replaces the file, readable by its owner alone. Through a symbolic link, what it leads to is replaced.
fn write(path: &Path, document: &Map<String, Value>) -> Result<()> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !dir.exists() {
        fs::create_dir_all(dir).at(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).at(dir)?;
    }
    let mut file = tempfile::NamedTempFile::new_in(dir).at(dir)?;
    serde_json::to_writer_pretty(&mut file, document)
        .map_err(|error| ImageError::document(path.display().to_string(), error))?;
    file.write_all(b"\n").at(&path)?;
    file.as_file().sync_all().at(&path)?;
    file.persist(&path).map_err(|error| error.error).at(&path)?;
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
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
            assert_eq!(files.find(registry).expect(registry), expected, "{registry}");
        }
        assert!(files.find("e.example").is_err() && files.find("f.example").is_err());
        assert_eq!(format!("{:?}", password("me", "secret")), "Some(Password { user: \"me\" })");
    }

    #[test]
    fn what_is_kept_is_found_and_forgotten_and_the_rest_stays() {
        let (dir, files) = files(r#"{"HttpHeaders": {"x": "y"}, "auths": {"other": {"auth": "eDp5"}}}"#);
        let path = dir.path().join("config.json");
        assert!(!files.forget("docker.io").expect("forget"));
        files.keep("docker.io", "me", "a:b").expect("keep");
        assert_eq!(files.find("docker.io").expect("find"), password("me", "a:b"));
        assert_eq!(fs::metadata(&path).expect("stat").permissions().mode() & 0o777, 0o600);
        assert!(files.forget("docker.io").expect("forget"));
        let left: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("json");
        assert_eq!(left, json!({"HttpHeaders": {"x": "y"}, "auths": {"other": {"auth": "eDp5"}}}));
        fs::remove_file(&path).expect("remove");
        files.keep("a.example:5000", "me", "b").expect("keep");
        assert_eq!(files.find("a.example:5000").expect("find"), password("me", "b"));
    }
}
