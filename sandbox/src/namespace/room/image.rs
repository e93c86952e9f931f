//! A writable directory that is a file system of its own: an ext4 in a file that takes no more of the disk than was written.
//!
//! It is made anew for each attempt and mounted through a loop device before anybody else has seen it, so the kernel never reads
//! what a container could have made of it. It stays mounted as long as its [`Image`] is there, and each start gets a mount of its
//! own. No journal, no syncs: nothing in it outlives its container.
//!
//! In the directory is `unfinished` until it is mounted, then `N.ext4`, where N is how many bytes it takes when nothing was written to
//! it. What a crash has left there is removed by the next start, unless a loop device still has it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, fstat, fstatvfs, major, minor, openat, syncfs};

use crate::sys::loop_device::{self, Access};
use crate::sys::mount;

/// See the module.
const SUFFIX: &str = ".ext4";
const UNFINISHED: &str = "unfinished";
/// A block of stat(2).
const BLOCK: u64 = 512;
/// Of a file system, a block.
const PAGE: u64 = 4096;
/// Bytes of the largest: 1 GiB less than 2^44, as a file on an ext4 ends a block before those.
const LARGEST: u64 = (1 << 44) - (1 << 30);
/// Whatever the host's mke2fs.conf says. `uninit_bg`, so that inode tables need not be written at once; `sparse_super2` without
/// backups: nobody repairs it.
const FEATURES: &str = "none,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,sparse_super2,large_file,huge_file,\
                        dir_nlink,extra_isize,uninit_bg";
/// How long somebody else may have a device after us, and how often that is looked at.
const MOMENT: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(1);
/// Where the program that makes file systems is looked for, beside `PATH`.
const PROGRAMS: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Why there is none.
#[derive(Debug)]
pub(super) enum ImageError {
    /// This host makes none.
    Impossible {
        /// What is missing.
        what: &'static str,
        /// How that showed.
        error: io::Error,
    },
    /// The directory is in use without one, or with one that an earlier backend has made.
    Taken,
    /// It should have, and did not.
    Failed(io::Error),
}

impl From<io::Error> for ImageError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl ImageError {
    /// Of something that a host may lack, or may not let us have.
    fn of(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::EPERM | libc::EACCES) => {
                Self::Impossible { what, error }
            }
            _ => Self::Failed(error),
        }
    }
}

/// A file system in a file, mounted as long as this is there.
#[derive(Debug)]
pub(super) struct Image {
    /// Never attached anywhere. First of the two that are closed.
    mount: OwnedFd,
    device: OwnedFd,
}

impl Image {
    /// A detached mount of it that nobody else has: one that was attached in a mount namespace is of no use any more when that has
    /// ended.
    pub(super) fn mount(&self) -> io::Result<OwnedFd> {
        mount_of(&self.device)
    }

    /// Lets go of it, which writes what is in it, and waits until its device is free, for a while. Blocking.
    ///
    /// Who is forked meanwhile has these descriptors too until it is another program, and whoever closes them last writes what is
    /// left: so nothing must be left by then. And a host may look at a device that changes.
    pub(super) fn end(self) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // What cannot be written now is tried again by who closes it.
        let _ = openat(&self.mount, ".", flags, Mode::empty()).and_then(syncfs);
        let Ok(device) = fstat(&self.device).map(|found| found.st_rdev) else { return };
        let place = format!("/sys/dev/block/{}:{}/loop/backing_file", major(device), minor(device));
        let file = fs::read(&place);
        drop(self);
        let deadline = Instant::now() + MOMENT;
        // Another one's file, or none, or one that was deleted: all as good.
        while file.as_ref().is_ok_and(|file| fs::read(&place).is_ok_and(|now| now == *file))
            && Instant::now() < deadline
        {
            thread::sleep(LOOK);
        }
    }

    /// Bytes in it.
    pub(super) fn written(&self) -> io::Result<u64> {
        let found = fstatvfs(&self.mount)?;
        Ok(found.f_blocks.saturating_sub(found.f_bfree).saturating_mul(found.f_frsize))
    }
}

/// Bytes of a file system in which so many can be written: beside them an inode of 256 bytes for each 4 KiB, what ext4 keeps back
/// for itself (2 %), and the rest of its own.
fn size(bytes: u64) -> u64 {
    let whole = bytes.saturating_add(bytes / 8).saturating_add(2 << 20);
    whole.min(LARGEST).next_multiple_of(PAGE)
}

/// Makes the file system in the directory and mounts it.
pub(super) fn create(directory: &Path, bytes: u64) -> Result<Image, ImageError> {
    clear(directory)?;
    let path = directory.join(UNFINISHED);
    let mounted = make_and_mount(&path, bytes);
    match &mounted {
        Ok((_, empty)) => fs::rename(&path, directory.join(format!("{empty}{SUFFIX}")))?,
        Err(_) => drop(fs::remove_file(&path)),
    }
    mounted.map(|(image, _)| image)
}

