//! Decides what each node becomes when the mount gets other lower layers and an empty upper.
//!
//! The walk visits the directories that the kernel knows and that have a part in an added or a removed layer. A directory stays if
//! its path leads to a directory in the new layers too, so anything mounted in it stays mounted. A file stays if its name leads to
//! the same inode. Everything else is abandoned: open handles keep working as on a deleted file.
//!
//! This module changes nothing. The stack already has its new lower layers, and still the old upper.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::sync::Arc;

use crate::driver::Union;
use crate::driver::node::{Dentry, Lowers, Name, Node, NodeId, NodeRef, Parts, Remains, Residence};
use crate::driver::types::{Errno, Result};
use crate::union::layer::{Dir, Layer, LayerDir, LayerId, LowerRef, Past, UpperDir};
use crate::union::merge::{self, Found, MergedDir, Resolution, Source, root_parts};

/// Number of directories without an open handle that are held nevertheless, because they may be a working directory.
const MOST_HELD: usize = 1024;

/// The result: what the nodes become.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Directories that stay, with other parts in the layers.
    pub(super) dirs: Vec<(NodeRef, Parts)>,
    /// Files that stay, and the layer that each is in now.
    pub(super) files: Vec<(NodeRef, LayerId)>,
    /// Lost names of files that keep another name.
    pub(super) names: Vec<(Dentry, NodeRef)>,
    /// All lost names, including those below a lost directory.
    pub(super) lost: Vec<(Dentry, NodeRef)>,
    /// Abandoned nodes. The entries of a directory come before the directory.
    pub(super) abandoned: Vec<(NodeRef, Remains)>,
    /// What the kernel must be told.
    pub(super) news: News,
}

/// Changes that the kernel does not know yet.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Names that now lead to nothing or to another file, with the node that they had. The entries of a directory come before the
    /// directory. Below a lost directory, only entries that may be in use: the kernel drops the others with the directory.
    pub(super) gone: Vec<(Dentry, NodeRef)>,
    /// Directories whose parts have changed.
    pub(super) changed: Vec<Changed>,
}

/// A directory that stays, and whose parts in the layers change.
#[derive(Debug)]
pub(super) struct Changed {
    pub(super) node: NodeRef,
    /// Its path in the old upper, if it had a part there.
    pub(super) upper: Option<Vec<u8>>,
    /// Its old lower parts.
    pub(super) before: Lowers,
    /// Its new lower parts.
    pub(super) after: Vec<LowerRef>,
    /// Its lower parts are at another path than before (a redirect has changed).
    pub(super) is_another: bool,
}

/// A directory of the new layers.
struct Place<'a> {
    union: &'a Union,
    parts: &'a [LowerRef],
    opened: Vec<std::cell::OnceCell<Dir>>,
    /// The part in the upper, if the upper stays. The flag: its entries may be xattr whiteouts.
    upper: Option<(UpperDir, bool)>,
}

impl<'a> Place<'a> {
    fn new(union: &'a Union, parts: &'a [LowerRef], upper: Option<(UpperDir, bool)>) -> Self {
        Self { union, parts, opened: parts.iter().map(|_| std::cell::OnceCell::new()).collect(), upper }
    }

