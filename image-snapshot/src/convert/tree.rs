//! Second half of a conversion, the deciding part: where each request of the journal ends up, given what the layers below show. Writes
//! nothing.
//!
//! The rules are those of `tar -x` run on the stack of layers below, and of the image specification for whiteouts:
//! - parents are followed through symbolic links (of this layer and of those below, inside the root); the last component never is;
//! - a directory over a directory changes its metadata; anything else replaces what was there, and hides what is below;
//! - a whiteout hides only what the layers below have; what this layer itself brings stays, whichever comes first;
//! - a parent that the layer leaves out takes the metadata that it has below, or is 0755 root:root;
//! - a hard link to a file below takes a copy of it into this layer, under both names, as `link(2)` on an overlay would.

mod links;

use std::collections::BTreeMap;

use super::{
    ConvertError,
    journal::{Journal, What},
    stage::place,
};
use crate::{
    erofs::{InodeRef, Meta, format::S_IFDIR, xattr::Xattrs},
    merged::{self, LinkedNames, Merged, components},
};

/// As many symbolic links as Linux follows.
const MAX_LINKS: u32 = 40;
/// Steps that all resolutions of a layer may take: links that point to links are how archives burn our time.
const MAX_STEPS: u64 = 50_000_000;

pub(super) type Id = u32;
pub(super) const ROOT: Id = 0;

/// A name of this layer.
#[derive(Debug)]
pub(super) enum Node {
    Dir(DirNode),
    /// A leaf that is laid out, with its `d_type`.
    Leaf(InodeRef, u8),
    Symlink(InodeRef, Vec<u8>),
    /// A file of a layer below, to be copied here. Equal numbers are the same inode.
    Copy(u32),
    /// The name is gone.
    Whiteout,
    /// Replaced by something else; no longer reachable.
    Gone,
}

/// A directory of this layer.
#[derive(Debug)]
pub(super) struct DirNode {
    pub(super) parent: Id,
    pub(super) meta: Meta,
    /// Named by the archive itself, not only passed through.
    named: bool,
    /// What shows through from below.
    pub(super) below: Option<merged::Dir>,
    /// Something below has this name and must not show through.
    pub(super) opaque: bool,
}

/// The layer's names, resolved.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    lower: &'a Merged,
    nodes: Vec<Node>,
    children: BTreeMap<(Id, Box<[u8]>), Id>,
    /// Leaves below that get a copy.
    pub(super) copies: Vec<merged::Leaf>,
    /// Names of files below that have several, by layer and inode; made when first needed.
    names_below: Option<LinkedNames>,
    steps: u64,
    /// The last parent that was looked up, while nothing happened that could move it.
    last_parent: Option<(Vec<u8>, Id)>,
}

