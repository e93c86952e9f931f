//! Hard links, also to files of the layers below.

use super::{Id, Node, ROOT, Tree, resolve::Step, split};
use crate::{
    convert::{ConvertError, stage::place},
    merged,
};

impl Tree<'_> {
    pub(super) fn link(&mut self, parent: Id, name: &[u8], path: &[u8], target: &[u8]) -> Result<(), ConvertError> {
        let (target_parent, target_name) = split(target);
        let target_dir = self.resolve_dir(target_parent)?;
        let copy = match self.child(target_dir, target_name).map(|id| self.node(id)) {
            Some(same @ Node::Leaf(inode, _)) => {
                self.linked.push(inode);
                same
            }
            Some(same @ Node::Symlink(link)) => {
                self.linked.push(self.symlink(link));
                same
            }
            Some(same @ Node::Copy(_)) => same,
            Some(Node::Dir(_)) => return Err(place(path, "hard link to a directory")),
            Some(Node::Whiteout | Node::Gone) => return Err(place(path, "hard link to a missing file")),
            None => match self.below(target_dir, target_name)? {
                Some(merged::Node::Leaf(leaf)) => {
                    let many = leaf.inode.nlink > 1;
                    let (layer, nid) = (leaf.layer, leaf.inode.nid);
                    let copy = self.copy(leaf)?;
                    self.add(target_dir, target_name, Node::Copy(copy))?;
                    if many {
                        self.copy_other_names(layer, nid, copy)?;
                    }
                    Node::Copy(copy)
                }
                Some(merged::Node::Dir(_)) => return Err(place(path, "hard link to a directory")),
                None => return Err(place(path, "hard link to a missing file")),
            },
        };
        // A link to itself changes nothing (and must not remove what it is to keep).
        if (target_dir, target_name) != (parent, name) {
            self.put(parent, name, copy)?;
        }
        Ok(())
    }

    /// Has a file of a layer below copied: once, as its names are the copy's from then on.
    fn copy(&mut self, leaf: merged::Leaf) -> Result<u32, ConvertError> {
        let limit = self.bounds.bytes;
        self.content = self.content.saturating_add(leaf.inode.size);
        if self.content > limit {
            return Err(ConvertError::Limit { what: "uncompressed bytes, with files below that it links to", limit });
        }
        self.copies.push(leaf);
        Ok(self.copies.len() as u32 - 1)
    }

    /// The file that is copied has more names below: they must go on naming the same file.
    fn copy_other_names(&mut self, layer: usize, nid: u64, copy: u32) -> Result<(), ConvertError> {
        if self.names_below.is_none() {
            self.names_below = Some(self.lower.linked_names().map_err(ConvertError::Lower)?);
        }
        let paths = self.names_below.as_ref().and_then(|names| names.get(&(layer, nid)).cloned());
        for path in paths.unwrap_or_default() {
            let (parent, name) = split(&path);
            // These names hold no links: they come from a walk of what is below. Where this layer has put something else, they are gone.
            if let Some(dir) = self.still_below(parent)?
                && self.child(dir, name).is_none()
                && self.below(dir, name)?.is_some()
            {
                self.add(dir, name, Node::Copy(copy))?;
            }
        }
        Ok(())
    }

    /// The directory of that link-free path, if it still shows what is below.
    fn still_below(&mut self, path: &[u8]) -> Result<Option<Id>, ConvertError> {
        let mut dir = ROOT;
        for name in path.split(|b| *b == b'/').filter(|c| !c.is_empty()) {
            let shows = match self.child(dir, name) {
                Some(id) => self.dir(id).is_some_and(|d| d.below.is_some()),
                None => matches!(self.below(dir, name)?, Some(merged::Node::Dir(_))),
            };
            if !shows {
                return Ok(None);
            }
            match self.enter(dir, name)? {
                Step::Dir(next) => dir = next,
                Step::Link(_) | Step::Blocked => return Ok(None),
            }
        }
        Ok(Some(dir))
    }
}
