//! What this layer hides of those below: whiteouts and opaque directories.

use super::{Id, Node, Tree};
use crate::convert::ConvertError;

impl Tree<'_> {
    pub(super) fn whiteout(&mut self, parent: Id, name: &[u8]) -> Result<(), ConvertError> {
        self.last_parent = None;
        let Some(id) = self.child(parent, name) else {
            if self.below(parent, name)?.is_some() {
                self.add(parent, name, Node::Whiteout)?;
            }
            return Ok(());
        };
        if self.dir(id).is_some_and(|dir| dir.below.is_some()) {
            if self.brings_something(id) {
                self.make_opaque(id);
            } else {
                self.put(parent, name, Node::Whiteout)?;
            }
        }
        Ok(())
    }

    /// Whether the archive names this directory or anything in it, whiteouts apart.
    fn brings_something(&self, dir: Id) -> bool {
        let mut todo = vec![dir];
        while let Some(id) = todo.pop() {
            match self.node(id) {
                Node::Dir(dir) if self.dirs[dir as usize].named => return true,
                Node::Dir(_) => todo.extend(self.children(id)),
                Node::Whiteout | Node::Gone => {}
                Node::Leaf(..) | Node::Symlink(_) | Node::Copy(_) => return true,
            }
        }
        false
    }

    /// Cuts a directory, and those in it, off from below.
    pub(super) fn make_opaque(&mut self, id: Id) {
        self.last_parent = None;
        let Some(dir) = self.dir_mut(id) else { return };
        if dir.below.take().is_none() {
            return;
        }
        dir.opaque = true;
        let mut todo: Vec<Id> = self.children(id).collect();
        while let Some(id) = todo.pop() {
            if let Some(dir) = self.dir_mut(id) {
                dir.below = None;
                // The directory above hides everything already.
                dir.opaque = false;
                todo.extend(self.children(id));
            } else if let Node::Whiteout = self.node(id) {
                self.nodes[id as usize].node = Node::Gone;
            }
        }
    }
}
