//! Bounds on what one layer may make us spend.

/// Limits that an archive must keep. Beyond one the layer is refused.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// Uncompressed bytes of a layer; also those of its files, with the files of layers below that it links to, as it takes copies of these.
    pub layer_bytes: u64,
    /// Uncompressed to compressed bytes, looked at once [`Limits::ratio_from`] bytes came out.
    pub ratio: u64,
    /// Uncompressed bytes below which the ratio does not matter.
    pub ratio_from: u64,
    /// Entries of a layer.
    pub entries: u64,
    /// Bytes of a path.
    pub path_bytes: usize,
    /// Bytes of all paths together.
    pub all_path_bytes: usize,
    /// Components of a path.
    pub depth: usize,
    /// Bytes of an entry's extended attributes.
    pub xattr_bytes: usize,
    /// Bytes of an extended (PAX or GNU) header.
    pub header_bytes: u64,
    /// zstd window, as a power of two.
    pub zstd_window_log: u32,
    /// Layers of an image.
    pub layers: usize,
    /// Bytes of a manifest, index or configuration.
    pub document_bytes: u64,
    /// Indexes within indexes.
    pub index_depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_bytes: 16 << 30,
            ratio: 400,
            ratio_from: 1 << 30,
            entries: 1_000_000,
            path_bytes: 4096,
            all_path_bytes: 256 << 20,
            depth: 255,
            xattr_bytes: 64 << 10,
            header_bytes: 1 << 20,
            zstd_window_log: 27,
            layers: 128,
            document_bytes: 4 << 20,
            index_depth: 4,
        }
    }
}
