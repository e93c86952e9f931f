//! Second half of a conversion, the deciding part: where each request of the journal ends up, given what the layers below show. Writes
//! nothing.
//!
//! The rules are those of `tar -x` run on the stack of layers below, and of the image specification for whiteouts:
//! - parents are followed through symbolic links (of this layer and of those below, inside the root); the last component never is;
//! - a directory over a directory changes its metadata; anything else replaces what was there, and hides what is below;
//! - a whiteout hides only what the layers below have; what this layer itself brings stays, whichever comes first;
//! - a parent that the layer leaves out takes the metadata that it has below, or is 0755 root:root;
//! - a hard link to a file below takes a copy of it into this layer, under both names, as `link(2)` on an overlay would.

mod attributes;
mod hide;
mod index;
mod links;
mod resolve;

use index::Index;

use super::{
    ConvertError,
    journal::{Described, Journal, Sets, What},
    names::{Name, Names},
    stage::Bounds,
};
use crate::{
    erofs::InodeRef,
    merged::{self, LinkedNames, Merged},
};

pub(super) type Id = u32;
pub(super) const ROOT: Id = 0;
/// No further child.
const NONE: Id = Id::MAX;

/// What a name of this layer means.
#[derive(Debug, Clone, Copy)]
pub(super) enum Node {
    /// With its place in [`Tree::dirs`].
    Dir(u32),
    /// A leaf that is laid out, with its `d_type`.
    Leaf(InodeRef, u8),
    /// With its place in the tree's table of links.
    Symlink(u32),
    /// A file of a layer below, to be copied here. Equal numbers are the same inode.
    Copy(u32),
    /// The name is gone.
    Whiteout,
    /// Replaced by something else; no longer reachable.
    Gone,
}

/// A name of this layer. There may be a million: 20 bytes each.
#[derive(Debug)]
struct Named {
    dir: Id,
    name: Name,
    /// The next child of the same directory.
    next: Id,
    node: Node,
}

/// A directory of this layer.
#[derive(Debug)]
pub(super) struct DirNode {
    pub(super) meta: Described,
    /// What shows through from below.
    pub(super) below: Option<Box<merged::Dir>>,
    /// Its children, newest first.
    first: Id,
    /// Named by the archive itself, not only passed through.
    named: bool,
    /// Something below has this name and must not show through.
    pub(super) opaque: bool,
}

/// The layer's names, resolved.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    lower: &'a Merged,
    nodes: Vec<Named>,
    names: Names,
    index: Index,
    dirs: Vec<DirNode>,
    /// Attributes of the directories.
    sets: Sets,
    /// Bytes that unions of such sets have taken.
    united: usize,
    /// Symbolic links and their targets.
    symlinks: Vec<(InodeRef, Name)>,
    /// Leaves of this layer that hard links name; sorted once all are known.
    linked: Vec<InodeRef>,
    /// Leaves below that get a copy.
    pub(super) copies: Vec<merged::Leaf>,
    /// Names of files below that have several, by layer and inode; made when first needed.
    names_below: Option<LinkedNames>,
    /// Names that there may be: an archive brings some without naming them, such as parents that it leaves out. And bytes of files, since it
    /// brings those below that it links to.
    bounds: Bounds,
    /// Bytes of its own files and of copies.
    content: u64,
    steps: u64,
    /// The last parent that was looked up, while nothing happened that could move it.
    last_parent: Option<(Vec<u8>, Id)>,
}

impl<'a> Tree<'a> {
    /// Replays the journal over the layers below; `content` is how many bytes its own files have.
    pub(super) fn build(
        journal: Journal,
        lower: &'a Merged,
        bounds: Bounds,
        content: u64,
    ) -> Result<Self, ConvertError> {
        let entries = journal.len() as usize;
        let (mut replay, sets) = journal.replay();
        let mut tree = Self {
            lower,
            nodes: Vec::new(),
            names: Names::default(),
            index: Index::new(entries),
            dirs: Vec::new(),
            sets,
            united: 0,
            symlinks: Vec::new(),
            linked: Vec::new(),
            copies: Vec::new(),
            names_below: None,
            bounds,
            content,
            steps: 0,
            last_parent: None,
        };
        let below = lower.root().map_err(ConvertError::Lower)?;
        let meta = match &below {
            Some(dir) => tree.meta_below(dir)?,
            None => tree.plain_dir(),
        };
        // The root is its own parent, and nobody's child.
        let name = tree.names.keep(b"");
        tree.nodes.push(Named { dir: ROOT, name, next: NONE, node: Node::Dir(0) });
        tree.dirs.push(DirNode { meta, below: below.map(Box::new), first: NONE, named: true, opaque: false });
        while let Some((path, what)) = replay.next() {
            tree.apply(path, what)?;
        }
        // From here on nothing is looked up by name.
        tree.index = Index::new(0);
        tree.linked.sort_unstable();
        tree.linked.dedup();
        Ok(tree)
    }

    pub(super) fn node(&self, id: Id) -> Node {
        self.nodes[id as usize].node
    }

    pub(super) fn name(&self, id: Id) -> &[u8] {
        self.names.bytes(self.nodes[id as usize].name)
    }

    /// The directory that the node is.
    pub(super) fn dir(&self, id: Id) -> Option<&DirNode> {
        match self.node(id) {
            Node::Dir(dir) => Some(&self.dirs[dir as usize]),
            _ => None,
        }
    }

    fn dir_mut(&mut self, id: Id) -> Option<&mut DirNode> {
        match self.node(id) {
            Node::Dir(dir) => Some(&mut self.dirs[dir as usize]),
            _ => None,
        }
    }

    pub(super) fn symlink(&self, link: u32) -> InodeRef {
        self.symlinks[link as usize].0
    }

