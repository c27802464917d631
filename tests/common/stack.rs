//! Stacks of layers in a temporary directory, mounted by either driver.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, move_mount, unmount,
};
use stratafs::control::{Answer, Client, Request};
use stratafs::marks::chain::Chain;
use stratafs::union::layer::chain::{chain_namespace, copy_root, new_id, read_chain, write_chain};
use tempfile::TempDir;

use super::uppers::Upper;
use super::{Driver, sys, tree, unwatch_daemon, watch_daemon};

/// Longest time that a daemon may take to start, or to end after its unmount.
const DAEMON_LIMIT: Duration = Duration::from_secs(60);

/// Options of every kernel mount: those that stratafs has by default.
const KERNEL_OPTIONS: [&str; 4] = ["redirect_dir=on", "index=off", "xino=auto", "metacopy=off"];

/// The directory through which a stack reaches its upper and work directory.
const WRITABLE: &str = "writable";

/// The directory for tests' directories. Not `/tmp`, which may be a tmpfs.
pub fn base() -> PathBuf {
    std::env::var_os("STRATAFS_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// A stack to mount: layers as text (see [`tree`]), topmost lower first.
#[derive(Clone, Debug, Default)]
pub struct Stack {
    lowers: Vec<String>,
    data_only: Vec<String>,
    upper: Option<String>,
    options: Vec<String>,
    extra: Vec<String>,
    descriptors: Option<u32>,
    upper_on: Upper,
}

impl Stack {
    /// No lower layer and an empty upper.
    pub fn new() -> Self {
        Self { upper: Some(String::new()), ..Self::default() }
    }

    /// Adds a lower layer below those added before.
    pub fn lower(mut self, text: &str) -> Self {
        self.lowers.push(text.to_owned());
        self
    }

    /// Adds a layer below all others that only holds data (`::`).
    pub fn data_only(mut self, text: &str) -> Self {
        self.data_only.push(text.to_owned());
        self
    }

    /// Fills the upper before the mount.
    pub fn upper(mut self, text: &str) -> Self {
        self.upper = Some(text.to_owned());
        self
    }

    /// Neither upper nor work directory: a read-only mount.
    pub fn read_only(mut self) -> Self {
        self.upper = None;
        self
    }

    /// An option that has the same name in both drivers.
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }

    /// An option that only stratafs knows.
    pub fn stratafs_option(mut self, option: &str) -> Self {
        self.extra.push(option.to_owned());
        self
    }

    /// The maximum number of descriptors that stratafs may have open; a fraction of them is for files that may be opened again.
    pub fn descriptors(mut self, most: u32) -> Self {
        self.descriptors = Some(most);
        self
    }

    /// The file system through which stratafs reaches its upper.
    pub fn upper_on(mut self, upper_on: Upper) -> Self {
        self.upper_on = upper_on;
        self
    }

    /// Builds the layers without mounting them.
    pub fn build(self) -> Layers {
        self.build_in(&base())
    }

    /// [`Self::build`] in a directory below `base`.
    pub fn build_in(self, base: &Path) -> Layers {
        let directory = Scratch::new(base, "stratafs-test-");
        let root = directory.path().to_owned();
        sys::chmod(&root, 0o755).unwrap();
        // The upper and its work directory are on one mount.
        sys::mkdir(&root.join(WRITABLE), 0o755).unwrap();
        let layer = |name: String, text: &str| {
            let path = root.join(name);
            sys::mkdir(&path, 0o755).unwrap();
            tree::build(&path, text);
            path
        };
        let lowers: Vec<PathBuf> =
            self.lowers.iter().enumerate().map(|(at, text)| layer(format!("lower{at}"), text)).collect();
        let data_only: Vec<PathBuf> =
            self.data_only.iter().enumerate().map(|(at, text)| layer(format!("data{at}"), text)).collect();
        let upper = self.upper.as_ref().map(|text| layer(format!("{WRITABLE}/upper"), text));
        let work = upper.as_ref().map(|_| layer(format!("{WRITABLE}/work"), ""));
        let point = layer("merged".to_owned(), "");
        let Self { options, extra, descriptors, upper_on, .. } = self;
        let originals = Vec::new();
        let mut layers = Layers {
            directory,
            lowers,
            data_only,
            upper,
            work,
            point,
            options,
            extra,
            descriptors,
            upper_on,
            originals,
        };
        layers.settle();
        layers
    }

    /// Builds the layers and mounts them.
    #[track_caller]
    pub fn mount(self, driver: Driver) -> Mount {
        self.build().mount(driver)
    }
}

/// Makes the inventory of a layer.
pub fn take_inventory(layer: &Path) -> PathBuf {
    let written = stratafs::inventory::write(layer);
    written.unwrap_or_else(|error| panic!("inventory of {}: {error}", layer.display())).path
}

/// A temporary directory in which a test may mount anything. When it is dropped, mounts in it are unmounted first,
/// because they would prevent its removal.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// A new directory in `base`.
    pub fn new(base: &Path, prefix: &str) -> Self {
        Self(tempfile::Builder::new().prefix(prefix).tempdir_in(base).expect("a directory"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Each test's thread has mounts of its own.
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        for place in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(place).starts_with(self.path())
                && let Err(error) = unmount(place, UnmountFlags::DETACH)
            {
                eprintln!("{place} stays mounted: {error}");
            }
        }
    }
}

/// Layers on disk.
#[derive(Debug)]
pub struct Layers {
    pub directory: Scratch,
    pub lowers: Vec<PathBuf>,
    pub data_only: Vec<PathBuf>,
    pub upper: Option<PathBuf>,
    pub work: Option<PathBuf>,
    pub point: PathBuf,
    pub options: Vec<String>,
    pub extra: Vec<String>,
    pub descriptors: Option<u32>,
    pub upper_on: Upper,
    /// The initial content of the lower layers.
    pub originals: Vec<BTreeMap<String, String>>,
}

impl Layers {
    /// Records the content of the lower layers, which must be the same at the end.
    pub fn settle(&mut self) {
        self.originals = self.lowers.iter().map(|path| tree::snapshot(path, true)).collect();
        if super::uses_inventories() {
            for layer in self.lowers.iter().chain(&self.data_only) {
                take_inventory(layer);
            }
        }
    }

    /// Mounts; panics when that fails.
    #[track_caller]
    pub fn mount(self, driver: Driver) -> Mount {
        match self.try_mount(driver) {
            Ok(mount) => mount,
            Err((message, _)) => panic!("{driver:?} does not mount: {message}"),
        }
    }

    /// Mounts; on failure returns the layers with the message.
    #[allow(clippy::result_large_err)]
    pub fn try_mount(self, driver: Driver) -> Result<Mount, (String, Self)> {
        let mounted = match driver {
            Driver::Overlayfs => self.mount_overlayfs_patiently().map(|()| None),
            Driver::Stratafs => self.mount_stratafs(Command::spawn).map(Some),
        };
        match mounted {
            Ok(daemon) => Ok(Mount { layers: Some(self), driver, daemon }),
            Err(message) => Err((message, self)),
        }
    }

    /// Mounts stratafs, started by `spawn`; panics when that fails.
    #[track_caller]
    pub fn mount_started_by(self, spawn: impl FnOnce(&mut Command) -> std::io::Result<Child>) -> Mount {
        match self.try_mount_started_by(spawn) {
            Ok(mount) => mount,
            Err((message, _)) => panic!("stratafs does not mount: {message}"),
        }
    }

    /// Mounts stratafs, started by `spawn`; hands the layers back with the message when that fails.
    #[allow(clippy::result_large_err)]
    pub fn try_mount_started_by(
        self,
        spawn: impl FnOnce(&mut Command) -> std::io::Result<Child>,
    ) -> Result<Mount, (String, Self)> {
        match self.mount_stratafs(spawn) {
            Ok(daemon) => Ok(Mount { layers: Some(self), driver: Driver::Stratafs, daemon: Some(daemon) }),
            Err(message) => Err((message, self)),
        }
    }

    /// A child forked by another test holds the last mount's descriptor until it executes a program; with an index,
    /// the kernel refuses the upper until then.
    fn mount_overlayfs_patiently(&self) -> Result<(), String> {
        let busy_until = Instant::now() + Duration::from_secs(5);
        loop {
            match self.mount_overlayfs() {
                Err(message) if message.contains("os error 16") && Instant::now() < busy_until => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                done => return done,
            }
        }
    }

    fn mount_overlayfs(&self) -> Result<(), String> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| format!("fsopen: {error}"))?;
        let failed = |what: &str, error: rustix::io::Errno| {
            let mut log = String::new();
            let mut buffer = [0; 512];
            while let Ok(count @ 1..) = rustix::io::read(&context, &mut buffer) {
                log.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
            format!("{what}: {error}: {log}")
        };
        let set = |key: &str, value: &std::ffi::OsStr| {
            fsconfig_set_string(&context, key, value.as_bytes()).map_err(|error| failed(key, error))
        };
        for lower in &self.lowers {
            set("lowerdir+", lower.as_os_str())?;
        }
        for layer in &self.data_only {
            set("datadir+", layer.as_os_str())?;
        }
        if let (Some(upper), Some(work)) = (&self.upper, &self.work) {
            set("upperdir", upper.as_os_str())?;
            set("workdir", work.as_os_str())?;
        }
        let chosen = self.options.iter().map(String::as_str);
        // Its redirects need trusted.* attributes; it refuses to be asked for them.
        let userxattr = self.options.iter().any(|option| option == "userxattr");
        let defaults = KERNEL_OPTIONS.into_iter().filter(|option| !(userxattr && option.starts_with("redirect_dir")));
        for option in defaults.chain(chosen) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            if option.contains('=') {
                set(key, value.as_ref())?;
            } else {
                rustix::mount::fsconfig_set_flag(&context, key).map_err(|error| failed(key, error))?;
            }
        }
        fsconfig_create(&context).map_err(|error| failed("create", error))?;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
            .map_err(|error| failed("fsmount", error))?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&mount, "", rustix::fs::CWD, &self.point, flags).map_err(|error| failed("move_mount", error))
    }

    /// Arguments of the `stratafs` program for these layers.
    pub fn stratafs_arguments(&self) -> Vec<std::ffi::OsString> {
        let mut options = b"allow_other,suid,dev".to_vec();
        for (at, lower) in self.lowers.iter().enumerate() {
            options.extend_from_slice(if at == 0 { b",lowerdir=" } else { b":" });
            options.extend_from_slice(lower.as_os_str().as_bytes());
        }
        for layer in &self.data_only {
            options.extend_from_slice(b"::");
            options.extend_from_slice(layer.as_os_str().as_bytes());
        }
        if let (Some(upper), Some(work)) = (&self.upper, &self.work) {
            options.extend_from_slice(b",upperdir=");
            options.extend_from_slice(self.reached(upper).as_os_str().as_bytes());
            options.extend_from_slice(b",workdir=");
            options.extend_from_slice(self.reached(work).as_os_str().as_bytes());
        }
        for option in self.options.iter().chain(&self.extra) {
            options.push(b',');
            options.extend_from_slice(option.as_bytes());
        }
        // Through this variable, scripts/test runs the tests of one transport on another.
        if let Some(transport) = std::env::var_os("STRATAFS_TEST_TRANSPORT") {
            options.extend_from_slice(b",transport=");
            options.extend_from_slice(transport.as_bytes());
        }
        let options = std::os::unix::ffi::OsStringExt::from_vec(options);
        vec!["-f".into(), "-o".into(), options, self.point.clone().into_os_string()]
    }

    /// The path by which stratafs knows the upper or work directory `path`.
    fn reached(&self, path: &Path) -> PathBuf {
        let writable = self.directory.path().join(WRITABLE);
        match path.strip_prefix(&writable) {
            Ok(below) => self.upper_on.reach(&writable).join(below),
            Err(_) => path.to_owned(),
        }
    }

    /// Path of what the daemon writes to stderr.
    pub fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn mount_stratafs(&self, spawn: impl FnOnce(&mut Command) -> std::io::Result<Child>) -> Result<Child, String> {
        let log = File::options().create(true).append(true).open(self.log()).expect("a log");
        let before = sys::lstat(&self.point).expect("a mountpoint").st_dev;
        let program = env!("CARGO_BIN_EXE_stratafs");
        let mut command = match self.descriptors {
            None => Command::new(program),
            Some(most) => {
                let mut limited = Command::new("prlimit");
                limited.arg(format!("--nofile={most}:{most}")).arg(program);
                limited
            }
        };
        command.args(self.stratafs_arguments()).stdin(Stdio::null()).stdout(log.try_clone().expect("dup")).stderr(log);
        self.upper_on.restrict(&mut command);
        let mut daemon = spawn(&mut command).expect("start stratafs");
        watch_daemon(daemon.id());
        let deadline = Instant::now() + DAEMON_LIMIT;
        loop {
            let ended = daemon.try_wait().expect("wait");
            let mounted = ended.is_none() && sys::lstat(&self.point).is_ok_and(|stat| stat.st_dev != before);
            if mounted {
                return Ok(daemon);
            }
            if ended.is_some() || Instant::now() > deadline {
                sys::kill(daemon.id());
                daemon.wait().expect("wait");
                unwatch_daemon(daemon.id());
                // One that was killed right after it mounted leaves its mount.
                unmount(&self.point, UnmountFlags::DETACH).unwrap_or(());
                let how = ended.map_or_else(|| "no mount after a minute".to_owned(), |status| status.to_string());
                return Err(format!("{how}: {}", self.read_log()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Makes the upper the topmost lower layer, below a new, empty upper.
    pub fn restack(mut self) -> Self {
        let root = self.directory.path();
        let lower = root.join(format!("upper-{}", self.lowers.len()));
        let upper = self.upper.clone().expect("an upper");
        sys::rename(&upper, &lower).expect("rename the upper");
        sys::mkdir(&upper, 0o755).expect("a new upper");
        let work = self.work.clone().expect("a work directory");
        std::fs::remove_dir_all(&work).expect("remove the work directory");
        sys::mkdir(&work, 0o755).expect("a new work directory");
        self.originals.insert(0, tree::snapshot(&lower, true));
        if super::uses_inventories() {
            take_inventory(&lower);
        }
        self.lowers.insert(0, lower);
        self
    }

    /// A place for the upper in a checkpoint.
    pub fn checkpoint_place(&self) -> std::path::PathBuf {
        self.directory.path().join(format!("checkpoint-{}", self.lowers.len()))
    }

    /// Notes that the checkpoint at `place` is the topmost lower layer.
    pub fn add_checkpoint(&mut self, place: std::path::PathBuf) {
        self.originals.insert(0, tree::snapshot(&place, true));
        if super::uses_inventories() {
            take_inventory(&place);
        }
        self.lowers.insert(0, place);
    }

    /// Another union with an empty upper on the same lower layers, the topmost of which is a checkpoint. It must not
    /// outlive these.
    pub fn fork(&self) -> Self {
        let directory = Scratch::new(&base(), "stratafs-test-");
        let root = directory.path();
        sys::chmod(root, 0o755).unwrap();
        let [writable, upper, work, point] =
            [WRITABLE, "writable/upper", "writable/work", "merged"].map(|name| root.join(name));
        for dir in [&writable, &upper, &work, &point] {
            sys::mkdir(dir, 0o755).unwrap();
        }
        let [from, to] = [&self.lowers[0], &upper].map(|dir| File::open(dir).unwrap());
        let namespace = chain_namespace(to.as_fd()).unwrap();
        let below = read_chain(from.as_fd(), namespace).unwrap().expect("a checkpoint");
        copy_root(from.as_fd(), to.as_fd()).unwrap();
        write_chain(to.as_fd(), namespace, &Chain { id: new_id().unwrap(), below: Some(below.id) }).unwrap();
        Self {
            directory,
            lowers: self.lowers.clone(),
            data_only: self.data_only.clone(),
            upper: Some(upper),
            work: Some(work),
            point,
            options: self.options.clone(),
            extra: self.extra.clone(),
            descriptors: self.descriptors,
            upper_on: self.upper_on,
            originals: self.originals.clone(),
        }
    }

    fn read_log(&self) -> String {
        let mut text = vec![];
        if let Ok(mut file) = File::open(self.log()) {
            file.read_to_end(&mut text).expect("read the log");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Asserts that no lower layer has changed and that the work directory has no staged file.
    #[track_caller]
    pub fn assert_sound(&self, unmounted: Driver) {
        for (lower, original) in self.lowers.iter().zip(&self.originals) {
            let report = tree::diff(&tree::snapshot(lower, true), original);
            assert!(report.is_empty(), "the lower layer {} has changed:\n{report}", lower.display());
        }
        if let Some(work) = &self.work {
            let stage = work.join("work");
            // The kernel leaves its shared whiteout there; its next mount removes it.
            if unmounted == Driver::Stratafs && sys::exists(&stage) {
                assert_eq!(sys::names(&stage), Vec::<String>::new(), "left in the work directory");
            }
        }
    }
}

/// A mounted stack. Dropping it unmounts, and checks the conditions after every test: the lower layers have not
/// changed, the work directory is empty, the daemon exited successfully.
pub struct Mount {
    layers: Option<Layers>,
    driver: Driver,
    daemon: Option<Child>,
}

impl Mount {
    pub fn layers(&self) -> &Layers {
        self.layers.as_ref().expect("mounted")
    }

    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// Process id of the daemon.
    pub fn daemon(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// The mountpoint.
    pub fn root(&self) -> &Path {
        &self.layers().point
    }

    /// A path in the union.
    pub fn at(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    /// A path in the upper layer.
    pub fn upper(&self, path: &str) -> PathBuf {
        self.layers().upper.as_ref().expect("an upper").join(path)
    }

    /// A path in a lower layer; 0 is the topmost.
    pub fn lower(&self, layer: usize, path: &str) -> PathBuf {
        self.layers().lowers[layer].join(path)
    }

    /// Asserts the exact merged tree.
    #[track_caller]
    pub fn assert_tree(&self, text: &str) {
        tree::assert_tree(self.root(), text);
    }

    /// Asserts the exact content of the upper layer.
    #[track_caller]
    pub fn assert_upper(&self, text: &str) {
        tree::assert_tree(&self.upper(""), text);
    }

    /// Asserts the merged tree, and again after a remount by each driver: the state on disk has the same meaning.
    #[track_caller]
    pub fn assert_tree_everywhere(self, text: &str) {
        self.assert_tree(text);
        let other = match self.driver {
            Driver::Overlayfs => Driver::Stratafs,
            Driver::Stratafs => Driver::Overlayfs,
        };
        let driver = self.driver;
        let mount = self.remount(driver);
        mount.assert_tree(text);
        // The run on stratafs checks the interchange; the run on the kernel must not need stratafs.
        if driver == Driver::Stratafs {
            mount.remount(other).assert_tree(text);
        }
    }

    /// Unmounts, and mounts the same layers by `driver`.
    #[track_caller]
    pub fn remount(self, driver: Driver) -> Self {
        self.unmount().mount(driver)
    }

    /// Unmounts and returns the layers.
    #[track_caller]
    pub fn unmount(mut self) -> Layers {
        self.detach();
        let layers = self.layers.take().expect("mounted");
        layers.assert_sound(self.driver);
        layers
    }

    /// Makes the upper the topmost lower layer while the mount is in use. Returns the driver's answer. Nothing is
    /// flushed.
    ///
    /// # Errors
    /// The error of the driver.
    pub fn try_checkpoint(&mut self) -> std::io::Result<Answer> {
        let place = self.layers().checkpoint_place();
        let id = new_id().unwrap().to_string();
        let request = Request::Checkpoint { place: place.to_str().unwrap().to_owned(), id, sync: false };
        let answer = self.ask(&request)?;
        self.layers.as_mut().expect("mounted").add_checkpoint(place);
        Ok(answer)
    }

    /// [`Self::try_checkpoint`], which must succeed. Returns the path of the layer.
    #[track_caller]
    pub fn checkpoint(&mut self) -> PathBuf {
        self.try_checkpoint().unwrap_or_else(|error| panic!("no checkpoint: {error}"));
        self.layers().lowers[0].clone()
    }

    /// Notes that another process made a checkpoint at `name` in the directory of the layers.
    pub fn note_checkpoint(&mut self, name: &str) {
        let layers = self.layers.as_mut().expect("mounted");
        let place = layers.directory.path().join(name);
        layers.add_checkpoint(place);
    }

    /// Rolls the mount back to its topmost layer, with an empty upper.
    #[track_caller]
    pub fn roll_back(&mut self) {
        let layers = self.layers();
        let place = layers.directory.path().join("abandoned");
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let lowers = layers.lowers.iter().map(|lower| text(lower)).collect();
        let id = new_id().unwrap().to_string();
        let request = Request::Switch { place: text(&place), id, lowers, keep: None };
        self.ask(&request).unwrap_or_else(|error| panic!("no rollback: {error}"));
        std::fs::remove_dir_all(&place).unwrap();
    }

    /// Makes a checkpoint, and layers on top of it for a second mount.
    #[track_caller]
    pub fn fork(&mut self) -> Layers {
        self.checkpoint();
        let layers = self.layers().lowers.iter().map(|path| path.to_str().unwrap().to_owned()).collect();
        self.ask(&Request::Share { layers }).unwrap_or_else(|error| panic!("not shared: {error}"));
        self.layers().fork()
    }

    /// Asks the driver through the socket in its work directory.
    ///
    /// # Errors
    /// The error of the driver.
    pub fn ask(&self, request: &Request) -> std::io::Result<Answer> {
        Client::connect(self.layers().work.as_ref().expect("a work directory"))?.ask(request)
    }

    /// The daemon's messages so far.
    pub fn log(&self) -> String {
        self.layers().read_log()
    }

    /// Kills the daemon, if there is one, and unmounts the rest.
    pub fn crash(mut self) -> Layers {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().expect("kill");
            daemon.wait().expect("wait");
            unwatch_daemon(daemon.id());
        }
        unmount(self.root(), UnmountFlags::DETACH).expect("unmount");
        self.layers.take().expect("mounted")
    }

    fn detach(&mut self) {
        let root = self.root().to_owned();
        let busy_until = Instant::now() + Duration::from_secs(5);
        loop {
            match unmount(&root, UnmountFlags::empty()) {
                Ok(()) => break,
                Err(rustix::io::Errno::BUSY) if Instant::now() < busy_until => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => {
                    let lazily = unmount(&root, UnmountFlags::DETACH);
                    assert!(std::thread::panicking(), "unmount: {error}; lazily: {lazily:?}");
                    break;
                }
            }
        }
        let Some(mut daemon) = self.daemon.take() else { return };
        let deadline = Instant::now() + DAEMON_LIMIT;
        let status = loop {
            if let Some(status) = daemon.try_wait().expect("wait") {
                break Some(status);
            }
            if Instant::now() > deadline {
                break None;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        if status.is_none() {
            daemon.kill().expect("kill");
            daemon.wait().expect("wait");
        }
        unwatch_daemon(daemon.id());
        if std::thread::panicking() {
            let log = self.layers().read_log();
            if !log.is_empty() {
                eprintln!("the daemon's log:\n{log}");
            }
            return;
        }
        let status = status.expect("the daemon does not end after the unmount");
        assert!(status.success(), "the daemon ended with {status} (signal {:?}): {}", status.signal(), self.log());
        let log = self.log();
        assert!(!log.contains("panicked"), "the daemon panicked: {log}");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.layers.is_some() {
            self.detach();
            if !std::thread::panicking() {
                self.layers().assert_sound(self.driver);
            }
        }
    }
}
