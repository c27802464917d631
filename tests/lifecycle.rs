//! A mount from start to end, with the real program: exit codes, messages, signals, unmounting.

#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Ends the test unless mounts are to be tested; says so in a line that can be counted.
macro_rules! needs_fuse {
    () => {
        if std::env::var_os("STRATAFS_TEST_NO_FUSE").is_some_and(|value| value == "1") {
            let thread = std::thread::current();
            return common::skip(thread.name().unwrap_or_default(), "STRATAFS_TEST_NO_FUSE=1");
        }
        assert!(Path::new("/dev/fuse").exists(), "/dev/fuse is missing; STRATAFS_TEST_NO_FUSE=1 skips mount tests");
    };
}

/// Environment variable that tells the daemons of one scene from others.
const MARK: &str = "STRATAFS_TEST_SCENE";

/// A directory with layers and a mountpoint. Unmounts at the end, whatever happens.
struct Scene(TempDir);

impl Scene {
    fn new() -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        for name in ["lower", "upper", "work", "mnt"] {
            fs::create_dir(scene.path(name)).unwrap();
        }
        fs::write(scene.path("lower/file"), "from the lower layer\n").unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run<S: AsRef<OsStr>>(&self, program: &str, arguments: &[S]) -> Output {
        // A blocked step fails the test instead of stopping all tests.
        self.command("timeout").arg("60").arg(program).args(arguments).output().unwrap()
    }

    /// `program` in our directory, marked so that its children can be found.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.0.path()).env(MARK, self.0.path()).stdin(Stdio::null());
        command
    }

    fn stratafs(&self, arguments: &[&str]) -> Output {
        self.run(env!("CARGO_BIN_EXE_stratafs"), arguments)
    }

    /// Mounts on `mnt`; the daemon.
    fn mount(&self, arguments: &[&str]) -> Daemon {
        let output = self.stratafs(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        assert_eq!((output.stdout, String::from_utf8(output.stderr).unwrap()), (vec![], String::new()));
        self.daemon()
    }

    fn mount_writable(&self) -> Daemon {
        self.mount(&["-o", "lowerdir=lower,upperdir=upper,workdir=work", "mnt"])
    }

    /// The process that serves `mnt`.
    fn daemon(&self) -> Daemon {
        let mut daemons = self.daemons();
        match (daemons.pop(), daemons.as_slice()) {
            (Some(daemon), []) => daemon,
            (_, others) => panic!("daemons: {:?}", others.iter().map(|daemon| daemon.0).collect::<Vec<_>>()),
        }
    }

    /// The processes of our program that were started in this scene.
    fn daemons(&self) -> Vec<Daemon> {
        let binary = fs::canonicalize(env!("CARGO_BIN_EXE_stratafs")).unwrap();
        let mark = format!("{MARK}={}\0", self.0.path().display());
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == binary))
            .filter(|pid| {
                fs::read(format!("/proc/{pid}/environ"))
                    .is_ok_and(|environment| String::from_utf8_lossy(&environment).contains(&mark))
            })
            .map(Daemon)
            .collect()
    }

    /// The mounts on `mnt`: type and source.
    fn mounts(&self) -> Vec<(String, String)> {
        let mountpoint = self.path("mnt").to_str().unwrap().to_owned();
        fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .lines()
            .filter(|line| line.split(' ').nth(4) == Some(&mountpoint))
            .map(|line| {
                let (_, filesystem) = line.split_once(" - ").unwrap();
                let mut fields = filesystem.split(' ').map(str::to_owned);
                (fields.next().unwrap(), fields.next().unwrap())
            })
            .collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        while !self.mounts().is_empty() {
            if !self.run("umount", &["-l", "mnt"]).status.success() {
                break;
            }
        }
    }
}

/// A serving process.
struct Daemon(u32);

