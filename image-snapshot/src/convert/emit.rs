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
        let Self { mut writer, journal } = self;
        let entries = journal.len() as u64;
        let tree = Tree::build(&journal, lower)?;
        drop(journal);
        let copies = tree.copies.iter().map(|leaf| copy_up(&mut writer, lower, leaf)).collect::<Result<Vec<_>, _>>()?;
        let mut plan = Plan { tree: &tree, lower, copies, whiteout: None, links: BTreeMap::new(), dirs: Vec::new() };
        plan.collect(&mut writer)?;
        let content = writer.content();
        let links: Vec<(InodeRef, u32)> = plan.links.iter().filter(|(_, n)| **n > 1).map(|(i, n)| (*i, *n)).collect();
        let dirs: Vec<DirPlan<'_>> = plan
            .dirs
            .iter()
            .map(|dir| DirPlan {
                meta: &dir.meta,
                nlink: dir.nlink,
                entries: dir.entries.iter().map(|(name, target, kind)| (&**name, *target, *kind)).collect(),
            })
            .collect();
        let (bytes, digest): (u64, FileDigest) = writer.finish(&dirs, &links).map_err(ConvertError::Write)?;
        Ok(Converted { bytes, digest, entries, content })
    }
}

/// A directory on its way to the writer.
struct Listed {
    meta: Meta,
    nlink: u32,
    entries: Vec<(Vec<u8>, Target, u8)>,
}

struct Plan<'a> {
    tree: &'a Tree<'a>,
    lower: &'a Merged,
    /// The inodes of [`Tree::copies`].
    copies: Vec<(InodeRef, u8)>,
    /// One inode serves all whiteouts.
    whiteout: Option<InodeRef>,
    links: BTreeMap<InodeRef, u32>,
    dirs: Vec<Listed>,
}

impl Plan<'_> {
    /// Breadth first from the root, so that a directory's number is known before its entries are.
    fn collect(&mut self, writer: &mut Writer) -> Result<(), ConvertError> {
        let mut queue: Vec<(Id, u32, bool)> = vec![(ROOT, 0, false)];
        let mut next = 0;
        while let Some((id, parent, force_opaque)) = queue.get(next).copied() {
            let index = next as u32;
            next += 1;
            let Node::Dir(dir) = self.tree.node(id) else { continue };
            let mut meta = dir.meta.clone();
            if (dir.opaque && id != ROOT) || force_opaque {
                meta.xattrs.insert(xattr::OPAQUE.to_vec(), b"y".to_vec());
            }
            if id == ROOT && xattr::encode(&meta.xattrs).len() > BLOCK - ROOT_OFFSET - 64 {
                return Err(place(b"/", "extended attributes of the root are too large"));
            }
            let mut list = Listed { meta, nlink: 2, entries: Vec::new() };
            list.entries.push((b".".to_vec(), Target::Dir(index), 2));
            list.entries.push((b"..".to_vec(), Target::Dir(parent), 2));
            // An overlay does not honour an opaque root: hide what is below name by name.
            let hidden = if id == ROOT && dir.opaque { self.root_below()? } else { BTreeMap::new() };
            for (name, child) in self.tree.children(id) {
                let (target, kind) = match self.tree.node(child) {
                    Node::Dir(_) => {
                        queue.push((child, index, hidden.get(name).copied().unwrap_or(false)));
                        list.nlink += 1;
                        (Target::Dir(queue.len() as u32 - 1), 2)
                    }
                    Node::Leaf(inode, kind) => (self.leaf(*inode), *kind),
                    Node::Symlink(inode, _) => (self.leaf(*inode), 7),
                    Node::Copy(copy) => {
                        let (inode, kind) = self.copies[*copy as usize];
                        (self.leaf(inode), kind)
                    }
                    Node::Whiteout => (self.white(writer)?, file_type(S_IFCHR)),
                    Node::Gone => continue,
                };
                list.entries.push((name.to_vec(), target, kind));
            }
            for name in hidden.into_keys() {
                if self.tree.child(id, &name).is_some() {
                    continue;
                }
                let target = self.white(writer)?;
                list.entries.push((name, target, file_type(S_IFCHR)));
            }
            list.entries.sort_by(|a, b| a.0.cmp(&b.0));
            self.dirs.push(list);
        }
        Ok(())
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

    fn leaf(&mut self, inode: InodeRef) -> Target {
        *self.links.entry(inode).or_insert(0) += 1;
        Target::Leaf(inode)
    }

    fn white(&mut self, writer: &mut Writer) -> Result<Target, ConvertError> {
        let inode = match self.whiteout {
            Some(inode) => inode,
            None => {
                let meta = Meta { mode: S_IFCHR, uid: 0, gid: 0, mtime: 0, mtime_nsec: 0, xattrs: Xattrs::new() };
                *self.whiteout.insert(writer.leaf(&meta, &Body::None { rdev: 0 }).map_err(ConvertError::Write)?)
            }
        };
        Ok(self.leaf(inode))
    }
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
