//! Second half of a conversion, the writing part: copies from below, whiteouts, directories.

use std::collections::BTreeMap;

use super::{
    ConvertError, Converted,
    stage::{Staged, place},
    tree::{Id, Node, ROOT, Tree},
};
use crate::{
    erofs::{
        Body, DirPlan, FileDigest, InodeRef, Meta, Target, Writer,
        format::{BLOCK, ROOT_OFFSET, S_IFCHR, S_IFMT, S_IFREG, file_type},
        xattr::{self, Xattrs},
    },
    merged::{self, Merged},
};

impl Staged {
    /// Resolves the layer over those below (lowest first) and completes its file.
    pub(crate) fn finish(self, lower: &Merged) -> Result<Converted, ConvertError> {
        let Self { mut writer, journal, bounds } = self;
        let entries = journal.len();
        let tree = Tree::build(journal, lower, bounds, writer.content())?;
        let copies = tree.copies.iter().map(|leaf| copy_up(&mut writer, lower, leaf)).collect::<Result<Vec<_>, _>>()?;
        let mut plan = Plan {
            tree: &tree,
            lower,
            copies,
            whiteout: None,
            hidden: Vec::new(),
            dirs: Vec::new(),
            leaves: Vec::new(),
        };
        plan.collect(&mut writer)?;
        let content = writer.content();
        let mut leaves = std::mem::take(&mut plan.leaves);
        leaves.sort_unstable();
        let links = leaves.chunk_by(|a, b| a == b).filter(|c| c.len() > 1).map(|c| (c[0], c.len() as u32));
        let count = plan.dirs.len() as u32;
        let (bytes, digest): (u64, FileDigest) =
            writer.finish(count, |index| plan.dir(index), links).map_err(ConvertError::Write)?;
        Ok(Converted { bytes, digest, entries, content })
    }
}

/// A directory on its way to the writer.
struct Listed {
    id: Id,
    /// Index of the directory that it is in.
    parent: u32,
    /// Index of the first of its directories; the others follow, by name.
    first_dir: u32,
    /// How many those are.
    dirs: u32,
    /// Hides what is below, whatever its node says.
    force_opaque: bool,
}

struct Plan<'a> {
    tree: &'a Tree<'a>,
    lower: &'a Merged,
    /// The inodes of [`Tree::copies`].
    copies: Vec<(InodeRef, u8)>,
    /// One inode serves all whiteouts.
    whiteout: Option<InodeRef>,
    /// What is hidden name by name, as an overlay does not honour an opaque root: names below that this layer does not have.
    hidden: Vec<Vec<u8>>,
    /// Breadth first from the root.
    dirs: Vec<Listed>,
    /// Each leaf that may have several names, as often as it has names.
    leaves: Vec<InodeRef>,
}