impl Daemon {
    /// A zombie has ended: process 1 may take its time to reap it.
    fn runs(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.0))
            .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap().starts_with('Z'))
    }

    fn parent(&self) -> u32 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap();
        stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn ends_within(&self, limit: Duration) {
        let start = Instant::now();
        while self.runs() {
            assert!(start.elapsed() < limit, "still running after {limit:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([&format!("-{name}"), &self.0.to_string()]).status().unwrap().success());
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// Time limit for short steps on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn exit_0_means_mounted() {
    needs_fuse!();
    let scene = Scene::new();
    scene.mount_writable();
    assert_eq!(fs::read_to_string(scene.path("mnt/file")).unwrap(), "from the lower layer\n");
    assert_eq!(scene.mounts(), [("fuse.stratafs".to_owned(), "stratafs".to_owned())]);
}

#[test]
fn bad_input_mounts_nothing_and_names_the_thing() {
    needs_fuse!();
    let scene = Scene::new();
    fs::write(scene.path("plain"), "").unwrap();
    fs::create_dir(scene.path("other")).unwrap();
    let other_fs = File::open("/dev/shm").is_ok().then(|| tempfile::tempdir_in("/dev/shm").unwrap());
    let mut table = vec![
        ("lowerdir=missing".to_owned(), "missing"),
        ("lowerdir=lower:missing,upperdir=upper,workdir=work".to_owned(), "missing"),
        ("lowerdir=plain".to_owned(), "plain"),
        ("lowerdir=lower,upperdir=plain,workdir=work".to_owned(), "plain"),
        ("lowerdir=lower,upperdir=missing,workdir=work".to_owned(), "missing"),
        ("lowerdir=lower,upperdir=upper,workdir=plain".to_owned(), "plain"),
        ("lowerdir=lower,upperdir=upper,workdir=missing".to_owned(), "missing"),
        ("lowerdir=lower,upperdir=upper".to_owned(), "workdir"),
        ("lowerdir=lower,upperdir=upper,workdir=upper".to_owned(), "upper"),
    ];
    if let Some(other) = &other_fs {
        table.push((format!("lowerdir=lower,upperdir=upper,workdir={}", other.path().display()), "shm"));
    }
    for (options, named) in table {
        for foreground in [&["-f", "-o"][..], &["-o"]] {
            let output = scene.stratafs(&[foreground, &[&options, "mnt"]].concat());
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{options}: {stderr}");
            assert_eq!(stderr.lines().count(), 1, "{options}: {stderr}");
            assert!(stderr.contains(named), "{options}: {stderr}");
            assert_eq!(scene.mounts(), [], "{options}");
        }
    }
    assert_eq!(fs::read_dir(scene.path("upper")).unwrap().count(), 0);
}

#[test]
fn the_daemon_lets_go_of_the_callers_streams() {
    needs_fuse!();
    let scene = Scene::new();
    let (mut stdout, writer) = std::io::pipe().unwrap();
    let mut command = scene.command(env!("CARGO_BIN_EXE_stratafs"));
    command.args(["-o", "lowerdir=lower", "mnt"]);
    command.stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut child = command.spawn().unwrap();
    drop(command);
    let start = Instant::now();
    let mut said = String::new();
    // Returns only when no process holds the other end any more.
    stdout.read_to_string(&mut said).unwrap();
    assert!(start.elapsed() < PATIENCE);
    assert_eq!(said, "");
    assert!(child.wait().unwrap().success());
    let daemon = scene.daemon();
    assert_eq!(fs::read_link(format!("/proc/{}/cwd", daemon.0)).unwrap(), Path::new("/"));
    for stream in 0..3 {
        let target = fs::read_link(format!("/proc/{}/fd/{stream}", daemon.0)).unwrap();
        assert_eq!(target, Path::new("/dev/null"));
    }
}

#[test]
fn the_daemon_is_in_a_session_of_its_own() {
    needs_fuse!();
    let scene = Scene::new();
    let daemon = scene.mount_writable();
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.0)).unwrap();
    let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap().to_owned();
    assert_eq!(session, daemon.0.to_string());
}

#[test]
fn signals_unmount() {
    needs_fuse!();
    let by_default_end_a_process = ["USR2", "ALRM", "VTALRM", "PROF", "POLL", "PWR", "STKFLT", "34", "64"];
    for signal in ["TERM", "INT", "HUP", "QUIT"].into_iter().chain(by_default_end_a_process) {
        let scene = Scene::new();
        let daemon = scene.mount_writable();
        daemon.signal(signal);
        daemon.ends_within(PATIENCE);
        assert_eq!(scene.mounts(), [], "{signal}");
    }
}

