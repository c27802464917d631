//! Containers through the program: mounted by stratafs (needs /dev/fuse) and by overlayfs, run by runc.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::tar_build::{Tar, spec};

/// A store with `tool:1`: a root file system of the host's own shell and libraries.
pub(super) struct World {
    pub(super) dir: tempfile::TempDir,
    pub(super) driver: &'static str,
}

/// Programs that the image holds, with the libraries that they need.
const PROGRAMS: [&str; 12] = [
    "/bin/sh",
    "/bin/cat",
    "/bin/id",
    "/bin/ls",
    "/bin/sleep",
    "/bin/stty",
    "/bin/mkdir",
    "/bin/mv",
    "/bin/rm",
    "/bin/ln",
    "/bin/touch",
    "/usr/bin/env",
];

/// The libraries that `ldd` names.
fn libraries(program: &str) -> Vec<String> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect()
}

fn rootfs() -> Vec<u8> {
    rootfs_with(&[]).end()
}

/// A root file system with further programs of the host's.
pub(super) fn rootfs_with(further: &[&str]) -> Tar {
    let programs = || PROGRAMS.iter().chain(further);
    let mut tar = Tar::new().dir("./").dir("bin/").dir("etc/").dir("tmp/").dir("data/").file("data/lower", "lower\n");
    tar = tar.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1001::/home/me:/bin/sh\n");
    tar = tar.file("etc/group", "root:x:0:\nus:x:1001:\nmore:x:50:me\n");
    let mut libs: Vec<String> = programs().flat_map(|program| libraries(program)).collect();
    libs.sort();
    libs.dedup();
    for program in programs() {
        let name = format!("bin/{}", program.rsplit('/').next().unwrap());
        tar = tar.entry(spec(name, b'0').mode(0o755).content(std::fs::read(program).unwrap()));
    }
    for lib in libs {
        tar = tar.entry(spec(&lib[1..], b'0').mode(0o755).content(std::fs::read(&lib).unwrap()));
    }
    tar
}

impl World {
    pub(super) fn new(driver: &'static str) -> Self {
        let dir = tempfile::Builder::new().prefix("strata-test-").tempdir().unwrap();
        let tar = dir.path().join("rootfs.tar");
        std::fs::write(&tar, rootfs()).unwrap();
        let world = Self { dir, driver };
        let tar = tar.to_str().unwrap();
        world.ok(&[
            "import",
            "-c",
            "ENTRYPOINT [\"/bin/sh\",\"-c\"]",
            "-c",
            "CMD [\"echo default\"]",
            "-c",
            "ENV A=image",
            tar,
            "tool:1",
        ]);
        world
    }

    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
        command.env("STRATA_DRIVER", self.driver).env_remove("STRATA_RUNTIME");
        command.arg("--root").arg(self.root()).args(args).stdin(Stdio::null());
        command
    }

    pub(super) fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(super) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub(super) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The names of all containers, one on each line, the newest first.
    pub(super) fn names(&self) -> String {
        self.ok(&["ps", "-a", "--format", "{{.Names}}"])
    }

    pub(super) fn mounts(&self) -> usize {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().filter(|line| line.contains(self.dir.path().to_str().unwrap())).count()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        for line in table.lines().filter(|line| line.contains(self.dir.path().to_str().unwrap())) {
            Command::new("umount").args(["-l", line.split(' ').nth(4).unwrap()]).status().unwrap();
        }
    }
}

/// One world for each driver that this machine has.
pub(super) fn worlds() -> Vec<World> {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("container");
    let overlay = super::overlayfs_for(test).then_some("overlay");
    let stratafs = super::fuse_for(test).then_some("stratafs");
    [overlay, stratafs].into_iter().flatten().map(World::new).collect()
}

