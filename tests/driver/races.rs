//! Two verbs at the same time.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use stratafs::driver::client;
use stratafs::driver::types::{Kernel, NodeId};

use crate::fixture::{Union, both};

/// A node in a rename always has a name: its directory can be listed and takes new files, and open files in it are unaffected.
#[test]
fn a_directory_can_be_used_while_it_is_renamed() {
    let fill = |lower: &std::path::Path| {
        fs::create_dir_all(lower.join("merged/in")).unwrap();
        fs::write(lower.join("merged/in/file"), "x").unwrap();
    };
    let union = Union::new(fill, |_| {});
    let made = union.mkdir(NodeId::ROOT, "made").unwrap();
    for dir in [union.at("merged"), made] {
        let name = if dir == made { "made" } else { "merged" };
        let file = union.create(dir, "file").unwrap();
        let expected = union.list(dir).unwrap();
        let over = AtomicBool::new(false);
        let move_it = || {
            let _last = Last(&over);
            for round in 0..2000 {
                let (from, to) = if round % 2 == 0 { (name, "moved") } else { ("moved", name) };
                union.rename((NodeId::ROOT, from), (NodeId::ROOT, to)).unwrap();
            }
        };
        let use_it = || {
            let mut round = 0;
            while !over.load(Ordering::Acquire) {
                assert_eq!(union.list(dir), Ok(expected.clone()), "round {round}");
                assert!(union.chmod(file, 0o600).is_ok(), "round {round}");
                if round % 16 == 0 {
                    let node = union.create(dir, "new");
                    assert!(node.is_ok(), "round {round}: {node:?}");
                    union.overlay.forget(node.unwrap(), 1);
                    union.unlink(dir, "new").unwrap();
                }
                round += 1;
            }
        };
        both(move_it, use_it);
    }
}

/// A directory moves while a directory above it does: its redirect leads to where its lower part is.
#[test]
fn redirects_are_right_while_a_directory_above_is_renamed() {
    let fill = |lower: &std::path::Path| {
        fs::create_dir_all(lower.join("p/q/m")).unwrap();
        fs::create_dir_all(lower.join("p/r")).unwrap();
        fs::write(lower.join("p/q/m/file"), "x").unwrap();
    };
    let union = Union::new(fill, |config| config.redirect_dir = stratafs::RedirectDir::On);
    let [p, q, r] = ["p", "p/q", "p/r"].map(|path| union.at(path));
    let over = AtomicBool::new(false);
    let move_above = || {
        let mut names = ["p", "other"];
        while !over.load(Ordering::Acquire) {
            union.rename((NodeId::ROOT, names[0]), (NodeId::ROOT, names[1])).unwrap();
            names.reverse();
        }
        names[0]
    };
    let move_it = || {
        let _last = Last(&over);
        let mut places = [(q, "q"), (r, "r")];
        for round in 0..501 {
            union.rename((places[0].0, "m"), (places[1].0, "m")).unwrap();
            places.reverse();
            let upper = union.path().join("upper");
            let found = ["p", "other"].iter().find_map(|above| {
                let mut redirect = [0; 64];
                let at = upper.join(above).join(places[0].1).join("m");
                let length = rustix::fs::getxattr(at, "trusted.overlay.redirect", &mut redirect).ok()?;
                Some(redirect[..length].to_vec())
            });
            // It is looked for by path while the directory above moves, and so may be missed.
            if let Some(redirect) = found {
                assert_eq!(redirect, b"/p/q/m", "round {round}");
            }
        }
        places[0].1
    };
    let (above, place) = both(move_above, move_it);
    let at = union.path().join("upper").join(above).join(place).join("m");
    let mut redirect = [0; 64];
    let length = rustix::fs::getxattr(&at, "trusted.overlay.redirect", &mut redirect).unwrap();
    assert_eq!(&redirect[..length], b"/p/q/m");
    assert_eq!(union.list(union.at(&format!("{above}/{place}/m"))).unwrap(), ["file"]);
    assert_eq!(union.at(above), p);
}

/// As before, for two names that change places.
#[test]
fn a_directory_can_be_used_while_it_changes_places() {
    let union = Union::new(|_| {}, |_| {});
    let [a, b] = ["a", "b"].map(|name| union.mkdir(NodeId::ROOT, name).unwrap());
    union.create(a, "in-a").unwrap();
    union.create(b, "in-b").unwrap();
    let over = AtomicBool::new(false);
    let swap = || {
        let _last = Last(&over);
        for _ in 0..2000 {
            union.exchange((NodeId::ROOT, "a"), (NodeId::ROOT, "b")).unwrap();
        }
    };
    let list = || {
        while !over.load(Ordering::Acquire) {
            assert_eq!(union.list(a), Ok(vec!["in-a".to_owned()]));
            assert_eq!(union.list(b), Ok(vec!["in-b".to_owned()]));
        }
    };
    both(swap, list);
}

