//! Which node has a name in a directory: a table of node numbers, four bytes a slot. The names stay with the nodes.

use std::hash::{BuildHasher as _, RandomState};

use super::Id;

const EMPTY: Id = Id::MAX;
const FIRST: usize = 1 << 10;

/// The table. Hashed with a key of its own, as the names are an archive's to choose; nothing that comes out depends on it.
#[derive(Debug)]
pub(super) struct Index {
    slots: Vec<Id>,
    used: usize,
    keys: RandomState,
}

impl Index {
    /// With room for so many names; it grows when there are more.
    pub(super) fn new(names: usize) -> Self {
        Self { slots: vec![EMPTY; FIRST.max(names + names / 2)], used: 0, keys: RandomState::new() }
    }

    fn home(&self, dir: Id, name: &[u8]) -> usize {
        let hash = self.keys.hash_one((dir, name));
        ((u128::from(hash) * self.slots.len() as u128) >> 64) as usize
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
    }

    /// Where the name is, or would go.
    fn slot<'n>(&self, dir: Id, name: &[u8], named: &impl Fn(Id) -> (Id, &'n [u8])) -> usize {
        let mut at = self.home(dir, name);
        while self.slots[at] != EMPTY && named(self.slots[at]) != (dir, name) {
            at = self.after(at);
        }
        at
    }

    /// The node of that name. `named` tells a node's directory and name.
    pub(super) fn find<'n>(&self, dir: Id, name: &[u8], named: impl Fn(Id) -> (Id, &'n [u8])) -> Option<Id> {
        Some(self.slots[self.slot(dir, name, &named)]).filter(|id| *id != EMPTY)
    }

    /// Puts a node, which `named` knows, in the place of the one that had its name.
    pub(super) fn put<'n>(&mut self, id: Id, named: impl Fn(Id) -> (Id, &'n [u8])) {
        if (self.used + 1) * 5 > self.slots.len() * 4 {
            self.grow(&named);
        }
        let (dir, name) = named(id);
        let at = self.slot(dir, name, &named);
        self.used += usize::from(self.slots[at] == EMPTY);
        self.slots[at] = id;
    }

    fn grow<'n>(&mut self, named: &impl Fn(Id) -> (Id, &'n [u8])) {
        let twice = vec![EMPTY; self.slots.len() * 2];
        let old = std::mem::replace(&mut self.slots, twice);
        for id in old.into_iter().filter(|id| *id != EMPTY) {
            let (dir, name) = named(id);
            // All names differ: the first empty slot is the right one.
            let mut at = self.home(dir, name);
            while self.slots[at] != EMPTY {
                at = self.after(at);
            }
            self.slots[at] = id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_directory_and_may_be_replaced() {
        let names: Vec<(Id, Vec<u8>)> = (0..10_000_u32).map(|i| (i % 3, format!("{}", i / 3).into_bytes())).collect();
        let twice: Vec<(Id, Vec<u8>)> = names.iter().chain(&names).cloned().collect();
        let named = |id: Id| (twice[id as usize].0, &twice[id as usize].1[..]);
        let mut index = Index::new(0);
        for id in 0..10_000 {
            index.put(id, named);
        }
        for (id, (dir, name)) in names.iter().enumerate() {
            assert_eq!(index.find(*dir, name, named), Some(id as Id));
        }
        assert_eq!(index.find(0, b"none", named), None);
        assert_eq!(index.find(3, b"1", named), None);
        for id in 10_000..20_000 {
            index.put(id, named);
        }
        assert_eq!(index.used, 10_000);
        assert_eq!(index.find(0, b"0", named), Some(10_000));
    }
}