#[test]
fn mount_change_commit_and_mount_again() {
    for world in worlds() {
        let driver = world.driver;
        let merged = world.ok(&["mount", "--name", "c", "tool:1"]);
        let merged = Path::new(merged.trim());
        std::fs::write(merged.join("data/new"), "new").unwrap();
        std::fs::rename(merged.join("data"), merged.join("moved")).unwrap();
        std::fs::remove_file(merged.join("etc/group")).unwrap();
        let id = world.ok(&["commit", "-m", "m", "c", "tool:2"]);
        assert!(id.starts_with("sha256:"), "{driver}: it is committed while it is mounted");
        let changes = world.ok(&["diff", "c"]);
        assert_eq!(changes, "D /data\nC /etc\nD /etc/group\nA /moved\nA /moved/lower\nA /moved/new\n", "{driver}");
        assert!(!world.run(&["rm", "c"]).status.success(), "{driver}: not while it is mounted");
        world.ok(&["umount", "c"]);
        assert_eq!(world.mounts(), 0);
        assert_eq!(world.ok(&["mount", "c"]).trim(), merged.to_str().unwrap());
        assert_eq!(std::fs::read_to_string(merged.join("moved/lower")).unwrap(), "lower\n", "{driver}");
        world.ok(&["umount", "--rm", merged.to_str().unwrap()]);
        assert!(!merged.exists());
        let again = world.ok(&["mount", "--read-only", "tool:2"]);
        let again = Path::new(again.trim());
        assert_eq!(std::fs::read_to_string(again.join("moved/new")).unwrap(), "new", "{driver}");
        assert!(!again.join("data").exists() && !again.join("etc/group").exists(), "{driver}");
        assert!(std::fs::write(again.join("x"), "").is_err(), "{driver}: read-only");
        let place = world.dir.path().join("place");
        std::fs::create_dir(&place).unwrap();
        world.ok(&["mount", "--name", "elsewhere", "tool:2", place.to_str().unwrap()]);
        assert!(place.join("moved").exists());
        assert_eq!(world.ok(&["mount"]).lines().count(), 2);
        world.ok(&["umount", place.to_str().unwrap()]);
    }
}

/// Files that a container leaves as it ends exist for a moment longer, and so do programs that other tests start.
#[test]
fn an_unmount_waits_a_moment_for_what_uses_it() {
    for world in worlds() {
        let driver = world.driver;
        let merged = world.ok(&["mount", "--name", "c", "tool:1"]);
        let file = File::open(Path::new(merged.trim()).join("data/lower")).unwrap();
        let told = world.run(&["umount", "c"]);
        let message = String::from_utf8(told.stderr).unwrap();
        assert!(!told.status.success() && message.contains("is in use; end what uses it"), "{driver}: {message}");
        assert_eq!(world.mounts(), 1, "{driver}");
        let user = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(500));
            drop(file);
        });
        world.ok(&["umount", "c"]);
        assert_eq!(world.mounts(), 0, "{driver}");
        user.join().unwrap();
        world.ok(&["rm", "c"]);
    }
}

#[test]
fn run_gives_output_and_exit_code() {
    for world in worlds() {
        let driver = world.driver;
        assert_eq!(world.ok(&["run", "--rm", "tool:1"]), "default\n", "{driver}");
        assert_eq!(world.ok(&["run", "--rm", "-e", "B=2", "tool:1", "echo $A $B"]), "image 2\n", "{driver}");
        assert_eq!(world.ok(&["run", "--rm", "--entrypoint", "/bin/cat", "tool:1", "/data/lower"]), "lower\n");
        let failing = world.run(&["run", "--rm", "tool:1", "echo out; echo err >&2; exit 7"]);
        assert_eq!(
            (failing.status.code(), &failing.stdout[..], &failing.stderr[..]),
            (Some(7), &b"out\n"[..], &b"err\n"[..])
        );
        assert_eq!(world.ok(&["run", "--rm", "-w", "/data", "tool:1", "ls"]), "lower\n");
        let user = world.ok(&["run", "--rm", "-u", "me", "tool:1", "id; env"]);
        assert!(user.starts_with("uid=1000(me) gid=1001(us) groups=1001(us),50(more)\n"), "{driver}: {user}");
        assert!(user.contains("HOME=/home/me\n"), "{driver}: {user}");
        assert!(!world.run(&["run", "--rm", "-u", "nobody", "tool:1"]).status.success());
        let volume = format!("{}:/vol", world.dir.path().display());
        assert_eq!(world.ok(&["run", "--rm", "-v", &volume, "tool:1", "ls /vol"]), "rootfs.tar\nstore\n");
        let read_only = world.run(&["run", "--rm", "--read-only", "tool:1", "touch /x"]);
        assert!(!read_only.status.success(), "{driver}");
        let network = world.ok(&["run", "--rm", "--network", "none", "tool:1", "cat /proc/net/dev"]);
        assert_eq!(network.lines().count(), 3, "{driver}: only lo");
        let masked =
            world.ok(&["run", "--rm", "tool:1", "cat /proc/kcore; echo x >/proc/sys/kernel/hostname || echo refused"]);
        assert_eq!(masked, "refused\n", "{driver}");
        assert_eq!((world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), 0), "{driver}: nothing is left");
    }
}