/// Tells the other thread to stop when it is dropped, even in a panic.
struct Last<'a>(&'a AtomicBool);

impl Drop for Last<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

const ROUNDS: usize = 1000;

/// The copy is published and recorded in the node in one step: a removal sees the file either in the lower
/// layer or in the upper.
#[test]
fn a_file_can_be_removed_while_it_is_copied_up() {
    let fill = |lower: &std::path::Path| {
        for round in 0..ROUNDS {
            fs::write(lower.join(format!("f{round}")), "x").unwrap();
        }
    };
    let union = Union::new(fill, |_| {});
    for round in 0..ROUNDS {
        let name = format!("f{round}");
        let node = union.at(&name);
        let copy_up = || union.chmod(node, 0o600);
        let remove = || {
            for _ in 0..round % 97 * 8 {
                std::hint::spin_loop();
            }
            union.unlink(NodeId::ROOT, &name)
        };
        let (changed, removed) = both(copy_up, remove);
        assert_eq!(removed, Ok(()), "round {round}");
        assert_eq!(changed, Ok(0o600), "round {round}");
        assert!(union.find(NodeId::ROOT, &name).unwrap().is_none(), "round {round}: it is still there");
        union.overlay.forget(node, 1);
    }
    assert_eq!(union.overlay.population(), (1, 0));
}

/// As before, for directories.
#[test]
fn a_directory_can_be_removed_while_it_is_copied_up() {
    let fill = |lower: &std::path::Path| {
        for round in 0..ROUNDS {
            fs::create_dir(lower.join(format!("d{round}"))).unwrap();
        }
    };
    let union = Union::new(fill, |_| {});
    for round in 0..ROUNDS {
        let name = format!("d{round}");
        let node = union.at(&name);
        let copy_up = || union.chmod(node, 0o700);
        let remove = || {
            for _ in 0..round % 97 * 8 {
                std::hint::spin_loop();
            }
            union.overlay.rmdir(NodeId::ROOT, name.as_ref())
        };
        let (changed, removed) = both(copy_up, remove);
        assert_eq!(removed, Ok(()), "round {round}");
        assert_eq!(changed, Ok(0o700), "round {round}");
        assert!(union.find(NodeId::ROOT, &name).unwrap().is_none(), "round {round}: it is still there");
        union.overlay.forget(node, 1);
    }
}

/// Two names of an open file are removed at once, one by a rename over it and one by unlink: whichever removal comes
/// last holds the file.
#[test]
fn an_open_file_loses_two_names_at_once() {
    let union = Union::new(|_| {}, |_| {});
    let [one, two] = ["one", "two"].map(|name| union.mkdir(NodeId::ROOT, name).unwrap());
    for round in 0..1000 {
        let node = union.create(one, "a").unwrap();
        let link = union.overlay.link(node, two, "b".as_ref()).unwrap();
        assert_eq!(link.node, node);
        let other = union.create(one, "other").unwrap();
        let handle = union.open(node, libc::O_RDONLY).unwrap();
        let replace = || union.rename((one, "other"), (one, "a"));
        let remove = || union.unlink(two, "b");
        assert_eq!(both(replace, remove), (Ok(()), Ok(())), "round {round}");
        assert_eq!(union.chmod(node, 0o640), Ok(0o640), "round {round}");
        assert_eq!(union.overlay.getattr(node, None).unwrap().0.nlink, 0, "round {round}");
        union.overlay.release(handle);
        union.overlay.forget(node, 2);
        union.unlink(one, "a").unwrap();
        union.overlay.forget(other, 1);
    }
}

/// If a name appears or vanishes between the lookup and the lock, rename looks it up again.
#[test]
fn rename_never_says_try_again() {
    let union = Union::new(|_| {}, |_| {});
    let over = AtomicBool::new(false);
    let rename = || {
        let _last = Last(&over);
        for round in 0..1000 {
            let node = union.create(NodeId::ROOT, "source").unwrap();
            let renamed = union.rename((NodeId::ROOT, "source"), (NodeId::ROOT, "target"));
            assert_eq!(renamed, Ok(()), "round {round}");
            union.overlay.forget(node, 1);
        }
    };
    let make_and_remove = || {
        while !over.load(Ordering::Acquire) {
            match union.create(NodeId::ROOT, "target") {
                Ok(node) => union.overlay.forget(node, 1),
                Err(errno) => assert_eq!(errno, Errno::EXIST),
            }
            if let Err(errno) = union.unlink(NodeId::ROOT, "target") {
                assert_eq!(errno, Errno::NOENT);
            }
        }
    };
    both(rename, make_and_remove);
}

