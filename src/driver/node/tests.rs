//! Runs the transitions in the orders that a scheduler chooses (`cargo test --features shuttle --lib driver::node`). The
//! state on disk is a value beside the nodes. It is changed under the same guards as in the verbs.

use std::sync::Arc;

use rustix::io::Errno;
use shuttle::thread;

use super::sync::Mutex;
use super::*;
use crate::union::layer::{LayerId, UpperDir};

/// The id of the upper.
const UPPER: LayerId = LayerId::of_number(1);

/// Orders tried for each test.
const ORDERS: usize = 3000;

/// A table with a root, and functions that add nodes.
struct Fixture {
    table: NodeTable,
    root: NodeRef,
    rename: RenameLock,
}

impl Fixture {
    fn new() -> Arc<Self> {
        let state = State::new(Residence::Root { upper: true });
        let dir = Some(Box::new(Dir::new(Lowers::default(), UpperMarks::default(), &UpperId::new(UPPER))));
        let root = NodeRef::new(Node::new(NodeId::ROOT, 1, FileType::Directory, state, dir));
        let table = NodeTable::new(root.clone(), Descriptors::new(64));
        Arc::new(Self { table, root, rename: RenameLock::default() })
    }

    fn add(&self, parent: &NodeRef, name: &CStr, file_type: FileType, is_upper: bool) -> NodeRef {
        let mut turn = Turn::begin();
        let names = NamesRead::lock(&mut turn, parent).expect("a directory");
        self.add_indexed(&names, name, file_type, is_upper, None)
    }

    fn add_indexed(
        &self,
        names: &NamesRead<'_>,
        name: &CStr,
        file_type: FileType,
        is_upper: bool,
        index: Option<Indexed>,
    ) -> NodeRef {
        let at = (names.parent().clone(), Name::from(name));
        let residence = if is_upper {
            Residence::Upper { at, layer: UPPER }
        } else {
            Residence::Lower { at, layer: LayerId::LOWEST }
        };
        let is_dir = file_type == FileType::Directory;
        let dir = is_dir.then(|| Box::new(Dir::new(Lowers::default(), UpperMarks::default(), &UpperId::new(UPPER))));
        let node = Node::new(self.table.next_id(), 7, file_type, State::new(residence).with_index(index), dir);
        let lookup = self.table.adopt(names, &Name::from(name), NodeRef::new(node));
        let node = NodeRef::clone(&lookup);
        lookup.hand_over();
        node
    }
}

fn both(orders: usize, test: impl Fn() -> [Box<dyn FnOnce() + Send>; 2] + Send + Sync + 'static) {
    shuttle::check_random(
        move || {
            let threads = test().map(thread::spawn);
            threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        },
        orders,
    );
}

/// What the upper has under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnDisk {
    Nothing,
    Copy,
    Whiteout,
}

/// A removal finds both the copy and the node that says so, or neither.
#[test]
fn publish_beside_unlink() {
    both(ORDERS, || {
        let (fixture, disk) = (Fixture::new(), Arc::new(Mutex::new(OnDisk::Nothing)));
        let node = fixture.add(&fixture.root, c"file", FileType::Regular, false);
        let other = (fixture.clone(), disk.clone(), node.clone());
        [
            Box::new(move || {
                let mut turn = Turn::begin();
                let mut copy_up = CopyUpGuard::lock(&mut turn, &node);
                let (parent, _) = node.name().expect("what only a lower layer has keeps its name");
                let names = NamesWrite::lock(copy_up.after(), &parent).expect("a directory");
                if node.is_removed() {
                    fixture.table.publish_nameless(&names, &node, UpperDir::stand_in(), None);
                } else {
                    assert_eq!(std::mem::replace(&mut *disk.lock(), OnDisk::Copy), OnDisk::Nothing);
                    fixture.table.publish(&names, &node, Published::default());
                }
                drop(names);
                drop(copy_up);
                assert!(node.has_upper());
            }),
            Box::new(move || {
                let (fixture, disk, node) = other;
                let mut turn = Turn::begin();
                let names = NamesWrite::lock(&mut turn, &fixture.root).expect("a directory");
                assert!(node.is_named(&fixture.root, c"file"));
                let before = std::mem::replace(&mut *disk.lock(), OnDisk::Whiteout);
                if node.has_upper() {
                    assert_eq!(before, OnDisk::Copy);
                    fixture.table.unlink(&names, c"file", &node, UpperDir::stand_in());
                } else {
                    assert_eq!(before, OnDisk::Nothing);
                    fixture.table.hide(&names, c"file", &node);
                }
                assert!(node.is_removed());
                assert!(!fixture.root.dir().expect("a directory").has_child(c"file"));
            }),
        ]
    });
}