#[test]
fn a_signal_unmounts_a_mount_in_use() {
    needs_fuse!();
    let scene = Scene::new();
    let daemon = scene.mount_writable();
    let open = File::open(scene.path("mnt/file")).unwrap();
    daemon.signal("TERM");
    daemon.ends_within(PATIENCE);
    assert_eq!(scene.mounts(), []);
    drop(open);
}

#[test]
fn usr1_does_no_harm() {
    needs_fuse!();
    let scene = Scene::new();
    let daemon = scene.mount_writable();
    daemon.signal("USR1");
    std::thread::sleep(SECOND / 10);
    assert!(daemon.runs());
    assert!(fs::read(scene.path("mnt/file")).is_ok());
}

#[test]
fn unmounting_from_outside_ends_the_process() {
    needs_fuse!();
    for command in [&["umount", "mnt"][..], &["fusermount3", "-u", "mnt"], &["umount", "-l", "mnt"]] {
        let ends_at_once = || {
            let scene = Scene::new();
            let daemon = scene.mount_writable();
            let output = scene.run(command[0], &command[1..]);
            assert!(output.status.success(), "{command:?}: {output:?}");
            let unmounted = Instant::now();
            daemon.ends_within(PATIENCE);
            assert_eq!(scene.mounts(), []);
            unmounted.elapsed() < SECOND
        };
        // The machine may be too busy for a while, but not always.
        let mostly = || (0..5).filter(|_| ends_at_once()).count() >= 3;
        assert!((0..8).any(|_| mostly()), "{command:?}: the process does not end within a second");
    }
}

#[test]
fn a_lazy_unmount_serves_open_files_to_the_end() {
    needs_fuse!();
    let scene = Scene::new();
    let daemon = scene.mount_writable();
    let mut open = File::open(scene.path("mnt/file")).unwrap();
    assert!(scene.run("umount", &["-l", "mnt"]).status.success());
    std::thread::sleep(SECOND / 5);
    assert!(daemon.runs());
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from the lower layer\n");
    drop(open);
    daemon.ends_within(PATIENCE);
}

/// Unmounting by fuser would unmount the new mount (see `fuse::mount`).
#[test]
fn a_mount_made_at_the_same_place_meanwhile_stays() {
    needs_fuse!();
    let scene = Scene::new();
    let first = scene.mount_writable();
    let open = File::open(scene.path("mnt/file")).unwrap();
    assert!(scene.run("umount", &["-l", "mnt"]).status.success());
    assert!(scene.stratafs(&["-o", "lowerdir=lower,fsname=second", "mnt"]).status.success());
    first.signal("TERM");
    first.ends_within(PATIENCE);
    drop(open);
    assert_eq!(scene.mounts(), [("fuse.stratafs".to_owned(), "second".to_owned())]);
    assert!(fs::read(scene.path("mnt/file")).is_ok());
}

#[test]
fn the_source_is_fsname_or_the_first_argument() {
    needs_fuse!();
    for (arguments, source) in [
        (&["-o", "lowerdir=lower", "mnt"][..], "stratafs"),
        (&["overlay", "mnt", "-o", "lowerdir=lower", "-t", "fuse-overlayfs"], "overlay"),
        (&["overlay", "mnt", "-o", "lowerdir=lower,fsname=given", "-o", "dev,suid"], "given"),
        (&["-o", r"lowerdir=lower,fsname=a\,b", "mnt"], "a,b"),
    ] {
        let scene = Scene::new();
        scene.mount(arguments);
        assert_eq!(scene.mounts(), [("fuse.stratafs".to_owned(), source.to_owned())]);
    }
}