/// A copy-up in a directory changes its time for a moment. A concurrent read of the directory's attributes does not show
/// that.
#[test]
fn a_copy_up_does_not_show_in_the_time_of_its_directory() {
    const FILES: usize = 400;
    let fill = |lower: &std::path::Path| {
        fs::create_dir(lower.join("dir")).unwrap();
        (0..FILES).for_each(|number| fs::write(lower.join(format!("dir/{number}")), "x").unwrap());
    };
    let union = Union::new(fill, |_| {});
    let dir = union.at("dir");
    let time = || union.overlay.getattr(dir, None).unwrap().0.mtime;
    union.chmod(dir, 0o700).unwrap();
    let before = time();
    let over = AtomicBool::new(false);
    let copy = || {
        let _last = Last(&over);
        for number in 0..FILES {
            let file = union.at(&format!("dir/{number}"));
            union.overlay.release(union.open(file, libc::O_RDWR).unwrap());
        }
    };
    let look = || {
        while !over.load(Ordering::Acquire) {
            assert_eq!(time(), before);
        }
    };
    both(copy, look);
}

/// The nodes whose attributes the kernel was told to forget.
#[derive(Default)]
struct Forgetting(Mutex<Vec<NodeId>>);

impl Kernel for Forgetting {
    fn register_backing(&self, _: BorrowedFd<'_>) -> Result<u32, Errno> {
        Err(Errno::PERM)
    }

    fn unregister_backing(&self, _: u32) {}

    fn invalidate_attr(&self, node: NodeId) {
        self.0.lock().unwrap().push(node);
    }

    fn invalidate_pages(&self, _: NodeId) {}

    fn invalidate_entry(&self, _: NodeId, _: &OsStr) {}

    fn delete_entry(&self, _: NodeId, _: &OsStr, _: NodeId) {}
}

/// If the attributes of a directory are on their way to one client while another client changes the directory, the kernel
/// is told to forget them. The client that made the change needs no such notice.
#[test]
fn attributes_on_their_way_are_called_back() {
    let union = Union::new(|lower| fs::write(lower.join("low"), "").unwrap(), |_| {});
    let kernel = Arc::new(Forgetting::default());
    union.overlay.attach(kernel.clone(), false);
    let [a, b] = ["a", "b"].map(|name| union.mkdir(NodeId::ROOT, name).unwrap());
    let file = union.create(a, "file").unwrap();
    kernel.0.lock().unwrap().clear();
    let told = || std::mem::take(&mut *kernel.0.lock().unwrap());
    let look = |client: u32, node: NodeId| {
        client::set(client);
        union.overlay.getattr(node, None).unwrap();
        client::set(1);
    };
    look(1, a);
    union.create(a, "one").unwrap();
    assert_eq!(told(), [], "told the same client");
    union.create(a, "two").unwrap();
    assert_eq!(told(), [], "told nobody since");
    let changes: [(&str, &dyn Fn()); 7] = [
        ("create", &|| _ = union.create(a, "three").unwrap()),
        ("mkdir", &|| _ = union.mkdir(a, "dir").unwrap()),
        ("link", &|| _ = union.overlay.link(file, a, OsStr::new("link")).unwrap()),
        ("unlink", &|| union.unlink(a, "one").unwrap()),
        ("rmdir", &|| union.overlay.rmdir(a, OsStr::new("dir")).unwrap()),
        ("rename", &|| union.rename((a, "two"), (a, "four")).unwrap()),
        ("exchange", &|| union.exchange((a, "three"), (a, "four")).unwrap()),
    ];
    for (verb, change) in changes {
        look(2, a);
        change();
        assert_eq!(told(), [a], "{verb}");
    }
    look(2, a);
    look(2, b);
    union.rename((a, "four"), (b, "four")).unwrap();
    assert_eq!(told(), [a, b], "both directories of a rename");
    look(2, NodeId::ROOT);
    union.unlink(NodeId::ROOT, "low").unwrap();
    assert_eq!(told(), [NodeId::ROOT], "a whiteout");
    client::set(0);
}
