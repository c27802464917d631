//! From a node to the real files behind it.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::driver::Overlay;
use crate::driver::node::{self, DirState, Name, Node, NodeId, NodeRef, Real};
use crate::driver::types::{Errno, Result};
use crate::union::layer::{Dir, LayerDir, Stat, UpperDir};
use crate::union::merge::{self, Listing, MergedDir, Resolution};

/// Lookups without a listing after which it is worth making one: a directory of several layers, and of one.
const PROBES_MERGED: u32 = 1;
const PROBES_SINGLE: u32 = 16;

impl Overlay {
    /// Where a node is in the mount, for messages: its first known name; nothing if it has none any more.
    pub fn path_of(&self, node: NodeId) -> PathBuf {
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

    /// The directory's lower part `index`.
    pub(in crate::driver) fn lower_dir(&self, node: &Node, index: usize) -> Result<Dir> {
        let part = node.dir().and_then(|dir| dir.lowers.get(index)).ok_or(Errno::IO)?;
        let layer = self.stack.lower(part.layer)?;
        if part.path.is_empty() {
            return Ok(layer.root().clone());
        }
        let key = (node.id().0, u32::try_from(index).map_err(|_| Errno::OVERFLOW)?);
        if let Some(dir) = self.lower_dirs.get(key) {
            return Ok(dir);
        }
        let dir = layer.open_dir(&part.path)?;
        self.lower_dirs.insert(key, dir.clone());
        Ok(dir)
    }

    /// The directory's lower part `index`, to look into: where the layer's inventory describes it, without a system
    /// call.
    pub(in crate::driver) fn lower_view<'a>(&'a self, node: &'a Node, index: usize) -> Result<LayerDir<'a>> {
        let part = node.dir().and_then(|dir| dir.lowers.get(index)).ok_or(Errno::IO)?;
        match self.stack.lower(part.layer)?.listed_dir(part) {
            Some(listed) => Ok(listed),
            None => self.lower_dir(node, index).map(LayerDir::Held),
        }
    }

    /// Calls `act` with the node's file in a lower layer, if it has nothing in the upper.
    pub(in crate::driver) fn on_lower_view<R>(
        &self,
        node: &NodeRef,
        act: impl FnOnce(&LayerDir<'_>, &CStr) -> Result<R>,
    ) -> Result<Option<R>> {
        if let Some(dir) = node.dir() {
            let has_upper = dir.state.lock().upper.is_some();
            return if has_upper { Ok(None) } else { act(&self.lower_view(node, 0)?, c"").map(Some) };
        }
        let Some((parent, name, index)) = Self::lower_place(node)? else { return Ok(None) };
        act(&self.lower_view(&parent, usize::from(index))?, &name).map(Some)
    }

    /// The directory's upper part. May take the `names` lock of its parents, so it is called with no such lock held.
    pub(in crate::driver) fn upper_dir(&self, node: &NodeRef) -> Result<UpperDir> {
        if node.id() == NodeId::ROOT {
            return self.stack.upper().map(|upper| upper.root().clone()).ok_or(Errno::ROFS);
        }
        let key = (node.id().0, 0);
        if let Some(dir) = self.upper_dirs.get(key) {
            return Ok(dir);
        }
        loop {
            let (at, orphan) = {
                let state = node.state.lock();
                (state.first_name().cloned(), state.orphan().cloned())
            };
            if let Some(orphan) = orphan {
                return Ok(orphan);
            }
            let (parent, name) = at.ok_or(Errno::STALE)?;
            let above = self.upper_dir(&parent)?;
            let _names = parent.dir().ok_or(Errno::STALE)?.names.read();
            // It may have been moved while the lock was not held.
            if !node.is_named(&parent, &name) {
                continue;
            }
            let dir = above.open_upper_dir(&name)?;
            self.upper_dirs.insert(key, dir.clone());
            return Ok(dir);
        }
    }

    /// The directory's upper part, if it has one.
    pub(in crate::driver) fn upper_dir_if_any(&self, node: &NodeRef) -> Result<Option<UpperDir>> {
        if node.has_upper() { self.upper_dir(node).map(Some) } else { Ok(None) }
    }

    /// Calls `act` with the node's upper file, which cannot be renamed or removed meanwhile.
    pub(in crate::driver) fn on_upper<R>(
        &self,
        node: &NodeRef,
        act: impl FnOnce(&UpperDir, &CStr) -> Result<R>,
    ) -> Result<R> {
        if node.dir().is_some() {
            return act(&self.upper_dir(node)?, c"");
        }
        if self.index_place(node).is_some() {
            // The entry goes with the last name.
            let _links = node.hold_links();
            if let Some((index, entry)) = self.index_place(node) {
                return act(&index, &entry);
            }
        }
        loop {
            let (at, orphan) = {
                let state = node.state.lock();
                (state.first_name().cloned(), state.orphan().cloned())
            };
            if let Some(orphan) = orphan {
                return act(&orphan, c"");
            }
            let (parent, name) = at.ok_or(Errno::STALE)?;
            let dir = self.upper_dir(&parent)?;
            let _names = parent.dir().ok_or(Errno::STALE)?.names.read();
            if !node.is_named(&parent, &name) || node.state.lock().orphan().is_some() {
                continue;
            }
            return act(&dir, &name);
        }
    }

    /// Calls `act` with the node's real file, wherever it is, for reading.
    pub(in crate::driver) fn on_real<R>(
        &self,
        node: &NodeRef,
        act: impl FnOnce(&Dir, &CStr) -> Result<R>,
    ) -> Result<R> {
        if let Some(dir) = node.dir() {
            let has_upper = dir.state.lock().upper.is_some();
            let held = if has_upper { self.upper_dir(node)?.as_dir().clone() } else { self.lower_dir(node, 0)? };
            return act(&held, c"");
        }
        match Self::lower_place(node)? {
            None => self.on_upper(node, |dir, name| act(dir, name)),
            Some((parent, name, index)) => act(&self.lower_dir(&parent, usize::from(index))?, &name),
        }
    }

    /// Where a file is that only a lower layer has: directory, name, index of the directory's lower part. It is never
    /// moved, so that its name needs no lock.
    fn lower_place(node: &Node) -> Result<Option<(NodeRef, Name, u16)>> {
        let state = node.state.lock();
        let Real::Lower(index) = state.real else { return Ok(None) };
        let (parent, name) = state.first_name().cloned().ok_or(Errno::STALE)?;
        Ok(Some((parent, name, index)))
    }

    /// Attributes of the node's real file.
    pub(in crate::driver) fn real_stat(&self, node: &NodeRef) -> Result<Stat> {
        let lower =
            |dir: &LayerDir<'_>, name: &CStr| self.shown_lower_stat(dir, name, dir.stat(name)?.ok_or(Errno::STALE)?);
        if let Some(stat) = self.on_lower_view(node, lower)? {
            return Ok(stat);
        }
        self.on_real(node, |dir, name| self.shown_stat(dir, name, dir.stat(name)?.ok_or(Errno::STALE)?))
    }

    /// The merged listing of the directory's lower parts, made on first use; `None` if it has none.
    pub(in crate::driver) fn lower_listing(&self, node: &Node) -> Result<Option<Arc<Listing>>> {
        let dir = node.dir().ok_or(Errno::NOTDIR)?;
        if dir.lowers.is_empty() {
            return Ok(None);
        }
        let known = dir.state.lock().lower_listing.clone();
        if let Some(listing) = known.filter(|listing| !listing.is_broken()) {
            return Ok(Some(listing));
        }
        let mut parts = Vec::with_capacity(dir.lowers.len());
        for (index, part) in dir.lowers.iter().enumerate() {
            parts.push((part, self.lower_view(node, index)?));
        }
        let kept = dir.state.lock().moved.clone();
        let listing = Arc::new(Listing::of_lowers(&parts, &kept)?);
        let mut state = dir.state.lock();
        state.lower_listing = Some(listing.clone());
        if state.upper.is_none() {
            state.moved = listing.moved();
        }
        Ok(Some(listing))
    }

    /// The lower listing if it exists or this lookup makes it worth while.
    fn listing_for_lookup(&self, node: &Node, dir: &node::Dir) -> Result<Option<Arc<Listing>>> {
        let worth_while = {
            let DirState { probes, lower_listing, .. } = &mut *dir.state.lock();
            if let Some(listing) = lower_listing.as_ref().filter(|listing| !listing.is_broken()) {
                return Ok(Some(listing.clone()));
            }
            *probes = probes.saturating_add(1);
            let enough = if dir.lowers.len() > 1 { PROBES_MERGED } else { PROBES_SINGLE };
            !dir.lowers.is_empty() && *probes > enough
        };
        if worth_while { self.lower_listing(node) } else { Ok(None) }
    }

    /// Calls `act` with what is needed to look names up in the directory `node`.
    pub(in crate::driver) fn with_merged<R>(
        &self,
        node: &NodeRef,
        upper: Option<&UpperDir>,
        act: impl FnOnce(&MergedDir<'_>) -> Result<R>,
    ) -> Result<R> {
        let dir = node.dir().ok_or(Errno::NOTDIR)?;
        let listing = self.listing_for_lookup(node, dir)?;
        let upper_may_have_marks = dir.state.lock().upper.as_ref().is_none_or(|part| part.impure);
        let open_lower = |index: usize| self.lower_view(node, index);
        let done = act(&MergedDir {
            stack: &self.stack,
            upper: upper.map(|dir| dir.as_dir()),
            lowers: &dir.lowers,
            open_lower: &open_lower,
            listing: listing.as_deref(),
            upper_may_have_marks,
            follow_redirects: self.follows_redirects(),
            metacopy: self.config.metacopy,
        });
        // What it did not find may be there all the same.
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
        if node.dir().is_none_or(|dir| dir.lowers.is_empty()) {
            return Ok(false);
        }
        self.with_merged(node, None, |dir| merge::exists_in_lower(dir, name))
    }
}