/// A directory that is being moved always has a name, and never looks like a removed one.
#[test]
fn rename_beside_readdir() {
    both(ORDERS, || {
        let fixture = Fixture::new();
        let [from, to] = [c"from", c"to"].map(|name| fixture.add(&fixture.root, name, FileType::Directory, true));
        let moved = fixture.add(&from, c"dir", FileType::Directory, true);
        let other = (from.clone(), to.clone(), moved.clone());
        [
            Box::new(move || {
                let mut turn = Turn::begin();
                let mut guard = fixture.rename.lock(&mut turn);
                let names = NamesPair::across(&mut guard, &from, &to).expect("directories");
                let (old, new) = (Name::from(c"dir"), Name::from(c"new"));
                fixture.table.rename(&names, &moved, &old, &new, None);
            }),
            Box::new(move || {
                let (from, to, moved) = other;
                for _ in 0..3 {
                    assert!(!moved.is_removed());
                    let (parent, name) = moved.name().expect("a name at every moment");
                    let mut turn = Turn::begin();
                    let names = NamesRead::lock(&mut turn, &parent).expect("a directory");
                    let (is_old, is_new) = (moved.is_named(&from, c"dir"), moved.is_named(&to, c"new"));
                    assert!(is_old != is_new, "one name at every moment");
                    if moved.is_named(&parent, &name) {
                        assert!(
                            parent.dir().expect("a directory").has_child(&name),
                            "{name:?} while its names are held"
                        );
                    }
                    drop(names);
                }
            }),
        ]
    });
}

fn is_reachable(node: &Node) -> bool {
    let state = node.state();
    state.orphan().is_some() || state.first_name().is_some()
}

/// Two names are removed at once: whichever removal comes last holds the file.
#[test]
fn rename_over_beside_unlink_of_a_sibling() {
    both(ORDERS, || {
        let fixture = Fixture::new();
        let [one, two] = [c"one", c"two"].map(|name| fixture.add(&fixture.root, name, FileType::Directory, true));
        let file = fixture.add(&one, c"a", FileType::Regular, true);
        let moved = fixture.add(&one, c"moved", FileType::Regular, true);
        {
            let mut turn = Turn::begin();
            let names = NamesWrite::lock(&mut turn, &two).expect("a directory");
            let lookup = fixture.table.count(&file).expect("known");
            fixture.table.link(&names, &Name::from(c"b"), &lookup);
        }
        let other = (fixture.clone(), file.clone());
        let seen = file.clone();
        [
            Box::new(move || {
                let mut turn = Turn::begin();
                let names = NamesPair::within(&mut turn, &one).expect("a directory");
                let held = Some(UpperDir::stand_in());
                let (old, new) = (Name::from(c"moved"), Name::from(c"a"));
                fixture.table.rename(&names, &moved, &old, &new, Some(Replaced { node: &file, held }));
                drop(names);
                assert!(moved.is_named(&one, c"a"));
                assert!(is_reachable(&seen), "neither named nor held");
            }),
            Box::new(move || {
                let (fixture, file) = other;
                let mut turn = Turn::begin();
                let names = NamesWrite::lock(&mut turn, &two).expect("a directory");
                fixture.table.unlink(&names, c"b", &file, UpperDir::stand_in());
                assert!(is_reachable(&file), "neither named nor held");
            }),
        ]
    });
}