#[test]
fn input_is_passed_only_if_asked() {
    for world in worlds() {
        let feed = |args: &[&str]| {
            let mut child = world.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"typed\n").unwrap();
            let mut out = String::new();
            child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
            child.wait().unwrap();
            out
        };
        assert_eq!(feed(&["run", "--rm", "-i", "tool:1", "cat"]), "typed\n");
        assert_eq!(feed(&["run", "--rm", "tool:1", "cat"]), "");
    }
}

#[test]
fn a_terminal_is_one() {
    for world in worlds() {
        let program = format!(
            "{} --root {} run --rm -it tool:1 'sleep 0.5; stty size; test -t 0 && echo terminal'",
            env!("CARGO_BIN_EXE_strata"),
            world.root().display()
        );
        let mut command = Command::new("script");
        command
            .args(["-qec", &format!("stty rows 33 cols 77; {program}"), "/dev/null"])
            .env("STRATA_DRIVER", world.driver);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        assert!(text.contains("33 77\nterminal\n"), "{}: {text}", world.driver);
        assert!(!world.run(&["run", "--rm", "-it", "tool:1", "true"]).status.success(), "-it without a terminal");
        let shown = world.ok(&["run", "--rm", "-t", "tool:1", "test -t 1 && echo terminal"]);
        assert_eq!(shown, "terminal\r\n", "{}: only the output's is one", world.driver);
    }
}

#[test]
fn a_run_leaves_only_what_the_container_changed() {
    for world in worlds() {
        world.ok(&["run", "--name", "c", "-v", "/etc:/mnt/etc", "tool:1", "echo x >/tmp/made; mv /data /data2"]);
        assert_eq!(
            world.ok(&["diff", "c"]),
            "D /data\nA /data2\nA /data2/lower\nC /tmp\nA /tmp/made\n",
            "{}",
            world.driver
        );
        assert_eq!(world.mounts(), 0);
        assert!(world.ok(&["ps", "-a"]).contains("Exited (0)"));
        world.ok(&["commit", "c", "tool:3"]);
        assert!(world.ok(&["history", "tool:3"]).contains("echo x >/tmp/made"));
        assert_eq!(world.ok(&["run", "--rm", "tool:3", "cat /tmp/made /data2/lower"]), "x\nlower\n");
    }
}

pub(super) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{what} does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn detached_containers() {
    for world in worlds() {
        let driver = world.driver;
        world.ok(&["run", "-d", "--name", "d", "tool:1", "echo started; sleep 1000"]);
        assert!(world.ok(&["ps"]).contains("Up "), "{driver}");
        assert_eq!(world.ok(&["exec", "d", "/bin/cat", "/data/lower"]), "lower\n", "{driver}");
        assert_eq!(world.run(&["exec", "d", "/bin/sh", "-c", "exit 5"]).status.code(), Some(5), "{driver}");
        assert!(!world.run(&["rm", "d"]).status.success(), "{driver}: not while it runs");
        world.ok(&["commit", "d", "tool:running"]);
        world.ok(&["stop", "-t", "0", "d"]);
        assert!(world.ok(&["ps", "-a"]).contains("Exited (137)"), "{driver}");
        assert_eq!(world.ok(&["logs", "d"]), "started\n", "{driver}");
        world.ok(&["rm", "d"]);
        world.ok(&["run", "-d", "--rm", "--name", "short", "tool:1", "exit 3"]);
        wait_until("the end of it", || world.ok(&["ps", "-aq"]).is_empty());
        world.ok(&["run", "-d", "--name", "forced", "tool:1", "sleep 1000"]);
        world.ok(&["rm", "-f", "forced"]);
        wait_until("no mount", || world.mounts() == 0);
        let bad = world.run(&["run", "-d", "--name", "bad", "--entrypoint", "/nonexistent", "tool:1"]);
        assert_eq!(bad.status.code(), Some(127), "{driver}");
        wait_until("no mount", || world.mounts() == 0);
    }
}

