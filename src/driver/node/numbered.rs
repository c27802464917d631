//! Nodes by number.

// Not from `sync`: it changes while a shard is locked, where the tests' scheduler must not switch.
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;

use crate::driver::node::NodeRef;

/// How many numbers share a page.
const PAGE: u64 = 16;

/// Nodes by number. Numbers are given out in sequence, so those in use lie close together: a page of them takes a
/// third of the memory of as many hash table entries.
#[derive(Debug, Default)]
pub(super) struct Numbered {
    pages: DashMap<u64, Box<Page>>,
    /// Numbers in use.
    count: AtomicUsize,
}

type Page = [Option<NodeRef>; PAGE as usize];

/// The page of a number, and its place in the page.
fn page_and_slot(id: u64) -> (u64, usize) {
    (id / PAGE, (id % PAGE) as usize)
}

impl Numbered {
    pub(super) fn get(&self, id: u64) -> Option<NodeRef> {
        let (page, at) = page_and_slot(id);
        self.pages.get(&page)?.get(at)?.clone()
    }

    pub(super) fn insert(&self, id: u64, node: NodeRef) {
        let (page, at) = page_and_slot(id);
        let mut page = self.pages.entry(page).or_default();
        if let Some(slot) = page.get_mut(at)
            && slot.replace(node).is_none()
        {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn remove(&self, id: u64) {
        let (number, at) = page_and_slot(id);
        let Some(mut page) = self.pages.get_mut(&number) else { return };
        if page.get_mut(at).and_then(Option::take).is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        let is_empty = |page: &Page| page.iter().all(Option::is_none);
        let emptied = is_empty(&page);
        drop(page);
        if emptied {
            self.pages.remove_if(&number, |_, page| is_empty(page));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}
