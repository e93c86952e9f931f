//! Which directory a path means: links are followed, what is missing is made.

use super::{DirNode, Id, NONE, Node, ROOT, Tree};
use crate::{
    convert::{ConvertError, stage::place},
    merged::{self, components},
};

/// As many symbolic links as Linux follows.
const MAX_LINKS: u32 = 40;
/// Steps that all resolutions of a layer may take: links that point to links are how archives burn our time.
const MAX_STEPS: u64 = 50_000_000;
/// What a component leads to.
pub(super) enum Step {
    Dir(Id),
    Link(Vec<u8>),
    Blocked,
}

impl Tree<'_> {
    /// The directory of that path, followed through links, made where it is missing.
    pub(super) fn resolve_dir(&mut self, path: &[u8]) -> Result<Id, ConvertError> {
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
                dir = self.nodes[dir as usize].dir;
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

    pub(super) fn enter(&mut self, dir: Id, name: &[u8]) -> Result<Step, ConvertError> {
        if name.len() > 255 {
            return Err(place(name, "component longer than 255 bytes"));
        }
        if let Some(id) = self.child(dir, name) {
            return Ok(match self.node(id) {
                Node::Dir(_) => Step::Dir(id),
                Node::Symlink(link) => Step::Link(self.names.bytes(self.symlinks[link as usize].1).to_vec()),
                Node::Leaf(..) => Step::Blocked,
                Node::Copy(copy) => {
                    let leaf = &self.copies[copy as usize];
                    if leaf.inode.is_symlink() {
                        Step::Link(self.lower.readlink(leaf).map_err(ConvertError::Lower)?)
                    } else {
                        Step::Blocked
                    }
                }
                Node::Whiteout | Node::Gone => {
                    let opaque = matches!(self.below(dir, name)?, Some(merged::Node::Dir(_)));
                    // In its place, so that the directory has the name once.
                    self.nodes[id as usize].node = Node::Gone;
                    Step::Dir(self.add_fresh(dir, name, opaque)?)
                }
            });
        }
        Ok(match self.below(dir, name)? {
            None => Step::Dir(self.add_fresh(dir, name, false)?),
            Some(merged::Node::Dir(below)) => {
                let meta = self.meta_below(&below)?;
                let below = Some(Box::new(below));
                Step::Dir(self.add_dir(dir, name, DirNode { meta, below, first: NONE, named: false, opaque: false })?)
            }
            Some(merged::Node::Leaf(leaf)) if leaf.inode.is_symlink() => {
                Step::Link(self.lower.readlink(&leaf).map_err(ConvertError::Lower)?)
            }
            Some(merged::Node::Leaf(_)) => Step::Blocked,
        })
    }

    fn add_fresh(&mut self, dir: Id, name: &[u8], opaque: bool) -> Result<Id, ConvertError> {
        let meta = self.plain_dir();
        self.add_dir(dir, name, DirNode { meta, below: None, first: NONE, named: true, opaque })
    }
}