/// Removes what a start has left that came to nothing.
fn clear(directory: &Path) -> Result<(), ImageError> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| name == UNFINISHED || name.ends_with(SUFFIX));
        if !ours || has_device(&entry.path())? {
            return Err(ImageError::Taken);
        }
        fs::remove_file(entry.path())?;
    }
    Ok(())
}

/// Gives the file system, and what the file takes when it is empty.
fn make_and_mount(path: &Path, bytes: u64) -> Result<(Image, u64), ImageError> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len(size(bytes))?;
    make(path)?;
    crate::sys::failpoint::failpoint!(RoomMade);
    let empty = file.metadata()?.blocks() * BLOCK;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dev = openat(CWD, "/dev", flags, Mode::empty()).map_err(|errno| ImageError::of("/dev")(errno.into()))?;
    let device = loop_device::attach(&dev, &file, Access::Write, true).map_err(ImageError::of("loop devices"))?;
    let mount = mount_of(&device).map_err(ImageError::of("ext4"))?;
    Ok((Image { mount, device }, empty))
}

/// A new mount of what is on the device; of the same file system where that is mounted already.
fn mount_of(device: &OwnedFd) -> io::Result<OwnedFd> {
    let source = format!("/proc/self/fd/{}", device.as_raw_fd());
    let options = [("source", Some(source.as_str())), ("discard", None), ("noinit_itable", None), ("nobarrier", None)];
    mount::create("ext4", &options, mount::NODEV)
}

/// Has `mkfs.ext4` make an empty file system in the file.
fn make(path: &Path) -> Result<(), ImageError> {
    let search = match std::env::var("PATH") {
        Ok(own) => format!("{own}:{PROGRAMS}"),
        Err(_) => PROGRAMS.to_owned(),
    };
    let program = search.split(':').map(|place| Path::new(place).join("mkfs.ext4")).find(|program| program.is_file());
    let Some(program) = program else {
        return Err(ImageError::Impossible {
            what: "mkfs.ext4 (package e2fsprogs)",
            error: io::ErrorKind::NotFound.into(),
        });
    };
    let made = Command::new(program)
        .args(["-q", "-F", "-b", "4096", "-m", "0", "-i", "4096", "-I", "256", "-O", FEATURES])
        .args(["-E", "nodiscard,lazy_itable_init=1,num_backup_sb=0,root_owner=0:0"])
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

/// Bytes that such file systems in this directory took when nothing was written to them.
pub(crate) fn overhead(directory: &Path) -> io::Result<u64> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let mut sum = 0u64;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let empty: Option<u64> = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.parse().ok());
        if let Some(empty) = empty.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_file())) {
            sum = sum.saturating_add(empty);
        }
    }
    Ok(sum)
}

/// Whether a loop device has this file.
pub(super) fn has_device(path: &Path) -> io::Result<bool> {
    let path = fs::canonicalize(path)?;
    let entries = match fs::read_dir("/sys/block") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    for entry in entries {
        let Ok(backing) = fs::read_to_string(entry?.path().join("loop/backing_file")) else { continue };
        if Path::new(backing.trim_end_matches('\n')) == path {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_has_room_for_what_is_asked_and_little_more() {
        for bytes in [1u64 << 20, 10 << 20, 1 << 30, 10 << 30, 1 << 40] {
            let (size, least) = (size(bytes), bytes + bytes / 10);
            let most = bytes + bytes / 8 + (2 << 20) + PAGE;
            assert!(size.is_multiple_of(PAGE) && (least..=most).contains(&size), "{size}");
        }
        assert!(size(u64::MAX) < (1 << 44) - PAGE, "ext4 has an end");
    }

    #[test]
    fn what_a_file_system_took_when_empty_is_in_its_name() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(overhead(&dir.path().join("absent")).unwrap(), 0);
        fs::create_dir(dir.path().join("upper")).unwrap();
        fs::create_dir(dir.path().join("7.ext4")).unwrap();
        fs::write(dir.path().join("x.ext4"), "").unwrap();
        assert_eq!(overhead(dir.path()).unwrap(), 0);
        fs::write(dir.path().join("8192.ext4"), "").unwrap();
        assert_eq!(overhead(dir.path()).unwrap(), 8192);
    }

    #[test]
    fn what_came_to_nothing_is_removed_and_what_others_have_written_stays() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(UNFINISHED), "x").unwrap();
        fs::write(dir.path().join("7.ext4"), "x").unwrap();
        clear(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        fs::create_dir_all(dir.path().join("upper/x")).unwrap();
        assert!(matches!(clear(dir.path()), Err(ImageError::Taken)));
        assert!(dir.path().join("upper/x").is_dir());
    }
}
