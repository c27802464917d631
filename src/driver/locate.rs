//! From a node to the real files behind it.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::driver::Union;
use crate::driver::node::{LinksGuard, Lowers, Name, NamesRead, Node, NodeId, NodeRef, Residence, Surroundings, Turn};
use crate::driver::types::{Errno, Result};
use crate::union::layer::{Dir, LayerDir, LayerId, LowerRef, Stat, UpperDir};
use crate::union::merge::{self, Listing, MergedDir, Resolution};

impl Union {
    /// The path of a node in the mount, for messages: its first known name; empty if it has none.
    pub(super) fn path_of(&self, node: NodeId) -> PathBuf {
        let mut names = Vec::new();
        let mut current = self.nodes.get(node);
        while let Some((parent, name)) = current.as_ref().and_then(|node| node.name()) {
            names.push(OsStr::from_bytes(name.to_bytes()).to_owned());
            current = Some(parent);
        }
        if current.is_none_or(|last| last.id() != NodeId::ROOT) {
            return PathBuf::new();
        }
        let mut path = PathBuf::from("/");
        path.extend(names.iter().rev());
        path
    }

    /// The lower part `part` of the directory `node`.
    pub(in crate::driver) fn lower_dir(&self, node: &Node, part: &LowerRef) -> Result<Dir> {
        let layer = self.stack.lower(part.layer)?;
        if part.path.is_empty() {
            return Ok(layer.root().clone());
        }
        if self.config.timeout.is_some() {
            // The layer may change: another directory may be there now.
            return layer.open_dir(&part.path);
        }
        let (cache, key) = (&self.nodes.descriptors().lower_dirs, (node.id().0, part.layer.number()));
        if let Some(dir) = cache.get(&key) {
            return Ok(dir);
        }
        let dir = layer.open_dir(&part.path)?;
        cache.insert(key, dir.clone());
        Ok(dir)
    }

    /// A view of the lower part `part` of the directory `node`. Where the layer's inventory describes the directory, no
    /// system call is made.
    pub(in crate::driver) fn lower_view<'a>(&'a self, node: &Node, part: &'a LowerRef) -> Result<LayerDir<'a>> {
        match self.stack.lower(part.layer)?.listed_dir(part) {
            Some(listed) => Ok(listed),
            None => self.lower_dir(node, part).map(LayerDir::Held),
        }
    }

