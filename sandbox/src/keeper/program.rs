//! The program that shims run: a sealed copy of the keeper's own, in memory.
//!
//! A container that tricks its runtime into executing itself (CVE-2019-5736) finds no file of the host to overwrite, and an
//! upgrade of the file on disk never mixes versions under a running keeper.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::{KeeperError, Step};

/// What tells one program from another: the SHA-256 of its file in hexadecimal.
pub(crate) fn digest(program: &mut impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        match program.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => hash.update(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Copies this process's program into a sealed memory file; with its digest.
pub(super) fn sealed_copy() -> Result<(OwnedFd, String), KeeperError> {
    let mut from = File::open("/proc/self/exe").step("open of the own program")?;
    let to = memory_file().step("memory file for the shims' program")?;
    let mut to = File::from(to);
    copy(&mut from, &mut to).step("copy of the own program")?;
    let to = OwnedFd::from(to);
    seal(&to).step("seal of the shims' program")?;
    // Executed by way of a read-only descriptor: one that can write answers ETXTBSY.
    let read_only = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&to));
    let mut program = File::open(read_only).step("reopen of the shims' program")?;
    let digest = digest(&mut program).step("digest of the shims' program")?;
    Ok((program.into(), digest))
}

/// With `EXEC` nobody can take its execute bits away either: to a root without a user namespace of its own the file belongs,
/// and without those bits no shim would start any more.
fn seal(file: &OwnedFd) -> Result<(), Errno> {
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    match fcntl_add_seals(file, seals | SealFlags::EXEC) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => fcntl_add_seals(file, seals),
        other => other,
    }
}

fn memory_file() -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create("nodeless-shim", flags | MemfdFlags::EXEC) {
        // Before Linux 6.3 every memory file was executable.
        Err(Errno::INVAL) => memfd_create("nodeless-shim", flags),
        other => other,
    }
}

fn copy(from: &mut impl Read, to: &mut File) -> io::Result<()> {
    io::copy(from, to)?;
    Ok(())
}
