//! Registries: Debian's `docker-registry` on the loopback interface with skopeo as the other client, and simulated
//! servers that lie. Needs root (layers hold other users' files), but no FUSE.

#![allow(clippy::unwrap_used)]

#[path = "../image/fixture.rs"]
#[allow(dead_code)]
mod fixture;
#[path = "../common/layer_dirs.rs"]
mod layer_dirs;
#[path = "../common/terminal.rs"]
mod pty;
#[path = "../common/readme.rs"]
mod readme;
#[path = "../common/tar_build.rs"]
mod tar_build;

mod artifacts;
mod auth;
mod liar;
mod lies;
mod places;
mod quirks;
mod quirky;
mod resume;
mod server;
mod together;
mod transfer;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A store and a separate home, so that no passwords of the machine are used.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("strata-registry-").tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("HOME", self.dir.path()).env("STRATA_ROOT", self.path("store")).stdin(Stdio::null());
        for name in ["XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "SSL_CERT_FILE"] {
            command.env_remove(name);
        }
        for name in ["http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        command
    }

    fn strata(&self, args: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_strata")).args(args).output().unwrap()
    }

    /// Runs a command that must succeed; returns standard output and standard error.
    fn both(&self, args: &[&str]) -> (String, String) {
        succeeded(args, &self.strata(args))
    }

    /// Runs a command that must succeed; returns its output.
    fn ok(&self, args: &[&str]) -> String {
        self.both(args).0
    }

    /// Runs a command that must fail in one line and leave nothing in the store; returns the line.
    fn fails(&self, args: &[&str]) -> String {
        let before = self.listing();
        let output = self.strata(args);
        let message = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<&str> = message.lines().filter(|line| line.starts_with("strata: ")).collect();
        assert_eq!((output.status.code(), lines.len()), (Some(1), 1), "{args:?}: {message}");
        // `inspect` prints the array of what it found, as docker does.
        let printed: &[u8] = if args.contains(&"inspect") { b"[]\n" } else { b"" };
        assert!(!message.contains("panicked") && output.stdout == printed, "{args:?}: {message}");
        assert_eq!(self.listing(), before, "{args:?}");
        lines[0].to_owned()
    }

    fn skopeo(&self, args: &[&str]) -> String {
        succeeded(args, &self.command("skopeo").arg("--insecure-policy").args(args).output().unwrap()).0
    }

    fn load(&self, archive: &[u8]) {
        let path = self.path("in.tar");
        std::fs::write(&path, archive).unwrap();
        self.ok(&["load", "-q", "-i", path.to_str().unwrap()]);
    }

    /// What is published in the store.
    fn listing(&self) -> Vec<String> {
        let names = |dir: &str| -> Vec<String> {
            let Ok(entries) = std::fs::read_dir(self.path("store").join(dir)) else { return vec![] };
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let mut all = [names("layers"), names("blobs/sha256"), names("containers")].concat();
        all.push(std::fs::read_to_string(self.path("store/index.json")).unwrap_or_default());
        all.sort();
        all.retain(|name| !name.is_empty() && !name.contains("\"manifests\":[]"));
        all
    }
}

fn succeeded(args: &[&str], output: &Output) -> (String, String) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}: {out}{err}");
    (out.into_owned(), err.into_owned())
}

/// The digest that a push or a pull told.
fn digest_in(out: &str) -> String {
    let at = out.find("sha256:").unwrap();
    out[at..at + 71].to_owned()
}

/// Every layer's tree of an image of a home's store.
fn trees(home: &Home, image: &str) -> Vec<String> {
    let inspected: serde_json::Value = serde_json::from_str(&home.ok(&["inspect", image])).unwrap();
    let dirs = inspected[0]["LayerDirs"].as_array().unwrap();
    dirs.iter().map(|dir| format!("{:?}", timeless(Path::new(dir.as_str().unwrap())))).collect()
}

/// The times of whiteouts mean nothing.
fn timeless(dir: &Path) -> Vec<(String, String)> {
    let line = |(path, line): (String, String)| match line.starts_with("char 0:0 ") {
        true => (path, "whiteout".to_owned()),
        false => (path, line),
    };
    layer_dirs::tree(dir).into_iter().map(line).collect()
}
