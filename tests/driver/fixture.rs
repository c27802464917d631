//! A union on a temporary directory.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;

use rustix::io::Errno;
use stratafs::config::OverlayConfig;
use stratafs::driver::Overlay;
use stratafs::driver::types::{Caller, DirEntry, DirSink, Entry, HandleId, NodeId, SetAttr};

pub const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0o022 };

/// A mounted union without a mount: one lower layer and an upper.
pub struct Union {
    pub overlay: Overlay,
    directory: tempfile::TempDir,
}

impl Union {
    /// `fill` fills the lower layer; `set` changes the options.
    pub fn new(fill: impl FnOnce(&Path), set: impl FnOnce(&mut OverlayConfig)) -> Self {
        let base = std::env::var_os("STRATAFS_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let directory = tempfile::Builder::new().prefix("stratafs-driver-").tempdir_in(base).unwrap();
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| directory.path().join(name));
        for path in [&lower, &upper, &work] {
            fs::create_dir(path).unwrap();
        }
        fill(&lower);
        let mut config = OverlayConfig {
            lowers: vec![lower],
            upper: Some(upper),
            work: Some(work),
            volatile: true,
            ..OverlayConfig::default()
        };
        set(&mut config);
        rustix::process::umask(rustix::fs::Mode::empty());
        let overlay = Overlay::open(config).unwrap_or_else(|error| panic!("does not open: {error}"));
        Self { overlay, directory }
    }

    /// The directory that holds the layers.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Looks a path up. The nodes stay known.
    #[track_caller]
    pub fn at(&self, path: &str) -> NodeId {
        let mut at = NodeId::ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            at = self.find(at, name).unwrap().unwrap_or_else(|| panic!("{path} does not exist")).node;
        }
        at
    }

    pub fn find(&self, parent: NodeId, name: &str) -> Result<Option<Entry>, Errno> {
        self.overlay.lookup(parent, OsStr::new(name))
    }

    pub fn mkdir(&self, parent: NodeId, name: &str) -> Result<NodeId, Errno> {
        Ok(self.overlay.mkdir(&ROOT, parent, OsStr::new(name), 0o755)?.node)
    }

    /// Makes a file and closes it.
    pub fn create(&self, parent: NodeId, name: &str) -> Result<NodeId, Errno> {
        let flags = (libc::O_RDWR | libc::O_CREAT).cast_unsigned();
        let (entry, opened) = self.overlay.create(&ROOT, parent, OsStr::new(name), 0o644, flags, false)?;
        self.overlay.release(opened.handle);
        Ok(entry.node)
    }

    pub fn open(&self, node: NodeId, flags: i32) -> Result<HandleId, Errno> {
        Ok(self.overlay.open_file(&ROOT, node, flags.cast_unsigned(), false)?.handle)
    }

    pub fn chmod(&self, node: NodeId, mode: u32) -> Result<u32, Errno> {
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        Ok(self.overlay.setattr(&ROOT, node, None, &set)?.0.mode & 0o7777)
    }

    pub fn unlink(&self, parent: NodeId, name: &str) -> Result<(), Errno> {
        self.overlay.unlink(parent, OsStr::new(name))
    }

    pub fn rename(&self, from: (NodeId, &str), to: (NodeId, &str)) -> Result<(), Errno> {
        self.overlay.rename(from.0, OsStr::new(from.1), to.0, OsStr::new(to.1), 0)
    }

    pub fn exchange(&self, from: (NodeId, &str), to: (NodeId, &str)) -> Result<(), Errno> {
        self.overlay.rename(from.0, OsStr::new(from.1), to.0, OsStr::new(to.1), libc::RENAME_EXCHANGE)
    }

    /// The names in a directory, sorted.
    pub fn list(&self, directory: NodeId) -> Result<Vec<String>, Errno> {
        let mut names = Names::default();
        self.overlay.read_dir(directory, 0, &mut names)?;
        names.0.sort();
        Ok(names.0)
    }
}

/// All names but `.` and `..`.
#[derive(Default)]
struct Names(Vec<String>);

impl DirSink for Names {
    fn push(&mut self, entry: &DirEntry<'_>, _: Option<&Entry>) -> bool {
        if entry.name != "." && entry.name != ".." {
            self.0.push(entry.name.to_string_lossy().into_owned());
        }
        true
    }
}

/// Runs two closures at the same time; returns their results.
pub fn both<A: Send, B: Send>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            start.wait();
            b()
        });
        start.wait();
        let mine = a();
        (mine, other.join().unwrap())
    })
}