#[test]
fn the_mount_helper_of_libfuse_mounts() {
    needs_fuse!();
    if Command::new("mount.fuse3").arg("-h").output().is_err() {
        return common::skip("the_mount_helper_of_libfuse_mounts", "mount.fuse3 is not installed");
    }
    let scene = Scene::new();
    let bin = Path::new(env!("CARGO_BIN_EXE_stratafs")).parent().unwrap();
    let mut command = scene.command("mount.fuse3");
    command.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()));
    command.args(["source", "mnt", "-o", "workdir=work", "-o", "upperdir=upper", "-o", "lowerdir=lower"]);
    let output = command.args(["-t", "stratafs"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(scene.mounts(), [("fuse.stratafs".to_owned(), "source".to_owned())]);
}

#[test]
fn layers_are_relative_to_the_callers_directory() {
    needs_fuse!();
    let scene = Scene::new();
    // As container stores do it: short links to long names.
    fs::create_dir(scene.path("l")).unwrap();
    symlink("../lower", scene.path("l/ABC")).unwrap();
    scene.mount(&["-o", "lowerdir=l/ABC,upperdir=upper,workdir=work", "./mnt/../mnt"]);
    assert!(scene.path("mnt/file").exists());
}

/// Container stores have one layer for each instruction, and long names.
#[test]
fn option_strings_of_4_kib_with_120_layers() {
    needs_fuse!();
    let scene = Scene::new();
    fs::create_dir(scene.path("l")).unwrap();
    let names: Vec<String> = (0..120).map(|number| format!("l/ABCDEFGHIJKLMNOPQRSTUVWXYZ-{number:03}-ABC")).collect();
    for (number, name) in names.iter().enumerate() {
        fs::create_dir(scene.path(&format!("layer-{number}"))).unwrap();
        fs::write(scene.path(&format!("layer-{number}/of-{number}")), number.to_string()).unwrap();
        fs::write(scene.path(&format!("layer-{number}/topmost")), number.to_string()).unwrap();
        symlink(format!("../layer-{number}"), scene.path(name)).unwrap();
    }
    let options = format!("lowerdir={},upperdir=upper,workdir=work", names.join(":"));
    assert!(options.len() > 4096, "{}", options.len());
    scene.mount(&["-o", &options, "mnt"]);
    assert_eq!(fs::read_dir(scene.path("mnt")).unwrap().count(), 121);
    assert_eq!(fs::read_to_string(scene.path("mnt/topmost")).unwrap(), "0");
    assert_eq!(fs::read_to_string(scene.path("mnt/of-119")).unwrap(), "119");
}

#[test]
fn mounts_inside_another_mount() {
    needs_fuse!();
    let scene = Scene::new();
    fs::create_dir(scene.path("lower/inner")).unwrap();
    fs::create_dir(scene.path("other")).unwrap();
    fs::write(scene.path("other/deep"), "").unwrap();
    let outer = scene.mount_writable();
    let output = scene.stratafs(&["-o", "lowerdir=other", "mnt/inner"]);
    assert!(output.status.success(), "{output:?}");
    assert!(scene.path("mnt/inner/deep").exists() && scene.path("mnt/file").exists());
    // The outer mount is in use by the inner one.
    assert!(!scene.run("umount", &["mnt"]).status.success());
    assert!(scene.run("umount", &["mnt/inner"]).status.success());
    assert_eq!(fs::read_dir(scene.path("mnt/inner")).unwrap().count(), 0);
    assert!(scene.run("umount", &["mnt"]).status.success());
    outer.ends_within(PATIENCE);
}

/// Engines use it to find out the file system below a layer, and whether their mount exists.
#[test]
fn statfs_says_fuse() {
    needs_fuse!();
    let scene = Scene::new();
    scene.mount_writable();
    const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;
    let shown = rustix::fs::statfs(scene.path("mnt/file")).unwrap();
    assert_eq!(u64::try_from(shown.f_type).unwrap(), FUSE_SUPER_MAGIC);
    let upper = rustix::fs::statfs(scene.path("upper")).unwrap();
    assert_eq!((shown.f_blocks, shown.f_bsize, shown.f_files), (upper.f_blocks, upper.f_bsize, upper.f_files));
    assert_eq!(shown.f_namelen, 255);
}

/// If an engine requests options that have no effect, a warning names them.
#[test]
fn unsupported_options_of_engines_warn_and_mount() {
    needs_fuse!();
    for (option, said) in [("iversion", "'iversion'"), ("nfs_export=on", "'nfs_export'"), ("ino32_t", "64 bits")] {
        let scene = Scene::new();
        let output = scene.stratafs(&["-o", &format!("lowerdir=lower,{option}"), "mnt"]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains("warning") && stderr.contains(said), "{stderr}");
        assert_eq!(scene.mounts().len(), 1);
    }
}

#[test]
fn unknown_options_warn_and_mount() {
    needs_fuse!();
    let scene = Scene::new();
    let output = scene.stratafs(&["-o", "lowerdir=lower,sparkle,sparkle", "mnt"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("warning") && stderr.contains("'sparkle'"), "{stderr}");
    assert_eq!(scene.mounts().len(), 1);
}

#[test]
fn the_kernel_shows_the_flags() {
    needs_fuse!();
    let scene = Scene::new();
    scene.mount(&["-o", "lowerdir=lower,upperdir=upper,workdir=work,nosuid,nodev,noexec,noatime", "mnt"]);
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mountpoint = scene.path("mnt").to_str().unwrap().to_owned();
    let line = mountinfo.lines().find(|line| line.contains(&mountpoint)).unwrap();
    for flag in ["rw", "nosuid", "nodev", "noexec", "noatime"] {
        assert!(line.split(' ').nth(5).unwrap().split(',').any(|shown| shown == flag), "{flag}: {line}");
    }
}

#[test]
fn without_an_upper_the_mount_is_read_only() {
    needs_fuse!();
    let scene = Scene::new();
    scene.mount(&["-o", "lowerdir=lower", "mnt"]);
    let error = fs::write(scene.path("mnt/new"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn killing_the_caller_does_not_kill_the_mount() {
    needs_fuse!();
    let scene = Scene::new();
    let mut shell = scene.command("sh");
    let script = format!("{} -o lowerdir=lower mnt && kill -9 0", env!("CARGO_BIN_EXE_stratafs"));
    // A process group of its own, so that `kill 0` hits the shell and what it started only.
    std::os::unix::process::CommandExt::process_group(&mut shell, 0);
    shell.args(["-c", &script]).status().unwrap();
    std::thread::sleep(SECOND / 10);
    assert!(fs::read(scene.path("mnt/file")).is_ok());
}

/// With `auto_unmount`, a second process unmounts after a `kill -9`. It finds a mount that was moved, and unmounts
/// nothing else.
#[test]
fn killed_with_auto_unmount() {
    needs_fuse!();
    let scene = Scene::new();
    let start = |foreground: bool| {
        let options = "lowerdir=lower,upperdir=upper,workdir=work,auto_unmount";
        if foreground {
            let mut child = scene.command(env!("CARGO_BIN_EXE_stratafs"));
            child.args(["-f", "-o", options, "mnt"]).stdout(Stdio::piped()).spawn().map(Some).unwrap()
        } else {
            let output = scene.stratafs(&["-o", options, "mnt"]);
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
            None
        }
    };
    let mounted = |is: bool| {
        let start = Instant::now();
        while scene.mounts().is_empty() == is {
            assert!(start.elapsed() < PATIENCE, "mounted: {:?}", scene.mounts());
            std::thread::sleep(SECOND / 100);
        }
    };
    for foreground in [false, true] {
        let child = start(foreground);
        mounted(true);
        // The watcher is forked first and has the higher number, unless the numbers wrapped; its parent tells.
        let both = scene.daemons();
        let (watcher, daemon) = match both.as_slice() {
            [a, b] if a.parent() == b.0 => (a, b),
            [a, b] if b.parent() == a.0 => (b, a),
            _ => panic!("{:?}", both.iter().map(|one| one.0).collect::<Vec<_>>()),
        };
        assert!(scene.path("mnt/file").exists());
        daemon.signal("KILL");
        mounted(false);
        watcher.ends_within(PATIENCE);
        // Standard output was closed, or the caller would wait.
        if let Some(child) = child {
            child.wait_with_output().unwrap();
        }
    }
    // If the mount ends by itself, the second process does nothing: another mount at the path stays.
    start(false);
    assert!(scene.run("umount", &["mnt"]).status.success());
    let output = scene.stratafs(&["-o", "lowerdir=lower", "mnt"]);
    assert!(output.status.success(), "{output:?}");
    let start = Instant::now();
    while scene.daemons().len() > 1 {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(SECOND / 100);
    }
    assert_eq!(scene.mounts().len(), 1);
}

#[test]
fn in_the_foreground_it_stays_until_a_signal() {
    needs_fuse!();
    let scene = Scene::new();
    // Signals that the caller ignores stay ignored; tests started in the background ignore SIGINT.
    let mut command = scene.command("env");
    command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_stratafs"), "-f", "-o", "lowerdir=lower", "mnt"]);
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    while scene.mounts().is_empty() {
        assert!(start.elapsed() < PATIENCE && child.try_wait().unwrap().is_none());
        std::thread::sleep(SECOND / 100);
    }
    Daemon(child.id()).signal("INT");
    assert!(child.wait().unwrap().success());
    assert_eq!(scene.mounts(), []);
}

/// The message has one line, although fuser logs the same.
#[test]
fn delimiters_in_names_are_told_of() {
    needs_fuse!();
    let scene = Scene::new();
    for (name, options, written) in [
        ("co:lon", "lowerdir=co:lon", r"co\:lon"),
        ("com,ma", "lowerdir=com,ma", r"com\,ma"),
        ("up,per", "lowerdir=lower,upperdir=up,per,workdir=work", r"up\,per"),
    ] {
        fs::create_dir(scene.path(name)).unwrap();
        let output = scene.stratafs(&["-o", options, "mnt"]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.lines().count() == 1 && told.contains(&format!("write '{name}' as '{written}'")), "{told}");
        let output = scene.stratafs(&["-o", &options.replace(name, written), "mnt"]);
        assert!(output.status.success(), "{output:?}");
        scene.run("umount", &["mnt"]);
    }
}

/// `MOUNTPOINT -- COMMAND`: the mount lives as long as the command, and the program exits with the command's code.
#[test]
fn with_a_command() {
    needs_fuse!();
    let scene = Scene::new();
    let mount = ["-o", "lowerdir=lower,upperdir=upper,workdir=work", "mnt", "--"];
    let unmounted = || !scene.path("mnt/file").exists();
    for (command, code) in [
        (&["sh", "-c", "cat mnt/file && echo new >mnt/new"][..], 0),
        (&["sh", "-c", "exit 7"][..], 7),
        (&["sh", "-c", "kill -KILL $$"][..], 137),
        (&["no-such-program"][..], 127),
        (&["./upper"][..], 126),
    ] {
        let output = scene.stratafs(&[&mount[..], command].concat());
        assert_eq!(output.status.code(), Some(code), "{command:?}: {output:?}");
        assert!(unmounted(), "{command:?}");
        if code == 0 {
            assert_eq!(output.stdout, b"from the lower layer\n");
            assert_eq!(fs::read(scene.path("upper/new")).unwrap(), b"new\n");
        }
        assert_eq!(output.stderr.is_empty(), !(126..=127).contains(&code), "{command:?}: {output:?}");
    }
    // Nothing runs if nothing can be mounted.
    let output = scene.stratafs(&["-o", "lowerdir=missing", "mnt", "--", "touch", "ran"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!scene.path("ran").exists());
    // A signal goes to the command.
    let mut child = scene.command(env!("CARGO_BIN_EXE_stratafs")).args(mount).args(["sleep", "100"]).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while unmounted() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    // The command may start a moment after the mount is there.
    std::thread::sleep(Duration::from_millis(200));
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(unmounted());
}

#[test]
fn a_mountpoint_that_is_mounted_already_is_told() {
    needs_fuse!();
    let scene = Scene::new();
    let writable = ["-o", "lowerdir=lower,upperdir=upper,workdir=work", "mnt"];
    let first = scene.stratafs(&writable);
    assert!(first.status.success() && first.stderr.is_empty(), "{first:?}");
    let again = scene.stratafs(&writable);
    let told = String::from_utf8(again.stderr).unwrap();
    assert_eq!((again.status.code(), told.lines().count()), (Some(1), 1), "{told}");
    assert!(told.contains("mnt' is already mounted: upperdir"), "{told}");
    // Another union covers it, as mount(8) does.
    let other = scene.stratafs(&["-o", "lowerdir=lower", "mnt"]);
    let told = String::from_utf8(other.stderr).unwrap();
    assert!(other.status.success() && told.lines().count() == 1, "{told}");
    assert!(told.contains("warning: the mountpoint is already mounted by stratafs"), "{told}");
    scene.run("umount", &["mnt"]);
    scene.run("umount", &["mnt"]);
}

#[test]
fn without_the_device_one_line_says_so() {
    needs_fuse!();
    let scene = Scene::new();
    let script = r#"mount -t tmpfs none upper && mount --bind upper /dev && exec "$1" -o lowerdir=lower mnt"#;
    let program = env!("CARGO_BIN_EXE_stratafs");
    let output = scene.run("unshare", &["-m", "--propagation", "private", "sh", "-c", script, "sh", program]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("stratafs: cannot mount on") && stderr.contains("/dev/fuse"), "{stderr}");
    assert!(stderr.contains("strata doctor"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}
