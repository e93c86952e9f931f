//! Making files as whom they are for.
//!
//! Given away after they were made, by name, they could be exchanged in between for files that nobody was to have; and where a
//! mount shifts owners, only an owner that it knows can make anything at all.

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::io::{self, Errno};
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

/// Never anybody's id: the calls that set one only tell the present one then.
const NOBODY: u32 = u32::MAX;

/// Runs `make` so that what it makes belongs to `owner` (user and group; a directory that hands on its group does so). The
/// calling thread keeps its powers.
pub(crate) fn as_owner<T>(owner: u32, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let own = present();
    if own == (owner, owner) {
        return make();
    }
    let powers = capabilities(None)?;
    let made = become_owner((owner, owner), powers).and_then(|()| make());
    become_owner(own, powers)?;
    made
}

fn present() -> (u32, u32) {
    (setfsuid(Uid::from_raw(NOBODY)).as_raw(), setfsgid(Gid::from_raw(NOBODY)).as_raw())
}

fn become_owner(owner: (u32, u32), powers: CapabilitySets) -> io::Result<()> {
    setfsgid(Gid::from_raw(owner.1));
    setfsuid(Uid::from_raw(owner.0));
    if present() != owner {
        return Err(Errno::PERM);
    }
    // The kernel takes the powers over files away from who leaves root's id, and gives them to who takes it.
    set_capabilities(None, powers)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn privileged_what_is_made_belongs_to_its_owner_from_the_start_and_nobody_loses_powers() {
        if !rustix::process::geteuid().is_root() {
            eprintln!(
                "SKIPPED privileged_what_is_made_belongs_to_its_owner_from_the_start_and_nobody_loses_powers: not root"
            );
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (before, path) = (capabilities(None).unwrap(), dir.path().join("made"));
        let made = as_owner(70_000, || {
            std::fs::create_dir(&path).unwrap();
            assert_eq!(capabilities(None)?, before);
            std::fs::metadata(&path).map_err(|_| Errno::IO)
        });
        let made = made.unwrap();
        assert_eq!((made.uid(), made.gid()), (70_000, 70_000));
        assert_eq!((present(), capabilities(None).unwrap()), ((0, 0), before));
        assert_eq!(as_owner(70_000, || Err::<(), _>(Errno::IO)), Err(Errno::IO));
        assert_eq!(present(), (0, 0));
    }
}
