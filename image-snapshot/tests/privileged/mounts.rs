//! Mounts that go away.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Layers under an overlay.
pub(crate) struct Overlay {
    mounts: Vec<PathBuf>,
}

impl Overlay {
    /// `layers`: lowest first. The overlay is read-only.
    pub(crate) fn mount(dir: &Path, layers: &[PathBuf]) -> Self {
        let mut this = Self { mounts: Vec::new() };
        let mut lowers = Vec::new();
        for layer in layers {
            let at = layer.with_extension("mnt");
            std::fs::create_dir_all(&at).unwrap();
            mount_layer(layer, &at);
            this.mounts.push(at.clone());
            lowers.insert(0, at.display().to_string());
        }
        // An overlay wants two lower directories at least.
        let empty = dir.join("empty");
        std::fs::create_dir_all(&empty).unwrap();
        lowers.push(empty.display().to_string());
        let at = dir.join("overlay");
        std::fs::create_dir_all(&at).unwrap();
        let options = std::ffi::CString::new(format!("lowerdir={},xino=off", lowers.join(":"))).unwrap();
        mount("overlay", &at, "overlay", MountFlags::RDONLY, Some(options.as_c_str())).unwrap();
        this.mounts.push(at);
        this
    }

    pub(crate) fn path(&self) -> &Path {
        self.mounts.last().unwrap()
    }
}

/// Straight from the file where the kernel can (6.12), else by a loop device.
fn mount_layer(layer: &Path, at: &Path) {
    if mount(layer, at, "erofs", MountFlags::RDONLY, None).is_ok() {
        return;
    }
    let status = Command::new("mount").args(["-t", "erofs", "-o", "ro,loop"]).arg(layer).arg(at).status().unwrap();
    assert!(status.success(), "could not mount {layer:?}");
}

impl Drop for Overlay {
    fn drop(&mut self) {
        for mount in self.mounts.iter().rev() {
            let _ = unmount(mount, UnmountFlags::DETACH);
        }
    }
}