impl<'a> Tree<'a> {
    /// Replays the journal over the layers below.
    pub(super) fn build(journal: &Journal, lower: &'a Merged) -> Result<Self, ConvertError> {
        let below = lower.root().map_err(ConvertError::Lower)?;
        let meta = match &below {
            Some(dir) => meta_below(lower, dir)?,
            None => plain_dir(),
        };
        let root = DirNode { parent: ROOT, meta, named: true, below, opaque: false };
        let mut tree = Self {
            lower,
            nodes: vec![Node::Dir(root)],
            children: BTreeMap::new(),
            copies: Vec::new(),
            names_below: None,
            steps: 0,
            last_parent: None,
        };
        for (path, what) in journal.steps() {
            tree.apply(journal, path, what)?;
        }
        Ok(tree)
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    /// Names and nodes of a directory, sorted.
    pub(super) fn children(&self, dir: Id) -> impl Iterator<Item = (&[u8], Id)> {
        let from = (dir, Box::<[u8]>::default());
        self.children.range(from..).take_while(move |((d, _), _)| *d == dir).map(|((_, name), id)| (&**name, *id))
    }

    fn apply(&mut self, journal: &Journal, path: &[u8], what: What) -> Result<(), ConvertError> {
        if path.is_empty() {
            match what {
                What::Dir(meta) => self.describe(ROOT, journal.dir(meta)),
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
            What::Dir(meta) => self.put_dir(parent, name, journal.dir(meta)),
            What::Leaf(inode, kind) => {
                self.put(parent, name, Node::Leaf(inode, kind));
                Ok(())
            }
            What::Symlink(inode, target) => {
                self.put(parent, name, Node::Symlink(inode, journal.bytes(target).to_vec()));
                Ok(())
            }
            What::Link(target) => self.link(parent, name, path, journal.bytes(target)),
            What::Whiteout => self.whiteout(parent, name),
            What::Opaque => Ok(()),
        }
    }

    pub(super) fn child(&self, dir: Id, name: &[u8]) -> Option<Id> {
        self.children.get(&(dir, name.into())).copied()
    }

    fn add(&mut self, dir: Id, name: &[u8], node: Node) -> Id {
        let id = self.nodes.len() as Id;
        self.nodes.push(node);
        self.children.insert((dir, name.into()), id);
        id
    }

    fn below(&self, dir: Id, name: &[u8]) -> Result<Option<merged::Node>, ConvertError> {
        match self.node(dir) {
            Node::Dir(DirNode { below: Some(below), .. }) => {
                self.lower.lookup(below, name).map_err(ConvertError::Lower)
            }
            _ => Ok(None),
        }
    }

    /// The directory of that path, followed through links, made where it is missing.
    fn resolve_dir(&mut self, path: &[u8]) -> Result<Id, ConvertError> {
        if let Some((last, id)) = &self.last_parent
            && last == path
        {
            return Ok(*id);
        }
        let mut todo = components(path);
        let mut dir = ROOT;
        let mut links = 0;
        while let Some(name) = todo.pop() {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(ConvertError::Limit { what: "steps through directories", limit: MAX_STEPS });
            }
            if name == b".." {
                if let Node::Dir(d) = self.node(dir) {
                    dir = d.parent;
                }
                continue;
            }
            match self.enter(dir, &name)? {
                Step::Dir(next) => dir = next,
                Step::Blocked => return Err(place(path, "a parent is not a directory")),
                Step::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(place(path, "too many symbolic links"));
                    }
                    if target.starts_with(b"/") {
                        dir = ROOT;
                    }
                    todo.extend(components(&target));
                    if todo.len() > 4096 {
                        return Err(place(path, "symbolic links make too long a path"));
                    }
                }
            }
        }
        self.last_parent = Some((path.to_vec(), dir));
        Ok(dir)
    }

    fn enter(&mut self, dir: Id, name: &[u8]) -> Result<Step, ConvertError> {
        if name.len() > 255 {
            return Err(place(name, "component longer than 255 bytes"));
        }
        let fresh = |opaque| Node::Dir(DirNode { parent: dir, meta: plain_dir(), named: true, below: None, opaque });
        if let Some(id) = self.child(dir, name) {
            return Ok(match self.node(id) {
                Node::Dir(_) => Step::Dir(id),
                Node::Symlink(_, target) => Step::Link(target.clone()),
                Node::Leaf(..) => Step::Blocked,
                Node::Copy(copy) => {
                    let leaf = &self.copies[*copy as usize];
                    if leaf.inode.is_symlink() {
                        Step::Link(self.lower.readlink(leaf).map_err(ConvertError::Lower)?)
                    } else {
                        Step::Blocked
                    }
                }
                Node::Whiteout | Node::Gone => {
                    let opaque = matches!(self.below(dir, name)?, Some(merged::Node::Dir(_)));
                    Step::Dir(self.add(dir, name, fresh(opaque)))
                }
            });
        }
        Ok(match self.below(dir, name)? {
            None => Step::Dir(self.add(dir, name, fresh(false))),
            Some(merged::Node::Dir(below)) => {
                let meta = meta_below(self.lower, &below)?;
                let node = DirNode { parent: dir, meta, named: false, below: Some(below), opaque: false };
                Step::Dir(self.add(dir, name, Node::Dir(node)))
            }
            Some(merged::Node::Leaf(leaf)) if leaf.inode.is_symlink() => {
                Step::Link(self.lower.readlink(&leaf).map_err(ConvertError::Lower)?)
            }
            Some(merged::Node::Leaf(_)) => Step::Blocked,
        })
    }

    /// Sets a directory's metadata; attributes are added to those that are there, as `setxattr` would.
    fn describe(&mut self, dir: Id, meta: &Meta) {
        if let Node::Dir(node) = &mut self.nodes[dir as usize] {
            let mut xattrs: Xattrs = std::mem::take(&mut node.meta.xattrs);
            xattrs.extend(meta.xattrs.clone());
            node.meta = Meta { xattrs, ..meta.clone() };
            node.named = true;
        }
    }

    fn put_dir(&mut self, parent: Id, name: &[u8], meta: &Meta) -> Result<(), ConvertError> {
        let there = self.child(parent, name);
        if let Some(id) = there
            && let Node::Dir(_) = self.node(id)
        {
            self.describe(id, meta);
            return Ok(());
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
        let mut node = DirNode { parent, meta: meta.clone(), named: true, below, opaque };
        if let Some(below) = &node.below {
            let mut xattrs = meta_below(self.lower, below)?.xattrs;
            xattrs.extend(std::mem::take(&mut node.meta.xattrs));
            node.meta.xattrs = xattrs;
        }
        self.put(parent, name, Node::Dir(node));
        Ok(())
    }

    fn put(&mut self, parent: Id, name: &[u8], node: Node) {
        if let Some(id) = self.child(parent, name) {
            self.discard(id);
            self.last_parent = None;
        }
        self.add(parent, name, node);
    }

    /// Takes a node and all below it out of the tree.
    fn discard(&mut self, id: Id) {
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            let node = std::mem::replace(&mut self.nodes[id as usize], Node::Gone);
            if let Node::Dir(_) = node {
                let names: Vec<(Box<[u8]>, Id)> = self.children(id).map(|(n, c)| (n.into(), c)).collect();
                for (name, child) in names {
                    self.children.remove(&(id, name));
                    todo.push(child);
                }
            }
        }
    }

    fn whiteout(&mut self, parent: Id, name: &[u8]) -> Result<(), ConvertError> {
        self.last_parent = None;
        let Some(id) = self.child(parent, name) else {
            if self.below(parent, name)?.is_some() {
                self.add(parent, name, Node::Whiteout);
            }
            return Ok(());
        };
        if let Node::Dir(dir) = self.node(id)
            && dir.below.is_some()
        {
            if self.brings_something(id) {
                self.make_opaque(id);
            } else {
                self.put(parent, name, Node::Whiteout);
            }
        }
        Ok(())
    }

    /// Whether the archive names this directory or anything in it, whiteouts apart.
    fn brings_something(&self, dir: Id) -> bool {
        let mut todo = vec![dir];
        while let Some(id) = todo.pop() {
            match self.node(id) {
                Node::Dir(dir) if dir.named => return true,
                Node::Dir(_) => todo.extend(self.children(id).map(|(_, child)| child)),
                Node::Whiteout | Node::Gone => {}
                Node::Leaf(..) | Node::Symlink(..) | Node::Copy(_) => return true,
            }
        }
        false
    }

    /// Cuts a directory, and those in it, off from below.
    fn make_opaque(&mut self, dir: Id) {
        self.last_parent = None;
        if let Node::Dir(node) = &mut self.nodes[dir as usize]
            && node.below.take().is_some()
        {
            node.opaque = true;
            let mut todo: Vec<(Id, Box<[u8]>, Id)> =
                self.children(dir).map(|(name, id)| (dir, name.into(), id)).collect();
            while let Some((parent, name, id)) = todo.pop() {
                match &mut self.nodes[id as usize] {
                    Node::Dir(node) => {
                        node.below = None;
                        // The directory above hides everything already.
                        node.opaque = false;
                        todo.extend(self.children(id).map(|(name, child)| (id, name.into(), child)));
                    }
                    Node::Whiteout => {
                        self.nodes[id as usize] = Node::Gone;
                        self.children.remove(&(parent, name));
                    }
                    _ => {}
                }
            }
        }
    }
}

enum Step {
    Dir(Id),
    Link(Vec<u8>),
    Blocked,
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(i) => (&path[..i], &path[i + 1..]),
        None => (b"", path),
    }
}

/// A directory that nobody described.
fn plain_dir() -> Meta {
    Meta { mode: S_IFDIR | 0o755, uid: 0, gid: 0, mtime: 0, mtime_nsec: 0, xattrs: Xattrs::new() }
}

fn meta_below(lower: &Merged, dir: &merged::Dir) -> Result<Meta, ConvertError> {
    lower.meta(dir.layer(), dir.inode()).map_err(ConvertError::Lower)
}

#[cfg(test)]
mod tests;
