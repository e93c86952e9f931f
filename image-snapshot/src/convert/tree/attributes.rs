//! What directories are: metadata and extended attributes, of this layer's entries and of the layers below.

use super::{DirNode, Id, Tree};
use crate::{
    convert::{
        ConvertError, Limits,
        journal::{Described, SetId},
    },
    erofs::{Meta, format::S_IFDIR, xattr::Xattrs},
    merged,
};

/// Bytes of the attributes that directories have from several entries, or from layers below too, at most.
const MOST_UNITED: usize = 16 << 20;

impl Tree<'_> {
    /// A directory's metadata as the writer wants it.
    pub(in crate::convert) fn meta(&self, dir: &DirNode) -> Meta {
        let Described { mode, uid, gid, mtime, mtime_nsec, xattrs } = dir.meta;
        Meta { mode, uid, gid, mtime, mtime_nsec, xattrs: self.sets.get(xattrs).clone() }
    }

    pub(super) fn meta_below(&mut self, dir: &merged::Dir) -> Result<Described, ConvertError> {
        let meta = self.lower.meta(dir.layer(), dir.inode()).map_err(ConvertError::Lower)?;
        let Meta { mode, uid, gid, mtime, mtime_nsec, xattrs } = meta;
        Ok(Described { mode, uid, gid, mtime, mtime_nsec, xattrs: self.sets.keep(&xattrs).0 })
    }

    /// A directory that nobody described.
    pub(super) fn plain_dir(&mut self) -> Described {
        let (xattrs, _) = self.sets.keep(&Xattrs::new());
        Described { mode: S_IFDIR | 0o755, uid: 0, gid: 0, mtime: 0, mtime_nsec: 0, xattrs }
    }

    /// Sets a directory's metadata; attributes are added to those that are there, as `setxattr` would.
    pub(super) fn describe(&mut self, id: Id, meta: Described) -> Result<(), ConvertError> {
        if let Some(xattrs) = self.dir(id).map(|dir| dir.meta.xattrs) {
            let xattrs = self.union(xattrs, meta.xattrs)?;
            if let Some(dir) = self.dir_mut(id) {
                dir.meta = Described { xattrs, ..meta };
                dir.named = true;
            }
        }
        Ok(())
    }

    /// Both sets of attributes, the second's values where both have one: no more of one directory than of one entry, and no
    /// more of all than [`MOST_UNITED`], however often an archive names a directory.
    pub(super) fn union(&mut self, first: SetId, second: SetId) -> Result<SetId, ConvertError> {
        let what = "bytes of extended attributes";
        let mut all = self.sets.get(first).clone();
        all.extend(self.sets.get(second).clone());
        let limit = Limits::default().xattr_bytes;
        if all.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > limit {
            return Err(ConvertError::Limit { what, limit: limit as u64 });
        }
        let (set, bytes) = self.sets.keep(&all);
        self.united += bytes;
        if self.united > MOST_UNITED {
            return Err(ConvertError::Limit { what, limit: MOST_UNITED as u64 });
        }
        Ok(set)
    }
}
