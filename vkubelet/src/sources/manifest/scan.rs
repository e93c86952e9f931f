//! One look at the manifest directory.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::owner::ObjectKey;
use super::parse::{MAX_BYTES, Manifest, parse};
use super::plan::Seen;
use super::records::DirectoryIdentity;
use crate::ports::ReferencedObject;

/// One look at the directory.
pub(super) struct Scan {
    pub(super) identity: DirectoryIdentity,
    pub(super) files: BTreeMap<String, Seen>,
    pub(super) objects: BTreeMap<ObjectKey, ReferencedObject>,
    /// Per file: what is wrong with it and what to do.
    pub(super) problems: BTreeMap<String, String>,
}

impl Scan {
    /// Looks at every manifest of a directory; a bad one is a problem of its own.
    pub(super) fn of(directory: &Path, node_name: &str) -> io::Result<Self> {
        let meta = fs::metadata(directory)?;
        let identity = DirectoryIdentity { path: directory.to_owned(), device: meta.dev(), inode: meta.ino() };
        let mut scan = Self { identity, files: BTreeMap::new(), objects: BTreeMap::new(), problems: BTreeMap::new() };
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if is_manifest(&path) {
                scan.read(&path, node_name);
            }
        }
        Ok(scan)
    }

    fn read(&mut self, path: &Path, node_name: &str) {
        let key = path.display().to_string();
        let text = match read_text(path) {
            Ok(text) => text,
            // Gone since it was listed: a deletion like any other.
            Err(ReadError::Io(e)) if e.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                self.problems.insert(key.clone(), error.to_string());
                self.files.insert(key, Seen::Unusable);
                return;
            }
        };
        match parse(&text, node_name) {
            Ok(Manifest::Pod(pod)) => {
                let hash = hex::encode(Sha256::digest(pod.to_string().as_bytes()));
                self.files.insert(key, Seen::Pod { hash, pod });
            }
            Ok(Manifest::Object { kind, namespace, name, object }) => {
                self.objects.insert((kind, namespace, name), object);
                self.files.insert(key, Seen::Unusable);
            }
            Err(error) => {
                self.problems.insert(key.clone(), error.to_string());
                self.files.insert(key, Seen::Unusable);
            }
        }
    }
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|n| n.to_string_lossy().starts_with('.'));
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    !hidden && matches!(extension, "yaml" | "yml" | "json")
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("cannot be read: {0}")]
    Io(io::Error),
    #[error("is not a regular file: remove it")]
    NotAFile,
    #[error("is larger than 3 MiB: make it smaller")]
    TooLarge,
    #[error("is not UTF-8 text: correct or remove it")]
    NotText,
}

fn read_text(path: &Path) -> Result<String, ReadError> {
    // A FIFO must not stop the thread: looked at before it is opened, and again by the open file.
    if !fs::metadata(path).map_err(ReadError::Io)?.is_file() {
        return Err(ReadError::NotAFile);
    }
    let file = fs::File::open(path).map_err(ReadError::Io)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(ReadError::Io)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ReadError::TooLarge);
    }
    String::from_utf8(bytes).map_err(|_| ReadError::NotText)
}
