//! What an overlay of layers shows, without mounting it.

use crate::{
    erofs::{ErofsFile, Inode, Meta, ReadError, xattr},
    image::RootfsError,
};

/// As many symbolic links as Linux follows.
const MAX_LINKS: usize = 40;

/// A stack of layers, seen as an overlay shows them.
#[derive(Debug, Clone)]
pub(crate) struct Merged {
    /// Lowest first.
    layers: Vec<ErofsFile>,
}

/// A directory of the stack: the directories that are merged into it, topmost first. Never empty.
#[derive(Debug, Clone)]
pub(crate) struct Dir {
    parts: Vec<(usize, Inode)>,
}

/// Anything else.
#[derive(Debug, Clone)]
pub(crate) struct Leaf {
    /// Which layer it comes from.
    pub(crate) layer: usize,
    pub(crate) inode: Inode,
}

/// What a name means.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Dir(Dir),
    Leaf(Leaf),
}

/// Paths by layer and inode.
pub(crate) type LinkedNames = std::collections::HashMap<(usize, u64), Vec<Vec<u8>>>;

impl Dir {
    /// The inode whose owner, mode and times show.
    pub(crate) fn inode(&self) -> &Inode {
        &self.parts[0].1
    }

    /// Its layer.
    pub(crate) fn layer(&self) -> usize {
        self.parts[0].0
    }
}

impl Merged {
    /// `layers`: lowest first.
    pub(crate) fn new(layers: Vec<ErofsFile>) -> Self {
        Self { layers }
    }

    pub(crate) fn layer(&self, index: usize) -> &ErofsFile {
        &self.layers[index]
    }

    /// The root directory; `None` without layers.
    pub(crate) fn root(&self) -> Result<Option<Dir>, ReadError> {
        let mut parts = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let inode = layer.inode(layer.root())?;
            if !inode.is_dir() {
                return Err(ReadError::Damaged { nid: inode.nid, problem: "root is not a directory" });
            }
            parts.push((index, inode));
        }
        Ok((!parts.is_empty()).then_some(Dir { parts }))
    }

    /// What `name` means in `dir`.
    pub(crate) fn lookup(&self, dir: &Dir, name: &[u8]) -> Result<Option<Node>, ReadError> {
        let mut parts: Vec<(usize, Inode)> = Vec::new();
        for (index, part) in &dir.parts {
            let layer = &self.layers[*index];
            let Some(entry) = layer.lookup(part, name)? else { continue };
            let inode = layer.inode(entry.nid)?;
            if !inode.is_dir() {
                if parts.is_empty() && !inode.is_whiteout() {
                    return Ok(Some(Node::Leaf(Leaf { layer: *index, inode })));
                }
                break;
            }
            let opaque = self.is_opaque(*index, &inode)?;
            parts.push((*index, inode));
            if opaque {
                break;
            }
        }
        Ok((!parts.is_empty()).then_some(Node::Dir(Dir { parts })))
    }

    fn is_opaque(&self, layer: usize, dir: &Inode) -> Result<bool, ReadError> {
        Ok(self.layers[layer].xattrs(dir)?.get(xattr::OPAQUE).is_some_and(|v| v == b"y"))
    }

    /// Names in a directory, sorted.
    pub(crate) fn names(&self, dir: &Dir) -> Result<Vec<Vec<u8>>, ReadError> {
        let mut seen = std::collections::BTreeMap::new();
        for (index, part) in &dir.parts {
            let layer = &self.layers[*index];
            for entry in layer.entries(part)? {
                if seen.contains_key(&entry.name) {
                    continue;
                }
                let hidden = layer.inode(entry.nid)?.is_whiteout();
                seen.insert(entry.name, !hidden);
            }
        }
        Ok(seen.into_iter().filter_map(|(name, shown)| shown.then_some(name)).collect())
    }

    /// All names, in order, of files that have more than one.
    pub(crate) fn linked_names(&self) -> Result<LinkedNames, ReadError> {
        let mut out = LinkedNames::new();
        let mut todo: Vec<(Vec<u8>, Dir)> = self.root()?.map(|root| (Vec::new(), root)).into_iter().collect();
        while let Some((path, dir)) = todo.pop() {
            for name in self.names(&dir)? {
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                let path = [&path, slash, &name].concat();
                match self.lookup(&dir, &name)? {
                    Some(Node::Dir(dir)) => todo.push((path, dir)),
                    Some(Node::Leaf(leaf)) if leaf.inode.nlink > 1 => {
                        out.entry((leaf.layer, leaf.inode.nid)).or_default().push(path);
                    }
                    Some(Node::Leaf(_)) | None => {}
                }
            }
        }
        Ok(out)
    }

    /// Owner, mode, times and attributes, without the overlay's own mark.
    pub(crate) fn meta(&self, layer: usize, inode: &Inode) -> Result<Meta, ReadError> {
        let mut xattrs = self.layers[layer].xattrs(inode)?;
        xattrs.remove(xattr::OPAQUE);
        Ok(Meta {
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            mtime_nsec: inode.mtime_nsec,
            xattrs,
        })
    }

    /// Target of a symbolic link.
    pub(crate) fn readlink(&self, leaf: &Leaf) -> Result<Vec<u8>, ReadError> {
        let damaged = ReadError::Damaged { nid: leaf.inode.nid, problem: "symbolic link is too long" };
        self.layers[leaf.layer].read_all(&leaf.inode, 4096)?.ok_or(damaged)
    }

    /// See [`Rootfs::read_file`](crate::Rootfs::read_file).
    pub(crate) fn read_file(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, RootfsError> {
        let damaged = |source| RootfsError::Damaged { path: path.to_owned(), source };
        let leaf = match self.walk(path)? {
            None => return Ok(None),
            Some(Node::Leaf(leaf)) if leaf.inode.is_file() => leaf,
            Some(_) => return Err(RootfsError::NotAFile { path: path.to_owned() }),
        };
        match self.layers[leaf.layer].read_all(&leaf.inode, max_bytes).map_err(damaged)? {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(RootfsError::TooLarge { path: path.to_owned(), size: leaf.inode.size, limit: max_bytes }),
        }
    }

    /// Resolves a path, the last component included, within the root.
    pub(crate) fn walk(&self, path: &str) -> Result<Option<Node>, RootfsError> {
        let damaged = |source| RootfsError::Damaged { path: path.to_owned(), source };
        let Some(root) = self.root().map_err(damaged)? else {
            return Ok(None);
        };
        let mut todo: Vec<Vec<u8>> = components(path.as_bytes());
        let mut stack = vec![root];
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let node = match stack.last() {
                Some(dir) => self.lookup(dir, &name).map_err(damaged)?,
                None => None,
            };
            match node {
                None => return Ok(None),
                Some(Node::Dir(dir)) => stack.push(dir),
                Some(Node::Leaf(leaf)) if leaf.inode.is_symlink() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(RootfsError::Loop { path: path.to_owned() });
                    }
                    let target = self.readlink(&leaf).map_err(damaged)?;
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    todo.extend(components(&target));
                }
                Some(leaf) => return Ok(todo.is_empty().then_some(leaf)),
            }
        }
        Ok(stack.pop().map(Node::Dir))
    }
}

/// Components in reverse, so that the next one is popped.
pub(crate) fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|b| *b == b'/').rev();
    parts.filter(|c| !c.is_empty() && *c != b".").map(<[u8]>::to_vec).collect()
}
