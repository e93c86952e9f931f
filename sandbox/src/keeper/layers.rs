//! Each layer mounted once, checked, cloned, released.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, unlinkat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::namespace::LAYERS;
use super::{KeeperError, Step};
use crate::protocol::Refusal;
use crate::spec::Layer;
use crate::sys::loop_device::{self, Access};
use crate::sys::mount;

/// Longest identity of a layer.
const LONGEST_ID: usize = 256;

/// The directories below which layer files may lie.
#[derive(Debug)]
pub(super) struct Directories {
    list: Vec<(PathBuf, OwnedFd)>,
    owner: u32,
}

impl Directories {
    /// Opens them, by the paths that requests will use.
    pub(super) fn open(paths: &[PathBuf]) -> Result<Self, KeeperError> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let list = paths
            .iter()
            .map(|path| {
                let fd = openat(CWD, path, flags, Mode::empty())
                    .step(format!("open of the layer directory {}", path.display()))?;
                Ok((path.clone(), fd))
            })
            .collect::<Result<_, KeeperError>>()?;
        Ok(Self { list, owner: rustix::process::geteuid().as_raw() })
    }

    /// Opens a layer's file, if it is one that may be mounted.
    fn open_layer(&self, path: &Path) -> Result<OwnedFd, Refusal> {
        let invalid = |why: &str| Refusal::Invalid { message: format!("layer file {} {why}", path.display()) };
        let below = self.list.iter().find_map(|(prefix, fd)| Some((fd, path.strip_prefix(prefix).ok()?)));
        let Some((directory, relative)) = below else {
            return Err(invalid("is in none of the directories that layers may come from"));
        };
        if relative.as_os_str().is_empty() {
            return Err(invalid("is a directory"));
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match openat2(directory, relative, flags, Mode::empty(), resolve) {
            Ok(file) => file,
            Err(Errno::NOENT) => {
                return Err(Refusal::NotFound { what: format!("layer file {}", path.display()) });
            }
            Err(Errno::LOOP | Errno::XDEV) => return Err(invalid("is reached through a link")),
            Err(errno) => {
                return Err(Refusal::failed(format!("open of layer file {}", path.display()), &errno.into()));
            }
        };
        let stat = fstat(&file)
            .map_err(|errno| Refusal::failed(format!("stat of layer file {}", path.display()), &errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(invalid("is not a regular file"));
        }
        if stat.st_uid != self.owner || stat.st_mode & 0o022 != 0 {
            return Err(invalid("may be written by others than its keeper"));
        }
        Ok(file)
    }
}

/// The host's loop devices, for kernels that mount block devices only.
#[derive(Debug)]
pub(super) struct LoopDevices {
    /// /dev of the host, when it could be opened.
    dev: Option<OwnedFd>,
    /// The kernel does not mount files, or is not to be asked.
    only_way: bool,
    /// Read around the page cache; no longer once it was found not to work.
    direct: bool,
}

impl LoopDevices {
    /// Opens the host's /dev.
    pub(super) fn open(force: bool) -> Self {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        Self { dev: openat(CWD, "/dev", flags, Mode::empty()).ok(), only_way: force, direct: true }
    }

    fn attach(&self, file: &OwnedFd) -> io::Result<OwnedFd> {
        let dev = self.dev.as_ref().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no /dev"))?;
        loop_device::attach(dev, file, Access::Read, self.direct)
    }
}

/// A layer that is mounted.
#[derive(Debug)]
struct Mounted {
    root: OwnedFd,
    point: String,
}

/// The layers that are mounted.
#[derive(Debug)]
pub(super) struct Layers {
    directories: Directories,
    loop_devices: LoopDevices,
    mounted: BTreeMap<String, Mounted>,
    next_point: u64,
}

impl Layers {
    /// None yet. The process must be in the keeper's mount namespace.
    pub(super) fn new(directories: Directories, loop_devices: LoopDevices) -> Self {
        Self { directories, loop_devices, mounted: BTreeMap::new(), next_point: 0 }
    }

    /// Identities of the mounted layers.
    pub(super) fn ids(&self) -> Vec<String> {
        self.mounted.keys().cloned().collect()
    }

    /// A detached clone of each layer's mount, mounting what is not mounted yet. All or nothing is handed out; what was
    /// mounted on the way stays, as it would be asked for again.
    pub(super) fn clones(&mut self, layers: &[Layer]) -> Result<Vec<OwnedFd>, Refusal> {
        layers
            .iter()
            .map(|layer| {
                let root = self.root_of(layer)?;
                mount::clone_tree(root, "", false)
                    .map_err(|error| Refusal::failed(format!("clone of the mount of layer {}", layer.id), &error))
            })
            .collect()
    }

    /// Drops the keeper's own mounts; clones live on. Unknown identities are passed over.
    pub(super) fn release(&mut self, ids: &[String]) {
        for id in ids {
            if let Some(layer) = self.mounted.remove(id) {
                drop(layer.root);
                if let Err(errno) = unmount(layer.point.as_str(), UnmountFlags::DETACH) {
                    tracing::warn!(layer = id, error = %errno, "layer could not be unmounted");
                } else if let Err(errno) = unlinkat(CWD, layer.point.as_str(), rustix::fs::AtFlags::REMOVEDIR) {
                    tracing::warn!(layer = id, error = %errno, "mount point of a layer could not be removed");
                }
            }
        }
    }

    fn root_of(&mut self, layer: &Layer) -> Result<&OwnedFd, Refusal> {
        // Equal identities mean equal files: the path of one that is mounted does not matter.
        if !self.mounted.contains_key(&layer.id) {
            if layer.id.is_empty() || layer.id.len() > LONGEST_ID {
                return Err(Refusal::Invalid { message: format!("layer identity of {} bytes", layer.id.len()) });
            }
            let file = self.directories.open_layer(&layer.path)?;
            crate::sys::failpoint::failpoint!(LayerOpened);
            let mounted = self
                .mount(&file)
                .map_err(|(step, error)| Refusal::failed(format!("{step} of layer {}", layer.id), &error))?;
            self.mounted.insert(layer.id.clone(), mounted);
        }
        self.mounted
            .get(&layer.id)
            .map(|layer| &layer.root)
            .ok_or_else(|| Refusal::NotFound { what: format!("mount of layer {}", layer.id) })
    }

    fn mount(&mut self, file: &OwnedFd) -> Result<Mounted, (&'static str, io::Error)> {
        let root = self.detached(file)?;
        crate::sys::failpoint::failpoint!(LayerMounted);
        // Attached, because kernels before 6.15 clone only what is part of a mount namespace.
        let point = format!("{LAYERS}/{}", self.next_point);
        self.next_point += 1;
        let directory = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        mkdirat(CWD, point.as_str(), Mode::from_raw_mode(0o700)).map_err(|errno| ("mount point", errno.into()))?;
        let target =
            openat(CWD, point.as_str(), directory, Mode::empty()).map_err(|errno| ("mount point", errno.into()))?;
        mount::attach(&root, &target).map_err(|error| ("attachment", error))?;
        crate::sys::failpoint::failpoint!(LayerAttached);
        Ok(Mounted { root, point })
    }

    fn detached(&mut self, file: &OwnedFd) -> Result<OwnedFd, (&'static str, io::Error)> {
        if !self.loop_devices.only_way {
            match erofs(file) {
                Ok(root) => return Ok(root),
                // This kernel wants a block device.
                Err(error) if error.raw_os_error() == Some(libc::ENOTBLK) => {
                    tracing::info!("this kernel does not mount files: layers go through loop devices");
                    self.loop_devices.only_way = true;
                }
                Err(error) => return Err(("EROFS mount", error)),
            }
        }
        let devices = &mut self.loop_devices;
        let mounted = devices.attach(file).map_err(|error| ("loop device", error)).map(|device| erofs(&device))?;
        match mounted {
            // Some file systems (an overlay on tmpfs) say that they can do direct I/O and then cannot.
            Err(error) if devices.direct && error.raw_os_error() == Some(libc::EIO) => {
                devices.direct = false;
                let device = devices.attach(file).map_err(|error| ("loop device", error))?;
                let root = erofs(&device);
                // Had it failed either way, the file would be at fault, not direct I/O.
                devices.direct = root.is_err();
                root
            }
            other => other,
        }
        .map_err(|error| ("EROFS mount of the loop device", error))
    }
}

/// Mounts a file or block device, detached.
fn erofs(source: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", source.as_raw_fd());
    mount::create("erofs", &[("source", Some(&path)), ("ro", None)], mount::RDONLY | mount::NODEV)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn only_own_plain_files_below_the_named_directories_may_be_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let good = dir.path().join("good");
        std::fs::write(&good, "x").unwrap();
        std::fs::set_permissions(&good, PermissionsExt::from_mode(0o644)).unwrap();
        let writable = dir.path().join("writable");
        std::fs::write(&writable, "x").unwrap();
        std::fs::set_permissions(&writable, PermissionsExt::from_mode(0o666)).unwrap();
        symlink(&good, dir.path().join("link")).unwrap();
        symlink("/etc", dir.path().join("out")).unwrap();
        let directories = Directories::open(&[dir.path().to_owned()]).unwrap();
        directories.open_layer(&good).unwrap();
        let invalid = ["link", "writable", "out/passwd", "../etc/passwd", ""];
        for name in invalid {
            let refusal = directories.open_layer(&dir.path().join(name)).unwrap_err();
            assert!(matches!(refusal, Refusal::Invalid { .. }), "{name}: {refusal:?}");
        }
        assert!(matches!(directories.open_layer(Path::new("/etc/passwd")), Err(Refusal::Invalid { .. })));
        let absent = directories.open_layer(&dir.path().join("absent")).unwrap_err();
        assert!(matches!(absent, Refusal::NotFound { .. }));
    }
}