    /// Calls `act` with the node's file in a lower layer, if the node has no upper part.
    pub(in crate::driver) fn on_lower_view<R>(
        &self,
        node: &NodeRef,
        act: impl FnOnce(&LayerDir<'_>, &CStr) -> Result<R>,
    ) -> Result<Option<R>> {
        let Some(place) = LowerPlace::of(node)? else { return Ok(None) };
        act(&self.lower_view(&place.dir, place.part()?)?, place.name()).map(Some)
    }

    /// The directory's upper part. May take the `names` lock of its parents, so the caller must not hold one.
    pub(in crate::driver) fn upper_dir(&self, node: &NodeRef) -> Result<UpperDir> {
        if node.id() == NodeId::ROOT {
            return self.stack.upper().map(|upper| upper.root().clone()).ok_or(Errno::ROFS);
        }
        let (cache, key) = (&self.nodes.descriptors().upper_dirs, (node.id().0, self.stack.upper_id().number()));
        if let Some(dir) = cache.get(&key) {
            return Ok(dir);
        }
        loop {
            let (parent, name) = match UpperPlace::of(node)? {
                UpperPlace::Held(dir) => return Ok(dir),
                UpperPlace::Named(parent, name) => (parent, name),
            };
            let above = self.upper_dir(&parent)?;
            let mut turn = Turn::begin();
            let _names = NamesRead::lock(&mut turn, &parent)?;
            // The node may have moved while the lock was not held.
            if !node.is_named(&parent, &name) {
                continue;
            }
            let dir = above.open_upper_dir(&name)?;
            cache.insert(key, dir.clone());
            return Ok(dir);
        }
    }

    /// The directory's upper part, if it has one.
    pub(in crate::driver) fn upper_dir_if_any(&self, node: &NodeRef) -> Result<Option<UpperDir>> {
        if node.has_upper() { self.upper_dir(node).map(Some) } else { Ok(None) }
    }

    /// Calls `act` with the node's upper file, which cannot be renamed or removed in the meantime.
    pub(in crate::driver) fn on_upper<R>(
        &self,
        node: &NodeRef,
        act: impl FnOnce(&UpperDir, &CStr) -> Result<R>,
    ) -> Result<R> {
        if node.dir().is_some() {
            return act(&self.upper_dir(node)?, c"");
        }
        if self.index_place(node).is_some() {
            // The entry is removed with the last name.
            let mut turn = Turn::begin();
            let _links = LinksGuard::alone(&mut turn, node);
            if let Some((index, entry)) = self.index_place(node) {
                return act(&index, &entry);
            }
        }
        loop {
            let (parent, name) = match UpperPlace::of(node)? {
                UpperPlace::Held(file) => return act(&file, c""),
                UpperPlace::Named(parent, name) => (parent, name),
            };
            let dir = self.upper_dir(&parent)?;
            let mut turn = Turn::begin();
            let _names = NamesRead::lock(&mut turn, &parent)?;
            if !node.is_named(&parent, &name) {
                continue;
            }
            return act(&dir, &name);
        }
    }

    /// Calls `act` with the node's real file, in whichever layer it is, for reading.
    pub(in crate::driver) fn on_real<R>(
        &self,
        node: &NodeRef,
        act: impl FnOnce(&Dir, &CStr) -> Result<R>,
    ) -> Result<R> {
        match LowerPlace::of(node)? {
            None => match left_in_layer(node) {
                Some((held, _)) => act(&held, c""),
                None => self.on_upper(node, |dir, name| act(dir, name)),
            },
            Some(place) => act(&self.lower_dir(&place.dir, place.part()?)?, place.name()),
        }
    }

    /// Attributes of the node's real file. The caller holds no names.
    pub(in crate::driver) fn real_stat(&self, node: &NodeRef) -> Result<Stat> {
        let lower =
            |dir: &LayerDir<'_>, name: &CStr| self.shown_lower_stat(dir, name, dir.stat(name)?.ok_or(Errno::STALE)?);
        if let Some(stat) = self.on_lower_view(node, lower)? {
            return Ok(stat);
        }
        if node.dir().is_some()
            && let Some(dir) = self.upper_dir_if_any(node)?
        {
            // A copy-up in the directory changes its time for a moment.
            let mut turn = Turn::begin();
            let _names = NamesRead::lock(&mut turn, node)?;
            return self.shown_stat(&dir, c"", dir.stat_self()?);
        }
        self.on_real(node, |dir, name| self.shown_stat(dir, name, dir.stat(name)?.ok_or(Errno::STALE)?))
    }

    /// The merged listing of the directory's lower parts, made on first use; `None` if it has no lower parts.
    pub(in crate::driver) fn lower_listing(&self, node: &Node) -> Result<Option<Arc<Listing>>> {
        let dir = node.dir().ok_or(Errno::NOTDIR)?;
        if let Some(listing) = dir.lower_listing() {
            return Ok(Some(listing));
        }
        let lowers = dir.lowers();
        if lowers.is_empty() {
            return Ok(None);
        }
        let parts = lowers.iter().map(|part| Ok((part, self.lower_view(node, part)?)));
        let listing = Arc::new(Listing::of_lowers(&parts.collect::<Result<Vec<_>>>()?, &dir.moved_names())?);
        self.nodes.keep_lower_listing(node, listing.clone());
        Ok(Some(listing))
    }

    /// Calls `act` with everything that looking up names in the directory `node` needs.
    pub(in crate::driver) fn with_merged<R>(
        &self,
        node: &NodeRef,
        upper: Option<&UpperDir>,
        act: impl FnOnce(&MergedDir<'_>) -> Result<R>,
    ) -> Result<R> {
        let dir = node.dir().ok_or(Errno::NOTDIR)?;
        let Surroundings { lowers, mut listing, wants_listing, impure } = dir.surroundings(self.config.timeout);
        if wants_listing {
            listing = self.lower_listing(node)?;
        }
        let open_lower = |index: usize| self.lower_view(node, lowers.get(index).ok_or(Errno::IO)?);
        let upper_xattr_whiteouts = dir.upper_part(|part| part.xattr_whiteouts);
        let done = act(&MergedDir {
            stack: &self.stack,
            upper: upper.map(|dir| dir.as_dir()),
            lowers: &lowers,
            open_lower: &open_lower,
            listing: listing.as_deref(),
            upper_xattr_whiteouts,
            upper_may_have_marks: impure,
            follow_redirects: self.follows_redirects(),
            metacopy: self.config.metacopy,
        });
        // A listing that is not complete does not prove that the name is absent.
        if listing.is_some_and(|listing| listing.is_broken()) { Err(Errno::IO) } else { done }
    }

    /// Resolves `name` in the directory `node`, whose upper part is `upper`. The caller holds its `names` lock.
    pub(in crate::driver) fn resolve(
        &self,
        node: &NodeRef,
        upper: Option<&UpperDir>,
        name: &CStr,
    ) -> Result<Resolution> {
        self.with_merged(node, upper, |dir| merge::resolve(dir, name))
    }

    /// True if a lower layer has `name` in the directory `node`.
    pub(in crate::driver) fn exists_in_lower(&self, node: &NodeRef, name: &CStr) -> Result<bool> {
        if node.dir().is_none_or(|dir| !dir.has_lowers()) {
            return Ok(false);
        }
        self.with_merged(node, None, |dir| merge::exists_in_lower(dir, name))
    }
}

/// What is held of the node, and its layer, if that is a layer which does not show it any more.
pub(in crate::driver) fn left_in_layer(node: &Node) -> Option<(Dir, LayerId)> {
    node.state().left().map(|(held, layer)| (held.clone(), layer))
}

/// The place of a node that has no upper part. Such a node never moves, so its name needs no lock.
pub(in crate::driver) struct LowerPlace {
    /// The directory that has the name; for a directory, the directory itself.
    pub(in crate::driver) dir: NodeRef,
    /// The name in it; `None` for a directory.
    name: Option<Name>,
    lowers: Lowers,
    layer: LayerId,
}

impl LowerPlace {
    /// Returns the place of `node`; `None` if it is in the upper, or held because the mount does not show it any more.
    pub(in crate::driver) fn of(node: &NodeRef) -> Result<Option<Self>> {
        // Called before the state is locked, because it takes the same lock.
        let own = node.dir();
        let (dir, name, layer) = match node.state().residence() {
            Residence::Lower { layer, .. } | Residence::Hidden { layer, .. } if own.is_some() => {
                (node.clone(), None, *layer)
            }
            Residence::Lower { at: (parent, name), layer } | Residence::Hidden { at: (parent, name), layer } => {
                (parent.clone(), Some(name.clone()), *layer)
            }
            Residence::Root { upper: false } => {
                let top = own.and_then(|dir| dir.lowers().first().map(|part| part.layer));
                (node.clone(), None, top.ok_or(Errno::IO)?)
            }
            Residence::Root { upper: true }
            | Residence::Upper { .. }
            | Residence::Orphan { .. }
            | Residence::Left { .. } => return Ok(None),
            Residence::Gone => return Err(Errno::STALE),
        };
        let lowers = dir.dir().ok_or(Errno::IO)?.lowers();
        Ok(Some(Self { dir, name, lowers, layer }))
    }

    /// The name in the directory; empty for the directory itself.
    pub(in crate::driver) fn name(&self) -> &CStr {
        self.name.as_deref().unwrap_or_default()
    }

    /// The part of the directory that has the name.
    pub(in crate::driver) fn part(&self) -> Result<&LowerRef> {
        self.lowers.of_layer(self.layer).ok_or(Errno::IO)
    }
}

/// The place of a node's upper file or directory.
enum UpperPlace {
    /// Under this name.
    Named(NodeRef, Name),
    /// It has no name and is held by descriptor.
    Held(UpperDir),
}

impl UpperPlace {
    fn of(node: &Node) -> Result<Self> {
        match node.state().residence() {
            Residence::Upper { at: (parent, name), .. } => Ok(Self::Named(parent.clone(), name.clone())),
            Residence::Orphan { held, .. } => Ok(Self::Held(held.clone())),
            Residence::Root { .. }
            | Residence::Lower { .. }
            | Residence::Hidden { .. }
            | Residence::Left { .. }
            | Residence::Gone => Err(Errno::STALE),
        }
    }
}
