//! The tour of README.md, run line by line, so that it cannot go stale. What it takes from elsewhere (an archive of
//! podman's, a root file system, a package) the test makes; everything else runs as it stands there.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::container::rootfs_with;
use super::fixture::docker_old;
use super::readme::blocks;

/// Lines that need more than a test has, and what is run instead.
const INSTEAD: [(&str, &str); 1] =
    [("strata run --rm -it debian:jq bash", "echo 'jq --version' | strata run --rm -i debian:jq bash")];

struct Tour {
    dir: tempfile::TempDir,
}

impl Tour {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("strata-tour-").tempdir().unwrap();
        let bin = dir.path().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        for (name, program) in [("strata", env!("CARGO_BIN_EXE_strata")), ("stratafs", env!("CARGO_BIN_EXE_stratafs"))]
        {
            std::os::unix::fs::symlink(program, bin.join(name)).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// A program of that name that does this.
    fn program(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs a block in one shell that stops at the first failure; what a comment after `ls` and `cat` says must be what
    /// they print.
    fn run(&self, block: &str) -> String {
        let mut script = String::from(
            "set -euo pipefail\nexpect() { [ \"$1\" = \"$2\" ] || { echo \"not '$1' but '$2'\"; exit 1; }; }\n",
        );
        for line in block.lines() {
            let instead = INSTEAD.iter().find(|(theirs, _)| *theirs == line).map_or(line, |(_, ours)| ours);
            let told = instead
                .split_once(" # ")
                .filter(|(command, _)| command.starts_with("cat ") || command.trim_end() == "ls merged");
            match told {
                Some((command, comment)) => {
                    let expected = comment.split(':').next().unwrap_or_default().trim();
                    script.push_str(&format!("expect '{expected}' \"$(echo $({}))\"\n", command.trim()));
                }
                None => script.push_str(&format!("{instead}\n")),
            }
        }
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let output = Command::new("bash")
            .arg("-xc")
            .arg(&script)
            .current_dir(self.dir.path())
            .env("PATH", path)
            .env("STRATA_ROOT", self.path("store"))
            .env_remove("STRATA_DRIVER")
            .env_remove("STRATA_RUNTIME")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{script}\n{out}\n{err}");
        out.into_owned()
    }

    fn mounts(&self) -> Vec<String> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let at = |line: &str| line.split(' ').nth(4).unwrap_or_default().to_owned();
        table.lines().map(at).filter(|path| Path::new(path).starts_with(self.dir.path())).collect()
    }
}

impl Drop for Tour {
    fn drop(&mut self) {
        for mount in self.mounts() {
            Command::new("umount").arg("-l").arg(mount).status().unwrap();
        }
    }
}

/// In one directory and in the order of the page, as a reader would.
#[test]
fn the_tour_of_the_readme() {
    if !super::fuse_for("tour::the_tour_of_the_readme") {
        return;
    }
    let (tour, all) = (Tour::new(), blocks("Five minutes"));
    let listed = tour.run(&all["Mount a stack by hand"]);
    assert_eq!(listed.lines().filter(|line| line.starts_with('c')).count(), 2, "two whiteouts: {listed}");
    for name in ["file", "less", "gone", "more"] {
        assert!(listed.lines().any(|line| line.ends_with(&format!(" {name}"))), "{name}: {listed}");
    }
    assert_eq!(tour.mounts(), Vec::<String>::new());

    std::fs::write(tour.path("debian.tar"), docker_old("docker.io/library/debian:12")).unwrap();
    tour.program("podman", "#!/bin/sh\n[ \"$*\" = 'save debian:12' ] && exec cat debian.tar\n");
    let apt = "#!/bin/bash\n[ \"$1\" = update ] || { echo '#!/bin/bash\necho jq-1.6' >/bin/jq; chmod +x /bin/jq; }\n";
    let apt = super::tar_build::spec("bin/apt-get", b'0').mode(0o755).content(apt);
    std::fs::write(tour.path("rootfs.tar"), rootfs_with(&["/bin/bash", "/bin/chmod"]).entry(apt).end()).unwrap();
    // The end of the section is about an archive and a mount of its own.
    let (block, by_hand) = all["Images"].split_once("stack=").expect("README unpacks an archive by hand");
    let told = tour.run(block);
    for line in ["Loaded image: debian:12\n", "A /bin/jq\n", "jq-1.6\n", "SHARED WITH"] {
        assert!(told.contains(line), "{line:?} in {told}");
    }
    std::fs::rename(tour.path("jq.tar"), tour.path("image.tar")).unwrap();
    tour.run(
        &format!("stack={by_hand}").replace("\nstrata snapshot", "\ntouch merged/new\numount merged\nstrata snapshot"),
    );
    let listed = Command::new("tar").arg("-tf").arg(tour.path("layer.tar")).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.lines().any(|name| name == "new") && listed.contains(".wh.gone"), "{listed}");
    assert_eq!(tour.mounts(), Vec::<String>::new());
}