/// The kernel forgets one name of an indexed file while another name is looked up and linked. Afterwards the file has one
/// node that the table, the index and the directory agree on, or none.
#[test]
fn forget_beside_lookup_and_index() {
    shuttle::check_random(
        || {
            let entry = || Indexed { name: Name::from(c"entry"), nlink: 2, lower_nlink: 2, metacopy: false };
            let fixture = Fixture::new();
            let mut turn = Turn::begin();
            let root = NamesRead::lock(&mut turn, &fixture.root).expect("a directory");
            let first = fixture.add_indexed(&root, c"a", FileType::Regular, true, Some(entry()));
            drop(root);
            fixture.table.share_index(&Name::from(c"entry"), &first);
            let id = first.id();
            let forget = {
                let fixture = fixture.clone();
                thread::spawn(move || fixture.table.forget(id, 1))
            };
            let look_up = {
                let fixture = fixture.clone();
                thread::spawn(move || {
                    let mut turn = Turn::begin();
                    let names = NamesRead::lock(&mut turn, &fixture.root).expect("a directory");
                    let _multiple = fixture.table.multiple(&names);
                    if let Some(known) = fixture.table.by_index(c"entry") {
                        fixture.table.add_name(&names, &Name::from(c"b"), &known);
                        let id = known.id();
                        known.hand_over();
                        return id;
                    }
                    let node = fixture.add_indexed(&names, c"b", FileType::Regular, true, Some(entry()));
                    fixture.table.share_index(&Name::from(c"entry"), &node);
                    node.id()
                })
            };
            let count = thread::spawn(move || {
                let mut turn = Turn::begin();
                let links = LinksGuard::alone(&mut turn, &first);
                first.state().index().map(|entry| entry.nlink).inspect(|&nlink| assert_eq!(nlink, 2));
                drop(links);
            });
            forget.join().expect("no panic");
            count.join().expect("no panic");
            let id = look_up.join().expect("no panic");
            let node = fixture.table.get(id).expect("what was looked up is in the table");
            let by_index = fixture.table.by_index(c"entry").expect("and in the index");
            assert!(NodeRef::ptr_eq(&by_index, &node));
            let child = fixture.table.child(&fixture.root, c"b").expect("and in its directory");
            assert!(NodeRef::ptr_eq(&child, &node));
            drop((by_index, child));
            assert_eq!(fixture.table.len(), 2);
            fixture.table.forget(id, 1);
            assert_eq!(fixture.table.len(), 1);
            assert!(fixture.table.by_index(c"entry").is_none());
        },
        ORDERS,
    );
}

/// The last name of an indexed file is removed while the kernel forgets the file: nothing of it remains.
#[test]
fn an_indexed_file_leaves_the_index_beside_forget() {
    shuttle::check_random(
        || {
            let entry = Indexed { name: Name::from(c"entry"), nlink: 1, lower_nlink: 1, metacopy: false };
            let fixture = Fixture::new();
            let mut turn = Turn::begin();
            let root = NamesRead::lock(&mut turn, &fixture.root).expect("a directory");
            let node = fixture.add_indexed(&root, c"a", FileType::Regular, true, Some(entry));
            drop(root);
            fixture.table.share_index(&Name::from(c"entry"), &node);
            let (id, forgotten) = (node.id(), fixture.clone());
            let counted = fixture.table.count(&node).expect("known");
            counted.hand_over();
            let forget = thread::spawn(move || forgotten.table.forget(id, 1));
            {
                let mut turn = Turn::begin();
                let names = NamesWrite::lock(&mut turn, &fixture.root).expect("a directory");
                fixture.table.unlink(&names, c"a", &node, UpperDir::stand_in());
                let links = LinksGuard::lock(&names, &node);
                assert_eq!(fixture.table.count_link(&links, -1), Some(0));
                fixture.table.leave_index(&links);
            }
            forget.join().expect("no panic");
            fixture.table.forget(id, 1);
            assert_eq!(fixture.table.len(), 1);
            assert!(fixture.table.indexed.is_empty());
        },
        ORDERS,
    );
}

/// A path for a redirect is one that the lower layers have, whatever moves above it: a directory that moves first gets a
/// redirect to its old path, then its new name.
#[test]
fn path_for_a_redirect_beside_rename_of_an_ancestor() {
    both(ORDERS, || {
        let fixture = Fixture::new();
        let above = fixture.add(&fixture.root, c"above", FileType::Directory, true);
        let dir = fixture.add(&above, c"dir", FileType::Directory, true);
        let other = fixture.clone();
        [
            Box::new(move || {
                let mut turn = Turn::begin();
                let mut guard = fixture.rename.lock(&mut turn);
                let names = NamesPair::within(guard.after(), &fixture.root).expect("a directory");
                let part = above.dir().expect("a directory");
                part.note_upper_part(|part| part.redirect = Some(Arc::from(&b"above"[..])));
                let (old, new) = (Name::from(c"above"), Name::from(c"moved"));
                fixture.table.rename(&names, &above, &old, &new, None);
                drop(names);
                drop(guard);
            }),
            Box::new(move || {
                let path: Result<Vec<u8>, Errno> = path_in_lowers(&other.rename.lock(&mut Turn::begin()), &dir);
                assert_eq!(path, Ok(b"/above/dir".to_vec()));
            }),
        ]
    });
}
