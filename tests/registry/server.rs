//! Debian's `docker-registry` on a free port of the loopback interface, while a test runs.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A registry that ends with the test.
pub struct Server {
    dir: tempfile::TempDir,
    child: Child,
    port: u16,
}

/// What the registry demands of clients.
#[derive(Clone, Copy, Default)]
pub struct Wants {
    /// The password `pa:ss` of `me`.
    pub password: bool,
    /// TLS, by a certificate that the test's own authority (`certs/ca.crt`) has signed.
    pub tls: bool,
}

impl Server {
    pub fn start(wants: Wants) -> Self {
        let dir = tempfile::Builder::new().prefix("strata-registry-server-").tempdir().unwrap();
        if wants.tls {
            make_certificates(&dir.path().join("certs"));
        }
        if wants.password {
            let output = Command::new("htpasswd").args(["-Bbn", "me", "pa:ss"]).output().unwrap();
            assert!(output.status.success(), "htpasswd");
            std::fs::write(dir.path().join("htpasswd"), output.stdout).unwrap();
        }
        // Another process may take the port between its choice and its use.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            if let Some(child) = try_start(&dir, wants, port) {
                return Self { dir, child, port };
            }
        }
        panic!("no registry comes up: {}", std::fs::read_to_string(dir.path().join("log")).unwrap());
    }

    /// `127.0.0.1:PORT/NAME`
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.host())
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn certificates(&self) -> PathBuf {
        self.dir.path().join("certs")
    }

    /// Number of requests, by words in one line of its log.
    pub fn requests(&self, words: &[&str]) -> usize {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
        log.lines()
            .filter(|line| line.contains("response completed") && words.iter().all(|word| line.contains(word)))
            .count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn try_start(dir: &tempfile::TempDir, wants: Wants, port: u16) -> Option<Child> {
    let path = |name: &str| dir.path().join(name).display().to_string();
    let tls = match wants.tls {
        true => {
            format!("  tls:\n    certificate: {}\n    key: {}\n", path("certs/server.pem"), path("certs/server.key"))
        }
        false => String::new(),
    };
    let auth = match wants.password {
        true => format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path("htpasswd")),
        false => String::new(),
    };
    let config = format!(
        "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\n\
         http:\n  addr: 127.0.0.1:{port}\n  secret: test\n{tls}{auth}",
        path("blobs"),
    );
    std::fs::write(path("config.yml"), config).unwrap();
    let log = File::create(path("log")).unwrap();
    let mut child = Command::new("docker-registry")
        .args(["serve", &path("config.yml")])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("docker-registry (Debian package docker-registry)");
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        let listens = std::fs::read_to_string(path("log")).unwrap().contains("listening on");
        if listens && TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some(child);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

/// An authority (`ca.crt`), and a certificate for 127.0.0.1 that it has signed.
fn make_certificates(dir: &std::path::Path) {
    std::fs::create_dir(dir).unwrap();
    std::fs::write(dir.join("extensions"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let openssl = |args: &[&str]| {
        let output = Command::new("openssl").current_dir(dir).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    openssl(
        &[&new[..], &["-x509", "-days", "2", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.crt"]]
            .concat(),
    );
    openssl(&[&new[..], &["-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr"]].concat());
    let sign =
        ["x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"];
    openssl(&[&sign[..], &["-extfile", "extensions", "-out", "server.pem"]].concat());
    // `--cert-dir` reads every certificate of a directory, so this one holds only the authority's.
    std::fs::create_dir(dir.join("trusted")).unwrap();
    std::fs::copy(dir.join("ca.crt"), dir.join("trusted/ca.crt")).unwrap();
}
