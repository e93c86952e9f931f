//! A writable directory that is a file system of its own: an ext4 in a file that takes no more of the disk than was written.
//!
//! It is made anew for each start and mounted through a loop device before anybody else has seen it, so the kernel never reads
//! what a container could have made of it. No journal, no syncs: nothing in it outlives its container.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::sys::loop_device::{self, Access};
use crate::sys::mount;

/// What the file's name ends with; before it: how many bytes it takes when nothing was written to it.
const SUFFIX: &str = ".ext4";
const UNFINISHED: &str = "unfinished";
/// A block of stat(2).
const BLOCK: u64 = 512;
/// Of a file system, a block.
const PAGE: u64 = 4096;
/// Whatever the host's mke2fs.conf says; `uninit_bg`, so that inode tables need not be written at once.
const FEATURES: &str = "none,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,\
                        extra_isize,uninit_bg";
/// Where the program that makes file systems is looked for, beside `PATH`.
const PROGRAMS: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Why there is none.
#[derive(Debug)]
pub(super) enum ImageError {
    /// This host makes none.
    Impossible {
        /// What is missing.
        what: &'static str,
    },
    /// It should have, and did not.
    Failed(io::Error),
}

impl From<io::Error> for ImageError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Bytes of a file system in which so many can be written: beside them an inode of 256 bytes for each 8 KiB, what ext4 keeps back
/// for itself (2 %), and the rest of its own.
fn size(bytes: u64) -> u64 {
    let whole = bytes.saturating_add(bytes / 16).saturating_add(2 << 20);
    whole.min(1 << 44).next_multiple_of(PAGE)
}

/// Makes the file system in the directory, in place of whatever is there, and mounts it.
pub(super) fn mount(directory: &Path, bytes: u64) -> Result<OwnedFd, ImageError> {
    let dev = openat(CWD, "/dev", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let dev = dev.map_err(|_| ImageError::Impossible { what: "/dev" })?;
    if !Path::new("/dev/loop-control").exists() {
        return Err(ImageError::Impossible { what: "/dev/loop-control" });
    }
    // One that is mounted still keeps its blocks until it is not.
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    let path = directory.join(UNFINISHED);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    file.set_len(size(bytes))?;
    make(&path)?;
    let empty = file.metadata()?.blocks() * BLOCK;
    fs::rename(&path, directory.join(format!("{empty}{SUFFIX}")))?;
    crate::sys::failpoint::failpoint!(RoomMade);
    let device = match loop_device::attach(&dev, &file, Access::Write, true) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ImageError::Impossible { what: "loop devices" });
        }
        other => other?,
    };
    let source = format!("/proc/self/fd/{}", device.as_raw_fd());
    let options = [("source", Some(source.as_str())), ("discard", None), ("noinit_itable", None), ("nobarrier", None)];
    Ok(mount::create("ext4", &options, mount::NODEV)?)
}

/// Has `mkfs.ext4` make an empty file system in the file.
fn make(path: &Path) -> Result<(), ImageError> {
    let search = match std::env::var("PATH") {
        Ok(own) => format!("{own}:{PROGRAMS}"),
        Err(_) => PROGRAMS.to_owned(),
    };
    let program = search.split(':').map(|place| Path::new(place).join("mkfs.ext4")).find(|program| program.is_file());
    let Some(program) = program else { return Err(ImageError::Impossible { what: "mkfs.ext4 (package e2fsprogs)" }) };
    let made = Command::new(program)
        .args(["-q", "-F", "-b", "4096", "-m", "0", "-i", "8192", "-I", "256", "-O", FEATURES])
        .args(["-E", "nodiscard,lazy_itable_init=1,root_owner=0:0"])
        .arg(path)
        .env_clear()
        .stdin(Stdio::null())
        .output()?;
    if made.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&made.stderr);
    Err(ImageError::Failed(io::Error::other(format!("mkfs.ext4 ended with {}: {}", made.status, words.trim()))))
}

/// Bytes that were written to such a file system in this directory and are still there; `None` when there is none in it.
///
/// What its container has written last is brought to the file first. Blocking.
pub(crate) fn bytes(directory: &Path) -> io::Result<Option<u64>> {
    let Some((path, empty)) = find(directory)? else { return Ok(None) };
    if let Some(device) = device_of(&path)? {
        // One that is gone by now has written all.
        if let Err(error) = File::open(device).and_then(|device| loop_device::flush(std::os::fd::AsFd::as_fd(&device)))
        {
            tracing::debug!(%error, path = %path.display(), "a file system was not flushed before it was measured");
        }
    }
    match fs::metadata(&path) {
        Ok(found) => Ok(Some((found.blocks() * BLOCK).saturating_sub(empty))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn find(directory: &Path) -> io::Result<Option<(PathBuf, u64)>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let empty = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).and_then(|empty| empty.parse().ok());
        if let Some(empty) = empty.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_file())) {
            return Ok(Some((entry.path(), empty)));
        }
    }
    Ok(None)
}

/// The loop device that has this file.
fn device_of(path: &Path) -> io::Result<Option<PathBuf>> {
    let path = fs::canonicalize(path)?;
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let Ok(backing) = fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        if Path::new(backing.trim_end_matches('\n')) == path {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_has_room_for_what_is_asked_and_little_more() {
        for bytes in [1u64 << 20, 10 << 20, 1 << 30, 10 << 30, 1 << 40] {
            let size = size(bytes);
            assert!(
                size.is_multiple_of(PAGE) && size > bytes + bytes / 20 && size <= bytes + bytes / 16 + (2 << 20) + PAGE,
                "{size}"
            );
        }
        assert!(size(u64::MAX) <= 1 << 44, "ext4 has an end");
    }

    #[test]
    fn a_directory_without_such_a_file_system_is_measured_by_others() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(bytes(dir.path()).unwrap(), None);
        assert_eq!(bytes(&dir.path().join("absent")).unwrap(), None);
        fs::create_dir(dir.path().join("upper")).unwrap();
        fs::create_dir(dir.path().join("7.ext4")).unwrap();
        fs::write(dir.path().join("x.ext4"), "").unwrap();
        assert_eq!(bytes(dir.path()).unwrap(), None);
    }

    #[test]
    fn what_it_took_when_empty_is_not_counted() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("8192.ext4"), vec![1; 20_480]).unwrap();
        File::open(dir.path().join("8192.ext4")).unwrap().sync_all().unwrap();
        assert_eq!(bytes(dir.path()).unwrap(), Some(12_288));
        fs::rename(dir.path().join("8192.ext4"), dir.path().join("65536.ext4")).unwrap();
        assert_eq!(bytes(dir.path()).unwrap(), Some(0));
    }
}