#[test]
fn a_crash_of_everything_costs_no_changes() {
    for world in worlds() {
        let driver = world.driver;
        world.ok(&["run", "-d", "--name", "c", "tool:1", "echo kept >/data/kept; sleep 1000"]);
        let kept = world.root().join("containers/c/merged/data/kept");
        wait_until("the change", || std::fs::read(&kept).is_ok_and(|bytes| bytes == b"kept\n"));
        for pattern in ["supervise c", "fsname=strata-c"] {
            for pid in processes(world.dir.path(), pattern) {
                Command::new("kill").args(["-9", &pid]).status().unwrap();
            }
        }
        let status = world.ok(&["ps", "-a"]);
        assert!(status.contains("Up "), "{driver}: {status}");
        world.ok(&["stop", "-t", "0", "c"]);
        assert_eq!(world.mounts(), 0, "{driver}");
        let merged = world.ok(&["mount", "c"]);
        assert_eq!(std::fs::read(Path::new(merged.trim()).join("data/kept")).unwrap(), b"kept\n", "{driver}");
        for pid in processes(world.dir.path(), "fsname=strata-c") {
            Command::new("kill").args(["-9", &pid]).status().unwrap();
        }
        let again = world.ok(&["mount", "c"]);
        assert_eq!(std::fs::read(Path::new(again.trim()).join("data/kept")).unwrap(), b"kept\n", "{driver}");
        world.ok(&["rm", "-f", "c"]);
        assert_eq!(world.mounts(), 0, "{driver}");
    }
}

/// Ids of the processes that have the text and the directory in their command line.
pub(super) fn processes(dir: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(text) && line.contains(dir.to_str().unwrap()) {
            found.push(entry.file_name().into_string().unwrap());
        }
    }
    found
}

#[test]
fn a_signal_reaches_the_container() {
    for world in worlds() {
        let script = "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.05; done";
        let mut child = world.command(&["run", "--rm", "tool:1", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut first = [0; 6];
        out.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"ready\n");
        Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(9), "{}", world.driver);
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.as_str(), world.mounts()), ("got\n", 0));
    }
}

#[test]
fn what_cannot_start_is_told_in_one_line() {
    for world in worlds() {
        let driver = world.driver;
        let one_line = |args: &[&str], code: i32, told: &str| {
            let output = world.run(args);
            let message = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(code), "{driver}: {message}");
            assert!(message.starts_with("strata: ") && message.lines().count() == 1, "{driver}: {message}");
            assert!(message.contains(told), "{driver}: {message}");
            assert_eq!((world.ok(&["ps", "-aq"]), world.mounts()), (String::new(), 0), "{driver}");
        };
        one_line(&["run", "--rm", "--entrypoint", "nonexistent", "tool:1"], 127, "nonexistent");
        one_line(&["run", "--rm", "--entrypoint", "/data/lower", "tool:1"], 126, "/data/lower");
        one_line(&["run", "--rm", "-w", "/data/lower", "tool:1"], 126, "/data/lower");
        one_line(&["run", "--rm", "--runtime", "/nonexistent", "tool:1"], 125, "/nonexistent: not found");
        one_line(&["run", "--rm", "-v", "/nonexistent:/x", "tool:1"], 125, "/nonexistent");
        one_line(&["mount", "tool:1", "/nonexistent"], 1, "/nonexistent");
        one_line(&["mount", "tol:1"], 1, "did you mean tool:1?");
    }
}

#[test]
fn export_is_the_whole_tree() {
    for world in worlds() {
        let out = world.dir.path().join("out.tar");
        world.ok(&["run", "--name", "c", "tool:1", "mv /data /data2"]);
        world.ok(&["export", "-o", out.to_str().unwrap(), "c"]);
        let list = Command::new("tar").arg("-tf").arg(&out).output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        assert!(list.contains("data2/lower\n") && list.contains("bin/sh\n") && !list.contains("data/"), "{list}");
        let flat = world.ok(&["import", out.to_str().unwrap(), "flat:1"]);
        assert!(flat.starts_with("sha256:"));
        world.ok(&["export", "-o", out.to_str().unwrap(), "flat:1"]);
        assert_eq!(world.names(), "c\n");
        assert_eq!(world.mounts(), 0);
    }
}

