//! Tells a file system that the directories in a directory have nothing to do with each other.

use std::io;
use std::path::Path;

use rustix::fs::{IFlags, Mode, OFlags, ioctl_getflags, ioctl_setflags, open};

/// Has ext2, ext3 and ext4 spread the children of this directory over the disk (`chattr +T`), instead of packing all of them
/// beside it. Pods come and go: packed, each new file is looked for among all those that were just deleted, which has cost a
/// third of the agent's time at a burst (and two pods that start together wait for the same block group's lock). Other file
/// systems refuse, which is no loss.
pub fn spread_children(directory: &Path) -> io::Result<()> {
    let directory = open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = ioctl_getflags(&directory)?;
    if !flags.contains(IFlags::TOPDIR) {
        ioctl_setflags(&directory, flags | IFlags::TOPDIR)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_spread_or_its_file_system_refuses() {
        let dir = tempfile::tempdir().unwrap();
        let flags = || ioctl_getflags(std::fs::File::open(dir.path()).unwrap());
        let Ok(_) = flags() else {
            assert!(spread_children(dir.path()).is_err());
            return;
        };
        if spread_children(dir.path()).is_ok() {
            assert!(flags().unwrap().contains(IFlags::TOPDIR));
            spread_children(dir.path()).unwrap();
        }
        assert!(spread_children(&dir.path().join("absent")).is_err());
    }
}
