//! Pods from a directory of manifests, as a kubelet's static pods.
//!
//! ```text
//!  DIR/*.yaml *.yml *.json ── parse (pure) ── defaults (pure) ──┐
//!     inotify + rescan                                          ├─ plan (pure) ── owner thread ──> Desired
//!  STATE_DIR/manifest/ records (one file per pod) ──────────────┘      ^ place, ended, removed, create, delete
//! ```
//!
//! **Rules.** One object per file: a Pod, or a ConfigMap or Secret that pods of the directory refer to. A file that cannot be
//! read or parsed is told with its name, field and what to do, changes nothing of the pod that it gave before, and hinders no
//! other file. A deleted file is a deletion (with the pod's grace period). A directory that vanished, or was replaced by an
//! empty one, is none. A changed file is a new pod: the old one ends first, then the new one starts.
//!
//! **Identity.** The UID is made of the file's path, its parsed content and a counter that is written down before use: the same
//! file gives the same UID over restarts, and a file that is removed and written again gives another one. Changes of comments
//! and layout change nothing. Names stay as they are in the file: a kubelet appends its node name, because its static pods
//! appear in the API beside those of other nodes; these do not.
//!
//! **On disk**, in `STATE_DIR/manifest/` (0700; each file replaced whole):
//!
//! ```text
//! counter          the last start number
//! directory.json   path, device and inode of the directory at the last good scan
//! pods/UID.json    the pod with its defaults, its placement, its end: survives a vanished directory
//! ```

mod defaults;
mod owner;
mod parse;
mod plan;
mod ports;
mod records;
mod scan;
mod watch;

pub use ports::{ManifestSettings, ManifestSource};
pub use records::RecordsError;