    /// Whether the node's inode may have more names than this one.
    pub(super) fn may_be_linked(&self, node: Node) -> bool {
        match node {
            Node::Leaf(inode, _) => self.linked.binary_search(&inode).is_ok(),
            Node::Symlink(link) => self.linked.binary_search(&self.symlink(link)).is_ok(),
            Node::Copy(_) | Node::Whiteout => true,
            Node::Dir(_) | Node::Gone => false,
        }
    }

    /// Nodes of a directory, newest first.
    fn children(&self, id: Id) -> impl Iterator<Item = Id> {
        let mut next = self.dir(id).map_or(NONE, |dir| dir.first);
        std::iter::from_fn(move || {
            let id = (next != NONE).then_some(next)?;
            next = self.nodes[id as usize].next;
            Some(id)
        })
        .filter(|id| !matches!(self.node(*id), Node::Gone))
    }

    /// Nodes of a directory, by name.
    pub(super) fn sorted(&self, dir: Id) -> Vec<Id> {
        let mut out: Vec<Id> = self.children(dir).collect();
        out.sort_unstable_by(|a, b| self.name(*a).cmp(self.name(*b)));
        out
    }

    fn apply(&mut self, path: &[u8], what: What<'_>) -> Result<(), ConvertError> {
        if path.is_empty() {
            match what {
                What::Dir(meta) => self.describe(ROOT, meta)?,
                _ => self.make_opaque(ROOT),
            }
            return Ok(());
        }
        if let What::Opaque = what {
            let dir = self.resolve_dir(path)?;
            self.make_opaque(dir);
            return Ok(());
        }
        let (parent, name) = split(path);
        let parent = self.resolve_dir(parent)?;
        match what {
            What::Dir(meta) => self.put_dir(parent, name, meta),
            What::Leaf(inode, kind) => self.put(parent, name, Node::Leaf(inode, kind)),
            What::Symlink(inode, target) => {
                let target = self.names.keep(target);
                self.symlinks.push((inode, target));
                self.put(parent, name, Node::Symlink(self.symlinks.len() as u32 - 1))
            }
            What::Link(target) => self.link(parent, name, path, target),
            What::Whiteout => self.whiteout(parent, name),
            What::Opaque => Ok(()),
        }
    }

    pub(super) fn child(&self, dir: Id, name: &[u8]) -> Option<Id> {
        let id = self.index.find(dir, name, |id| self.named(id))?;
        (!matches!(self.node(id), Node::Gone)).then_some(id)
    }

    fn named(&self, id: Id) -> (Id, &[u8]) {
        let Named { dir, name, .. } = &self.nodes[id as usize];
        (*dir, self.names.bytes(*name))
    }

    /// Gives the name to a node; whatever had it is no longer found.
    fn add(&mut self, dir: Id, name: &[u8], node: Node) -> Result<Id, ConvertError> {
        let id = self.nodes.len() as Id;
        // The root is nobody's entry.
        let limit = self.bounds.names;
        if u64::from(id) > limit {
            return Err(ConvertError::Limit { what: "entries, with directories that they need", limit });
        }
        let next = self.dir(dir).map_or(NONE, |dir| dir.first);
        let name = self.names.keep(name);
        self.nodes.push(Named { dir, name, next, node });
        if let Some(dir) = self.dir_mut(dir) {
            dir.first = id;
        }
        let Self { nodes, names, index, .. } = self;
        index.put(id, |id| (nodes[id as usize].dir, names.bytes(nodes[id as usize].name)));
        Ok(id)
    }

    fn add_dir(&mut self, dir: Id, name: &[u8], node: DirNode) -> Result<Id, ConvertError> {
        self.dirs.push(node);
        self.add(dir, name, Node::Dir(self.dirs.len() as u32 - 1))
    }

    fn below(&self, dir: Id, name: &[u8]) -> Result<Option<merged::Node>, ConvertError> {
        match self.dir(dir) {
            Some(DirNode { below: Some(below), .. }) => self.lower.lookup(below, name).map_err(ConvertError::Lower),
            _ => Ok(None),
        }
    }

    fn put_dir(&mut self, parent: Id, name: &[u8], mut meta: Described) -> Result<(), ConvertError> {
        let there = self.child(parent, name);
        if let Some(id) = there
            && let Node::Dir(_) = self.node(id)
        {
            return self.describe(id, meta);
        }
        let below = match self.below(parent, name)? {
            Some(merged::Node::Dir(below)) => Some(below),
            _ => None,
        };
        // Whatever this layer had here before already hid what is below.
        let (below, opaque) = match there {
            Some(_) => (None, below.is_some()),
            None => (below, false),
        };
        if let Some(below) = &below {
            let attributes = self.meta_below(below)?.xattrs;
            meta.xattrs = self.union(attributes, meta.xattrs)?;
        }
        self.discard_name(parent, name);
        self.add_dir(parent, name, DirNode { meta, below: below.map(Box::new), first: NONE, named: true, opaque })?;
        Ok(())
    }

    fn put(&mut self, parent: Id, name: &[u8], node: Node) -> Result<(), ConvertError> {
        self.discard_name(parent, name);
        self.add(parent, name, node).map(drop)
    }

    fn discard_name(&mut self, parent: Id, name: &[u8]) {
        if let Some(id) = self.child(parent, name) {
            self.discard(id);
            self.last_parent = None;
        }
    }

    /// Takes a node and all below it out of the tree.
    fn discard(&mut self, id: Id) {
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            todo.extend(self.children(id));
            self.nodes[id as usize].node = Node::Gone;
        }
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(i) => (&path[..i], &path[i + 1..]),
        None => (b"", path),
    }
}

#[cfg(test)]
mod tests;
