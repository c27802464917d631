//! The shell blocks of README.md and `docs/`, run as a reader would: each section from an empty directory. Programs that need the
//! network (mmdebstrap, podman, apt-get in the image) are replaced by stand-ins; everything else runs unchanged.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::container::rootfs_with;
use super::readme::{Section, block_run_by, sections};
use super::tar_build;

/// A directory for one section, with the programs it calls.
struct Tour {
    dir: tempfile::TempDir,
    bin: PathBuf,
}

/// Programs called by the pages that are not on every machine, in a directory that is made once.
fn stand_ins(dir: &Path) -> PathBuf {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    for (name, program) in [("strata", env!("CARGO_BIN_EXE_strata")), ("stratafs", env!("CARGO_BIN_EXE_stratafs"))] {
        std::os::unix::fs::symlink(program, bin.join(name)).unwrap();
    }
    let apt = "#!/bin/bash\n[ \"$1\" = update ] || { echo '#!/bin/bash\necho jq-1.6' >/bin/jq; chmod +x /bin/jq; }\n";
    let apt = tar_build::spec("bin/apt-get", b'0').mode(0o755).content(apt);
    std::fs::write(dir.join("rootfs.tar"), rootfs_with(&["/bin/bash", "/bin/chmod"]).entry(apt).end()).unwrap();
    // As on Docker Hub, debian:12 has one layer.
    for line in ["import rootfs.tar debian:12", "save -o debian.tar debian:12"] {
        let mut strata = Command::new(bin.join("strata"));
        strata.args(["--root", "store"]).args(line.split(' ')).current_dir(dir).stdout(Stdio::null());
        assert!(strata.status().unwrap().success(), "{line}");
    }
    let here = dir.display();
    let podman = format!(
        "#!/bin/sh\ncase \"$*\" in\n'save debian:12') exec cat {here}/debian.tar ;;\n\
         'save -o image.tar debian:12') exec cp {here}/debian.tar image.tar ;;\n*) exit 9 ;;\nesac\n"
    );
    let mmdebstrap = format!(
        "#!/bin/sh\n[ \"$*\" = '--variant=minbase bookworm rootfs.tar' ] && exec cp {here}/rootfs.tar rootfs.tar\n"
    );
    for (name, script) in [("podman", podman), ("mmdebstrap", mmdebstrap)] {
        std::fs::write(bin.join(name), script).unwrap();
        std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    bin
}

impl Tour {
    fn new(bin: &Path) -> Self {
        Self { dir: tempfile::Builder::new().prefix("strata-tour-").tempdir().unwrap(), bin: bin.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the lines in one shell that stops at the first failure. If a line prints something and ends in a comment, the
    /// words of the output must be those of the comment.
    fn run(&self, lines: &str) -> String {
        std::fs::create_dir_all(self.path("here")).unwrap();
        let mut script = String::from(
            "set -euo pipefail\nexpect() { [ \"$1\" = \"$2\" ] || { echo \"not '$1' but '$2'\"; exit 1; }; }\n",
        );
        for line in lines.lines() {
            const PRINTS: [&str; 4] = ["cat ", "ls ", "tar -tf ", "strata diff second"];
            let told =
                line.split_once(" # ").filter(|(command, _)| PRINTS.iter().any(|start| command.starts_with(start)));
            match told {
                Some((command, comment)) => {
                    let command = command.trim();
                    script.push_str(&format!("expect '{}' \"$(echo $(LC_ALL=C {command}))\"\n", comment.trim()));
                }
                None => script.push_str(&format!("{line}\n")),
            }
        }
        let output = Command::new("bash")
            .arg("-xc")
            .arg(&script)
            .current_dir(self.path("here"))
            .env("PATH", format!("{}:{}", self.bin.display(), std::env::var("PATH").unwrap()))
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
        // Containers that a failed block has left running.
        for name in std::fs::read_dir(self.path("store/containers")).into_iter().flatten() {
            let mut strata = Command::new(env!("CARGO_BIN_EXE_strata"));
            strata.arg("--root").arg(self.path("store")).args(["rm", "-f"]).arg(name.unwrap().file_name());
            strata.output().unwrap();
        }
        for mount in self.mounts() {
            Command::new("umount").arg("-l").arg(mount).status().unwrap();
        }
    }
}

#[test]
fn every_shell_block_runs_from_an_empty_directory() {
    if !super::fuse_for("tour::every_shell_block_runs_from_an_empty_directory") {
        return;
    }
    let shared = tempfile::tempdir().unwrap();
    let bin = stand_ins(shared.path());
    let mut told = BTreeMap::new();
    for Section { page, title, lines, exempt } in sections() {
        if exempt.is_none() {
            let tour = Tour::new(&bin);
            told.insert(format!("{page}: {title}"), tour.run(&lines));
            assert_eq!(tour.mounts(), Vec::<String>::new(), "{page}: {title} leaves a mount");
        }
    }
    let first = &told["README.md: First container"];
    for line in ["A /bin/jq\n", "jq-1.6\n"] {
        assert!(first.contains(line), "{line:?} in {first}");
    }
    assert!(told.len() >= 6, "few blocks were found: {:?}", told.keys());
}

#[test]
fn the_lines_for_users() {
    if !super::fuse_for("tour::the_lines_for_users") {
        return;
    }
    let shared = tempfile::tempdir().unwrap();
    let tour = Tour::new(&stand_ins(shared.path()));
    std::fs::set_permissions(shared.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(tour.path("here")).unwrap();
    for path in [tour.dir.path(), &tour.path("here")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    // `strata` and `stratafs` are in the build directory, which a user may not read.
    for name in ["strata", "stratafs"] {
        let link = tour.bin.join(name);
        let program = std::fs::canonicalize(&link).unwrap();
        std::fs::remove_file(&link).unwrap();
        std::fs::copy(program, &link).unwrap();
    }
    let lines = block_run_by("the_lines_for_users");
    // On machines without udev only root may use /dev/fuse; here all users may, as with udev.
    let device =
        "mount -t tmpfs -o dev none ../dev; mknod -m 666 ../dev/fuse c 10 229; mount --bind ../dev/fuse /dev/fuse";
    std::fs::create_dir(tour.path("dev")).unwrap();
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    std::fs::write(tour.path("lines"), lines).unwrap();
    let as_user = format!("unshare --mount bash -euc '{device}; exec {user} bash -eu ../lines'");
    let told = tour.run(&as_user);
    assert_eq!(told, "two\n");
    assert_eq!(tour.mounts(), Vec::<String>::new());
}

/// A block that names what runs it names an existing test or script.
#[test]
fn what_runs_an_exempt_block_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources =
        ["tests/image/tour.rs", "tests/registry/auth.rs"].map(|path| std::fs::read_to_string(root.join(path)).unwrap());
    for Section { page, title, exempt, .. } in sections() {
        let Some(runner) = exempt.as_deref().and_then(|said| said.strip_prefix("run by: ")) else { continue };
        let there = root.join(runner).exists() || sources.iter().any(|text| text.contains(&format!("fn {runner}(")));
        assert!(there, "{page}, {title}: there is no {runner}");
    }
}

/// Links between pages, and into the repository, have existing targets.
#[test]
fn links_of_the_pages_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = docs.filter(|path| path.extension().is_some_and(|e| e == "md"));
    let mut seen = 0;
    for page in pages.chain([root.join("README.md")]) {
        let text = std::fs::read_to_string(&page).unwrap();
        for rest in text.split("](").skip(1) {
            let link = rest.split(')').next().unwrap_or_default().split('#').next().unwrap_or_default();
            if link.is_empty() || link.contains("://") {
                continue;
            }
            seen += 1;
            assert!(page.parent().unwrap().join(link).exists(), "{}: {link}", page.display());
        }
    }
    assert!(seen > 30, "few links were found: {seen}");
}

/// README shows ten rows of the table in docs/performance.md, with the same figures.
#[test]
fn the_figures_of_readme_are_those_of_the_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let cells = |row: &str| {
        row.split('|').map(|cell| cell.trim().to_owned()).filter(|cell| !cell.is_empty()).collect::<Vec<_>>()
    };
    let page = read("docs/performance.md");
    let readme = read("README.md");
    let (_, chart) = readme.split_once("<!-- chart -->\n").unwrap();
    let rows: Vec<_> = chart.split("<!-- /chart -->").next().unwrap().lines().skip(2).map(cells).collect();
    assert!((1..=10).contains(&rows.len()), "{rows:?}");
    for row in rows {
        let same = page.lines().map(cells).find(|whole| whole.first() == row.first());
        let whole = same.unwrap_or_else(|| panic!("docs/performance.md has no row {:?}", row[0]));
        assert!(row.iter().all(|cell| whole.contains(cell)), "{row:?} is not in {whole:?}");
    }
    let lines = readme.lines().count();
    assert!(lines <= 150, "README has {lines} lines");
}

#[test]
fn manuals_are_installed_where_a_user_finds_them() {
    let dir = tempfile::tempdir().unwrap();
    let (program, share) = (dir.path().join("strata"), dir.path().join("share"));
    std::fs::copy(env!("CARGO_BIN_EXE_strata"), &program).unwrap();
    std::fs::create_dir(&share).unwrap();
    for (path, mode) in [(dir.path(), 0o755), (&share, 0o777)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut user = Command::new("setpriv");
    user.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program).args(["man", "--install"]);
    let output = user.env("XDG_DATA_HOME", &share).current_dir("/").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains(share.to_str().unwrap()), "{told}");
    for name in
        ["man/man1/strata.1", "man/man1/strata-run.1", "man/man1/stratafs.1", "fish/vendor_completions.d/strata.fish"]
    {
        assert!(std::fs::metadata(share.join(name)).unwrap().len() > 100, "{name}");
    }
    for name in ["strata", "stratafs"] {
        let path = share.join("bash-completion/completions").join(name);
        assert!(Command::new("bash").arg("-n").arg(path).status().unwrap().success(), "{name}");
    }
}
