//! A layer's tar, and the layers below it, to one EROFS file.
//!
//! ```text
//! stage   archive ──> data and leaf inodes (in the output file) + journal (in memory)      while it downloads
//! tree    journal × what the layers below show ──> where everything goes                   pure; once they are done
//! emit    ──> copies, whiteouts, directories, superblock                                   
//! ```
//!
//! A function of its input: the same archive over the same layers gives the same bytes. Nothing is written but the one output file, no name
//! of the archive is ever opened, and memory is bounded: some 15 MiB of buffers and waiting inodes, and for each entry its
//! name and some 40 bytes.

#[cfg(test)]
mod breakouts;
mod confined;
mod decompress;
mod emit;
mod error;
mod journal;
#[cfg(test)]
mod judges;
mod limits;
mod names;
mod path;
mod pax;
mod pipeline;
mod sparse;
mod stage;
mod stager;
mod tar_header;
mod tar_stream;
mod tree;

use std::{fs::File, io::Read, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    Digest,
    erofs::{ErofsFile, FileDigest},
    merged::Merged,
};

pub use confined::run_converter;
pub use error::ConvertError;
pub use limits::Limits;
pub(crate) use pipeline::{CANCELLED, stage_blob};
pub use stage::Staged;
pub(crate) use stager::{StagedLayer, stage_layer};
pub(crate) use tar_stream::{Kind, TarStream};

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Converted {
    /// Size of the EROFS file.
    pub bytes: u64,
    /// What it must look like, for later checks.
    pub digest: FileDigest,
    /// Entries of the archive that meant something.
    pub entries: u64,
    /// Bytes of the content of its files.
    pub content: u64,
}

/// Converts one uncompressed archive over the layers `below` (lowest first; EROFS files of this crate) into `out`, an empty file.
/// Blocking. What follows the archive's end in `input` is not read.
pub fn convert(input: impl Read, below: &[Arc<File>], out: File, limits: &Limits) -> Result<Converted, ConvertError> {
    let (staged, _) = stage::stage(input, out, limits)?;
    staged.finish(&open_below(below)?)
}

/// The same for a blob: decompresses it (gzip, zstd or plain, by its first bytes) and checks the uncompressed digest.
pub fn convert_blob(
    blob: impl Read + Send + 'static,
    diff_id: &Digest,
    below: &[Arc<File>],
    out: File,
    limits: &Limits,
) -> Result<Converted, ConvertError> {
    stage_blob(blob, diff_id, out, limits)?.finish(&open_below(below)?)
}

/// The view of some layers.
pub(crate) fn open_below(below: &[Arc<File>]) -> Result<Merged, ConvertError> {
    let open = |file: &Arc<File>| ErofsFile::open(file.clone()).map_err(ConvertError::Lower);
    Ok(Merged::new(below.iter().map(open).collect::<Result<_, _>>()?))
}