impl Plan<'_> {
    /// Numbers the directories, so that a directory's number is known before its entries are written, and counts links.
    fn collect(&mut self, writer: &mut Writer) -> Result<(), ConvertError> {
        let tree = self.tree;
        if let Some(root) = tree.dir(ROOT)
            && xattr::encode(&tree.meta(root).xattrs).len() > BLOCK - ROOT_OFFSET - 64
        {
            return Err(place(b"/", "extended attributes of the root are too large"));
        }
        // What the layers below have in the root, if that is opaque, and whether it is a directory.
        let is_opaque = tree.dir(ROOT).is_some_and(|root| root.opaque);
        let mut below_root = if is_opaque { self.root_below()? } else { BTreeMap::new() };
        self.dirs.push(Listed { id: ROOT, parent: 0, first_dir: 0, dirs: 0, force_opaque: false });
        let mut next = 0;
        while next < self.dirs.len() {
            let id = self.dirs[next].id;
            let first_dir = self.dirs.len() as u32;
            for child in tree.sorted(id) {
                let hides_dir = id == ROOT && below_root.remove(tree.name(child)) == Some(true);
                match tree.node(child) {
                    Node::Dir(_) => {
                        let force_opaque = hides_dir;
                        let parent = next as u32;
                        self.dirs.push(Listed { id: child, parent, first_dir: 0, dirs: 0, force_opaque });
                    }
                    node => {
                        if let Node::Whiteout = node {
                            self.white(writer)?;
                        }
                        if tree.may_be_linked(node) {
                            self.leaves.extend(self.leaf(node).map(|(inode, _)| inode));
                        }
                    }
                }
            }
            if id == ROOT {
                self.hidden = std::mem::take(&mut below_root).into_keys().collect();
                for _ in 0..self.hidden.len() {
                    let inode = self.white(writer)?;
                    self.leaves.push(inode);
                }
            }
            let dirs = self.dirs.len() as u32 - first_dir;
            self.dirs[next] = Listed { first_dir, dirs, ..self.dirs[next] };
            next += 1;
        }
        Ok(())
    }

    /// A directory as the writer wants it.
    fn dir(&self, index: u32) -> DirPlan<'_> {
        let listed = &self.dirs[index as usize];
        let mut meta = match self.tree.dir(listed.id) {
            Some(dir) => self.tree.meta(dir),
            // Only directories are listed.
            None => Meta { mode: 0, uid: 0, gid: 0, mtime: 0, mtime_nsec: 0, xattrs: Xattrs::new() },
        };
        let opaque = self.tree.dir(listed.id).is_some_and(|dir| dir.opaque && listed.id != ROOT);
        if opaque || listed.force_opaque {
            meta.xattrs.insert(xattr::OPAQUE.to_vec(), b"y".to_vec());
        }
        let mut next_dir = listed.first_dir;
        let children = self.tree.sorted(listed.id).into_iter().filter_map(move |child| {
            let (target, kind) = match self.tree.node(child) {
                Node::Dir(_) => {
                    next_dir += 1;
                    (Target::Dir(next_dir - 1), 2)
                }
                node => self.leaf(node).map(|(inode, kind)| (Target::Leaf(inode), kind))?,
            };
            Some((self.tree.name(child), target, kind))
        });
        let own = [(&b"."[..], Target::Dir(index), 2), (&b".."[..], Target::Dir(listed.parent), 2)];
        let nlink = 2 + listed.dirs;
        let mut few: Vec<_> = own.into_iter().collect();
        if listed.id == ROOT {
            let white = |name| Some((name, Target::Leaf(self.whiteout?), file_type(S_IFCHR)));
            few.extend(self.hidden.iter().filter_map(|name| white(&**name)));
        }
        few.sort_by(|a, b| a.0.cmp(b.0));
        DirPlan { meta, nlink, entries: Box::new(merge(few.into_iter().peekable(), children.peekable())) }
    }

    /// The inode of anything but a directory, and its `d_type`.
    fn leaf(&self, node: Node) -> Option<(InodeRef, u8)> {
        match node {
            Node::Leaf(inode, kind) => Some((inode, kind)),
            Node::Symlink(link) => Some((self.tree.symlink(link), 7)),
            Node::Copy(copy) => Some(self.copies[copy as usize]),
            Node::Whiteout => Some((self.whiteout?, file_type(S_IFCHR))),
            Node::Dir(_) | Node::Gone => None,
        }
    }

    /// What the layers below have in their root, and whether it is a directory.
    fn root_below(&self) -> Result<BTreeMap<Vec<u8>, bool>, ConvertError> {
        let Some(root) = self.lower.root().map_err(ConvertError::Lower)? else {
            return Ok(BTreeMap::new());
        };
        let mut out = BTreeMap::new();
        for name in self.lower.names(&root).map_err(ConvertError::Lower)? {
            let node = self.lower.lookup(&root, &name).map_err(ConvertError::Lower)?;
            out.insert(name, matches!(node, Some(merged::Node::Dir(_))));
        }
        Ok(out)
    }

    /// Makes the inode of all whiteouts, once.
    fn white(&mut self, writer: &mut Writer) -> Result<InodeRef, ConvertError> {
        Ok(match self.whiteout {
            Some(inode) => inode,
            None => {
                let meta = Meta { mode: S_IFCHR, uid: 0, gid: 0, mtime: 0, mtime_nsec: 0, xattrs: Xattrs::new() };
                *self.whiteout.insert(writer.leaf(&meta, &Body::None { rdev: 0 }).map_err(ConvertError::Write)?)
            }
        })
    }
}

type Entry<'a> = (&'a [u8], Target, u8);

/// Two sorted lists as one.
fn merge<'a>(
    mut a: std::iter::Peekable<impl Iterator<Item = Entry<'a>>>,
    mut b: std::iter::Peekable<impl Iterator<Item = Entry<'a>>>,
) -> impl Iterator<Item = Entry<'a>> {
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(left), Some(right)) if left.0 > right.0 => b.next(),
        (Some(_), _) => a.next(),
        (None, _) => b.next(),
    })
}

/// Lays out a file of a layer below once more, in this one.
fn copy_up(writer: &mut Writer, lower: &Merged, leaf: &merged::Leaf) -> Result<(InodeRef, u8), ConvertError> {
    let inode = &leaf.inode;
    let layer = lower.layer(leaf.layer);
    let meta = lower.meta(leaf.layer, inode).map_err(ConvertError::Lower)?;
    let kind = file_type(inode.mode);
    if inode.mode & S_IFMT != S_IFREG && !inode.is_symlink() {
        let body = Body::None { rdev: inode.rdev };
        return Ok((writer.leaf(&meta, &body).map_err(ConvertError::Write)?, kind));
    }
    let start = writer.position();
    let whole = inode.size - inode.size % BLOCK as u64;
    let mut at = 0;
    writer.stream_with(whole, |buf| {
        layer.read_at(inode, buf, at).map_err(ConvertError::Lower)?;
        at += buf.len() as u64;
        Ok(())
    })?;
    let mut tail = vec![0; (inode.size - whole) as usize];
    layer.read_at(inode, &mut tail, whole).map_err(ConvertError::Lower)?;
    let body = Body::Streamed { start, size: inode.size, tail: &tail };
    Ok((writer.leaf(&meta, &body).map_err(ConvertError::Write)?, kind))
}
