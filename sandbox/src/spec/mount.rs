//! What appears in a container besides its root.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Layer;

/// A host directory or file that appears in the container; or an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path on the host, owned by the agent; empty for an image.
    pub source: PathBuf,
    /// Path below `source`, resolved inside it only (RESOLVE_IN_ROOT); empty for `source` itself.
    #[serde(default)]
    pub sub_path: PathBuf,
    /// Absolute path in the container, resolved inside its root only; made (directory or file, as the source is) when absent.
    pub destination: PathBuf,
    /// Read-only.
    #[serde(default)]
    pub read_only: bool,
    /// No program of it may be executed.
    #[serde(default)]
    pub no_exec: bool,
    /// Shift owners with the sandbox's user namespace, so that id 0 on the host appears as 0 in the container.
    #[serde(default = "yes")]
    pub idmap: bool,
    /// The source was made for this sandbox alone: where its file system cannot shift owners (tmpfs before Linux 6.3), those
    /// in it are changed instead, and whoever writes there later keeps to the owner of the directory. Only with `idmap`.
    #[serde(default)]
    pub exclusive: bool,
    /// Layers of an image, the lowest first, which appear merged, as in a root, instead of `source`. Always read-only, and
    /// nothing is made in it: a sub path that it does not have is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Layer>,
}

impl Mount {
    /// How many detached mounts it is made of.
    pub(crate) fn parts(&self) -> usize {
        self.layers.len().max(1)
    }
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_of_before_there_were_images_is_read_and_written_as_it_was() {
        let text = r#"{"source":"/s","sub_path":"","destination":"/d","read_only":true,"no_exec":false,"idmap":true,"exclusive":false}"#;
        let mount: Mount = serde_json::from_str(text).unwrap();
        assert!(mount.layers.is_empty() && mount.parts() == 1);
        assert_eq!(serde_json::to_string(&mount).unwrap(), text);
    }
}