    fn open(&self, index: usize) -> Result<LayerDir<'a>> {
        let part = self.parts.get(index).ok_or(Errno::IO)?;
        let layer = self.union.stack.lower(part.layer)?;
        if let Some(listed) = layer.listed_dir(part) {
            return Ok(listed);
        }
        let cell = self.opened.get(index).ok_or(Errno::IO)?;
        if let Some(dir) = cell.get() {
            return Ok(LayerDir::Held(dir.clone()));
        }
        let dir = layer.open_dir(&part.path)?;
        Ok(LayerDir::Held(cell.get_or_init(|| dir).clone()))
    }

    /// Resolves `name` here. `None` also for a damaged mark, which a later lookup reports.
    fn resolve(&self, name: &CStr) -> Result<Option<Found>> {
        let open_lower = |index| self.open(index);
        let dir = MergedDir {
            stack: &self.union.stack,
            upper: self.upper.as_ref().map(|(dir, _)| dir.as_dir()),
            lowers: self.parts,
            open_lower: &open_lower,
            listing: None,
            upper_xattr_whiteouts: self.upper.as_ref().is_some_and(|(_, by_xattr)| *by_xattr),
            upper_may_have_marks: self.upper.is_some(),
            follow_redirects: self.union.follows_redirects(),
            metacopy: self.union.config.metacopy,
        };
        match merge::resolve(&dir, name) {
            Ok(Resolution::Found(found)) => Ok(Some(found)),
            Ok(Resolution::Absent | Resolution::WhiteoutInUpper) => Ok(None),
            Err(Errno::IO | Errno::PERM | Errno::LOOP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// A known directory that the walk has reached.
struct Visit {
    node: NodeRef,
    parts: Parts,
    /// Its old path in the mount.
    path: Vec<u8>,
}

/// What the name of a known node leads to now.
enum Fate {
    /// The same as before.
    Same,
    /// The same file, in this layer.
    Moved(LayerId),
    /// A directory; the walk continues in it.
    Directory(Parts),
    /// Nothing, or another file.
    Gone,
}

fn is_same_part(one: &LowerRef, other: &LowerRef) -> bool {
    one.layer == other.layer && one.path == other.path
}

fn are_same_parts(before: &[LowerRef], after: &[LowerRef]) -> bool {
    before.len() == after.len() && before.iter().zip(after).all(|(one, other)| is_same_part(one, other))
}

/// True if `after` is `before` without the parts in removed layers.
fn continues(before: &Lowers, after: &[LowerRef], past: &Past) -> bool {
    let kept: Vec<LowerRef> = before.iter().filter(|part| past.layer(part.layer).is_none()).cloned().collect();
    let added = after.len().saturating_sub(kept.len());
    after.get(added..).is_some_and(|after| are_same_parts(&kept, after))
}

/// The walk.
struct Planner<'a> {
    union: &'a Union,
    past: &'a Past,
    /// True if the upper stays.
    keeps_upper: bool,
    plan: Plan,
    /// Number of names that each node loses.
    lost: HashMap<NodeId, usize>,
    held: usize,
}

impl Union {
    /// Walks the known directories after the lower layers of `past` were replaced. With `keeps_upper`, the new layers show the same
    /// tree and the upper stays.
    ///
    /// # Errors
    /// Those of reading the layers. A damaged name is no error.
    pub(super) fn plan(&self, past: &Past, keeps_upper: bool) -> Result<Plan> {
        let (plan, lost) = (Plan::default(), HashMap::new());
        let mut planner = Planner { union: self, past, keeps_upper, plan, lost, held: 0 };
        planner.walk()?;
        planner.settle_lost()?;
        planner.hold_hidden()?;
        Ok(planner.plan)
    }
}

impl Planner<'_> {
    fn walk(&mut self) -> Result<()> {
        let root = self.union.node(NodeId::ROOT)?;
        // The root keeps its inode number.
        let ino = root.ino();
        let is_opaque = self.keeps_upper && root.dir().is_some_and(|dir| dir.upper_part(|part| part.opaque));
        let lowers = if is_opaque { Vec::new() } else { root_parts(&self.union.stack)? };
        let protection = match lowers.first().filter(|_| !self.keeps_upper) {
            Some(part) => self.union.stack.lower(part.layer)?.root().stat_self()?.protection(),
            None => root.protection(),
        };
        let mut pending = vec![Visit { node: root, parts: Parts { lowers, ino, protection }, path: Vec::new() }];
        while let Some(visit) = pending.pop() {
            self.visit(visit, &mut pending)?;
        }
        Ok(())
    }

    fn visit(&mut self, visit: Visit, pending: &mut Vec<Visit>) -> Result<()> {
        let Visit { node, parts, path } = visit;
        let dir = node.dir().ok_or(Errno::IO)?;
        let (had_upper, before) = (node.has_upper(), dir.lowers());
        if !had_upper && are_same_parts(&before, &parts.lowers) {
            return Ok(());
        }
        let upper = match self.keeps_upper && had_upper {
            true => Some((self.union.upper_dir(&node)?, dir.upper_part(|part| part.xattr_whiteouts))),
            false => None,
        };
        let place = Place::new(self.union, &parts.lowers, upper);
        for (name, child) in dir.children() {
            match self.fate(&place, &before, &name, &child)? {
                Fate::Same => {}
                Fate::Moved(layer) => self.plan.files.push((child, layer)),
                Fate::Directory(parts) => {
                    let path = if path.is_empty() {
                        name.to_bytes().to_vec()
                    } else {
                        [&*path, b"/", name.to_bytes()].concat()
                    };
                    pending.push(Visit { node: child, parts, path });
                }
                Fate::Gone => self.lose_all((node.clone(), name), child),
            }
        }
        self.plan.news.changed.push(Changed {
            node: node.clone(),
            upper: had_upper.then_some(path),
            is_another: !continues(&before, &parts.lowers, self.past),
            before,
            after: parts.lowers.clone(),
        });
        self.plan.dirs.push((node.clone(), parts));
        Ok(())
    }

    /// Finds out what `name` leads to now. Before, it was `child`, in a directory with the lower parts `before`.
    fn fate(&self, place: &Place<'_>, before: &Lowers, name: &CStr, child: &NodeRef) -> Result<Fate> {
        let is_dir = child.dir().is_some();
        let Some(layer) = child.state().lower().map(|(_, layer)| layer) else {
            return match is_dir {
                true => self.directory(place, name, child),
                false if self.keeps_upper => Ok(Fate::Same),
                // The upper is replaced, so its files are lost.
                false => Ok(Fate::Gone),
            };
        };
        if self.is_untouched(place, before, layer) {
            return Ok(Fate::Same);
        }
        if is_dir {
            return self.directory(place, name, child);
        }
        let Some(found) = place.resolve(name)?.filter(|found| found.lowers.is_empty() && !found.stat.is_dir()) else {
            return Ok(Fate::Gone);
        };
        let Source::Lower(index) = found.source else { return Err(Errno::IO) };
        let part = place.parts.get(usize::from(index)).ok_or(Errno::IO)?;
        // A merged layer has the id of one of its sources.
        let is_same = self.past.layer(layer).is_none();
        if is_same && before.of_layer(layer).is_some_and(|was| is_same_part(was, part)) {
            return Ok(Fate::Same);
        }
        // A merged layer has the files of its sources.
        let is_same = self.past.has_added() && {
            let was = before.of_layer(layer).ok_or(Errno::IO)?;
            self.layer(layer)?.open_dir(&was.path)?.stat(name)?.is_some_and(|stat| stat.id() == found.stat.id())
        };
        Ok(if is_same { Fate::Moved(part.layer) } else { Fate::Gone })
    }

    /// True if every entry of `layer` that the directory showed is still shown.
    fn is_untouched(&self, place: &Place<'_>, before: &Lowers, layer: LayerId) -> bool {
        if self.past.has_added() || self.past.layer(layer).is_some() {
            return false;
        }
        let Some(at) = place.parts.iter().position(|part| part.layer == layer) else { return false };
        let above = place.parts.get(..=at).unwrap_or_default();
        above.iter().all(|part| before.of_layer(part.layer).is_some_and(|was| is_same_part(was, part)))
    }

    fn directory(&self, place: &Place<'_>, name: &CStr, child: &Node) -> Result<Fate> {
        let Some(found) = place.resolve(name)?.filter(|found| found.stat.is_dir()) else { return Ok(Fate::Gone) };
        if self.keeps_upper {
            let (ino, protection) = (child.ino(), child.protection());
            return Ok(Fate::Directory(Parts { lowers: found.lowers, ino, protection }));
        }
        let ino = match found.lowers.first() {
            Some(part) => self.union.ino_of_part(part)?,
            None => child.ino(),
        };
        let protection = found.stat.protection().with(found.marks.protection);
        Ok(Fate::Directory(Parts { lowers: found.lowers, ino, protection }))
    }

    /// Notes that the name of `node` is lost, and with a directory all names in it.
    fn lose_all(&mut self, at: Dentry, node: NodeRef) {
        let from = self.plan.lost.len();
        let mut pending = vec![(at, node)];
        while let Some((at, node)) = pending.pop() {
            if let Some(dir) = node.dir() {
                pending.extend(dir.children().into_iter().map(|(name, child)| ((node.clone(), name), child)));
            }
            *self.lost.entry(node.id()).or_default() += 1;
            self.plan.lost.push((at, node));
        }
        let Some(lost) = self.plan.lost.get_mut(from..) else { return };
        lost.reverse();
        // The last one is the name itself.
        let top = lost.len().saturating_sub(1);
        let may_be_used = |node: &NodeRef| node.dir().is_some() || node.state().open().is_some();
        let told = lost.iter().enumerate().filter(|(at, (_, node))| *at == top || may_be_used(node));
        self.plan.news.gone.extend(told.map(|(_, lost)| lost.clone()));
    }

    /// Separates nodes that lost all their names from those that keep one.
    fn settle_lost(&mut self) -> Result<()> {
        let gone = std::mem::take(&mut self.plan.lost);
        let mut done: HashSet<NodeId> = HashSet::new();
        for (at, node) in &gone {
            let lost = self.lost.get(&node.id()).copied().unwrap_or(0);
            if lost < node.state().names().count() {
                self.plan.names.push((at.clone(), node.clone()));
            } else if done.insert(node.id()) {
                let remains = self.remains(node)?;
                self.plan.abandoned.push((node.clone(), remains));
            }
        }
        self.plan.lost = gone;
        // An abandoned file has not moved.
        self.plan.files.retain(|(node, _)| !done.contains(&node.id()));
        Ok(())
    }

    fn layer(&self, id: LayerId) -> Result<&Layer> {
        self.past.layer(id).map_or_else(|| self.union.stack.lower(id), Ok)
    }

    /// Returns what an abandoned node keeps for its open handles.
    fn remains(&mut self, node: &NodeRef) -> Result<Remains> {
        let held = match node.dir() {
            Some(_) if self.held >= MOST_HELD => return Ok(Remains::Nothing),
            Some(_) => {
                self.held += 1;
                self.held_dir(node)
            }
            None if node.state().open().is_none() => return Ok(Remains::Nothing),
            None => self.held_file(node),
        };
        match held {
            // The layer was changed from outside.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::STALE) => Ok(Remains::Nothing),
            held => held,
        }
    }

    fn held_dir(&self, node: &NodeRef) -> Result<Remains> {
        if node.has_upper() {
            return self.union.upper_dir(node).map(Remains::Upper);
        }
        let layer = node.state().layer().ok_or(Errno::STALE)?;
        let lowers = node.dir().ok_or(Errno::IO)?.lowers();
        let part = lowers.of_layer(layer).ok_or(Errno::STALE)?;
        self.layer(layer)?.open_dir(&part.path).map(Remains::Layer)
    }

    fn held_file(&self, node: &NodeRef) -> Result<Remains> {
        if node.has_upper() {
            let held: UpperDir = self.union.on_upper(node, |dir, name| self.union.hold_file(dir, name))?;
            return Ok(Remains::Upper(held));
        }
        let (parent, name, layer) = {
            let state = node.state();
            let ((parent, name), layer) = state.lower().ok_or(Errno::STALE)?;
            (parent.clone(), Name::clone(name), layer)
        };
        let lowers = parent.dir().ok_or(Errno::IO)?.lowers();
        let part = lowers.of_layer(layer).ok_or(Errno::STALE)?;
        let dir = self.layer(layer)?.open_dir(&part.path)?;
        Ok(Remains::Layer(dir.hold(dir.open_reference(&name)?)))
    }

    /// Deleted files that are still open are found through their old directory. That directory changes, so they are held now.
    fn hold_hidden(&mut self) -> Result<()> {
        let mut done = HashSet::new();
        for node in self.union.handles.nodes() {
            let is_hidden = matches!(node.state().residence(), Residence::Hidden { .. });
            if is_hidden && done.insert(node.id()) {
                let remains = self.held_file(&node)?;
                self.plan.abandoned.push((node, remains));
            }
        }
        Ok(())
    }
}

/// Names for which the kernel may have cached that they do not exist.
pub(super) fn appeared(union: &Union, past: &Past, upper: &UpperDir, changed: &Changed) -> Result<Vec<Arc<CStr>>> {
    use crate::confined;
    use crate::union::view::UpperPart;
    use std::os::fd::AsFd;

    let mut names: HashSet<std::ffi::CString> = HashSet::new();
    let mut all = changed.is_another;
    let mut gone = Vec::new();
    if let Some(path) = &changed.upper {
        gone.push(confined::open_dir(upper.as_fd(), path)?);
    }
    for part in changed.before.iter() {
        if let Some(layer) = past.layer(part.layer) {
            gone.push(layer.open_dir(&part.path)?.open_self()?);
        }
    }
    for dir in gone {
        let part = UpperPart::root(dir)?;
        all |= part.is_opaque();
        names.extend(part.entries()?.into_iter().filter(|entry| entry.whiteout).map(|entry| entry.name));
    }
    let place = Place::new(union, &changed.after, None);
    if all || past.has_added() {
        for (index, part) in changed.after.iter().enumerate() {
            let is_new = !changed.before.of_layer(part.layer).is_some_and(|was| is_same_part(was, part));
            if all || is_new {
                let dir = place.open(index)?;
                names.extend(merge::listing::entries_of(&dir, part.xattr_whiteouts)?.into_iter().map(|(name, _)| name));
            }
        }
    }
    let dir = changed.node.dir().ok_or(Errno::NOTDIR)?;
    Ok(names.into_iter().filter(|name| !dir.has_child(name)).map(|name| Arc::from(name.as_c_str())).collect())
}