/// A process that may write to a file of a container cannot give the file another owner or the set-user-ID bit in the
/// committed image.
#[test]
fn an_attribute_of_a_container_is_no_owner_in_its_image() {
    use std::os::unix::fs::MetadataExt;
    const KEYS: [&str; 3] =
        ["user.containers.override_stat", "security.fuseoverlayfs.override_stat", "user.fuseoverlayfs.override_stat"];
    for world in worlds() {
        let path = world.dir.path().join("base.tar");
        std::fs::write(&path, Tar::new().dir("etc/").end()).unwrap();
        world.ok(&["import", path.to_str().unwrap(), "base:1"]);
        let merged = PathBuf::from(world.ok(&["mount", "--name", "sly", "base:1"]).trim());
        std::fs::write(merged.join("mine"), "x").unwrap();
        rustix::fs::chown(merged.join("mine"), Some(rustix::fs::Uid::from_raw(1000)), None).unwrap();
        for (name, key) in ["mine", "."].iter().flat_map(|name| KEYS.map(|key| (name, key))) {
            let set = rustix::fs::setxattr(merged.join(name), key, b"0:0:4755:file", rustix::fs::XattrFlags::empty());
            // A mark of fuse-overlayfs may be refused.
            assert!(set.is_ok() || key == KEYS[2], "{key} on {name}: {set:?}");
        }
        assert!(world.ok(&["diff", "sly"]).contains("A /mine\n"));
        world.ok(&["umount", "sly"]);
        world.ok(&["commit", "sly", "sly:1"]);
        let merged = PathBuf::from(world.ok(&["mount", "--name", "new", "sly:1"]).trim());
        let mine = std::fs::metadata(merged.join("mine")).unwrap();
        assert_eq!((mine.uid(), mine.mode() & 0o7777), (1000, 0o644), "{}", world.driver);
        world.ok(&["umount", "new"]);
    }
}

/// Attributes of a layer that override other attributes, owners and modes have no effect, neither when it is unpacked
/// nor when it is mounted.
#[test]
fn an_image_cannot_turn_kept_permissions_on() {
    use std::os::unix::fs::MetadataExt;
    const KEY: &str = "security.fuseoverlayfs.override_stat";
    for world in worlds() {
        let pax = format!("SCHILY.xattr.{KEY}");
        let tar = Tar::new()
            .entry(spec("./", b'5').mode(0o755).pax(&pax, "0:0:755:dir"))
            .dir("etc/")
            .entry(spec("etc/shadow", b'0').mode(0o600).content("x").pax(&pax, "1000:1000:4777:file"))
            .end();
        let path = world.dir.path().join("sly.tar");
        std::fs::write(&path, tar).unwrap();
        world.ok(&["import", path.to_str().unwrap(), "sly:1"]);
        let layers =
            || std::fs::read_dir(world.root().join("layers")).unwrap().map(|entry| entry.unwrap().path().join("diff"));
        let has_key = |path: &Path| {
            let mut value = [0; 64];
            rustix::fs::lgetxattr(path, KEY, &mut value).is_ok()
        };
        assert!(!layers().any(|layer| has_key(&layer) || has_key(&layer.join("etc/shadow"))));
        // A store of an older version may have such a layer.
        let old = layers().find(|layer| layer.join("etc/shadow").exists()).unwrap();
        for (name, value) in [("", "0:0:755:dir"), ("etc/shadow", "1000:1000:4777:file")] {
            rustix::fs::setxattr(old.join(name), KEY, value.as_bytes(), rustix::fs::XattrFlags::empty()).unwrap();
        }
        let merged = PathBuf::from(world.ok(&["mount", "--name", "sly", "sly:1"]).trim());
        let shadow = std::fs::metadata(merged.join("etc/shadow")).unwrap();
        assert_eq!((shadow.uid(), shadow.gid(), shadow.mode() & 0o7777), (0, 0, 0o600), "{}", world.driver);
        world.ok(&["umount", "sly"]);
    }
}
