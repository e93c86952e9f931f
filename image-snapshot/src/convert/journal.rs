//! What a layer's archive asks for, in its order: leaves are already laid out, places are not resolved yet.

use crate::erofs::{InodeRef, Meta};

/// Bytes in the journal's own buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    at: u32,
    len: u32,
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    /// A file, device or fifo.
    Leaf(InodeRef, u8),
    /// A symbolic link and its target.
    Symlink(InodeRef, Span),
    /// A directory, with the index of its metadata.
    Dir(u32),
    /// A hard link to that name.
    Link(Span),
    /// The name is gone from the layers below.
    Whiteout,
    /// All that the layers below have in the directory is gone.
    Opaque,
}

/// The requests.
#[derive(Debug, Default)]
pub(super) struct Journal {
    names: Vec<u8>,
    steps: Vec<(Span, What)>,
    dirs: Vec<Meta>,
}

impl Journal {
    /// Bytes of all names so far.
    pub(super) fn name_bytes(&self) -> usize {
        self.names.len()
    }

    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Keeps some bytes. The caller bounds their sum ([`Limits::all_path_bytes`](super::Limits)) below 4 GiB.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> Span {
        let at = self.names.len() as u32;
        self.names.extend_from_slice(bytes);
        Span { at, len: bytes.len() as u32 }
    }

    pub(super) fn keep_path(&mut self, components: &[&[u8]]) -> Span {
        let at = self.names.len() as u32;
        for (i, component) in components.iter().enumerate() {
            if i > 0 {
                self.names.push(b'/');
            }
            self.names.extend_from_slice(component);
        }
        Span { at, len: self.names.len() as u32 - at }
    }

    pub(super) fn keep_dir(&mut self, meta: Meta) -> u32 {
        self.dirs.push(meta);
        self.dirs.len() as u32 - 1
    }

    pub(super) fn push(&mut self, path: Span, what: What) {
        self.steps.push((path, what));
    }

    pub(super) fn bytes(&self, span: Span) -> &[u8] {
        &self.names[span.at as usize..][..span.len as usize]
    }

    pub(super) fn dir(&self, index: u32) -> &Meta {
        &self.dirs[index as usize]
    }

    pub(super) fn steps(&self) -> impl Iterator<Item = (&[u8], What)> {
        self.steps.iter().map(|(path, what)| (self.bytes(*path), *what))
    }
}
