//! The program of the keeper and its shims: a copy of the file that was started, in memory, on a file system that nobody can
//! write to any more.
//!
//! The keeper executes it first of all, and shims are forks of the keeper: of the time that one took to be executed, three
//! quarters of a millisecond, half was a C library's and a runtime's own start. What is relocated, parsed or compiled in the
//! keeper is in the shims, and as long as nobody writes to it once for all of them.
//!
//! A container that tricks its runtime into executing itself (CVE-2019-5736) finds no file of the host to overwrite, and an
//! upgrade of the file on disk never mixes versions under a running keeper.
//!
//! Not a sealed memory file: to a root without a user namespace of its own that file belongs, and whatever the seals, it may
//! give it away or, before Linux 6.3, take its execute bits, so that no shim starts any more. Here owner, mode, times and
//! attributes are as fixed as the bytes. The file system is attached nowhere, so that no mount of it can be changed, and is
//! itself read-only, so that none ever could be writable.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;

use nix::fcntl::AtFlags;
use rustix::fs::{Mode, OFlags, openat};
use sha2::{Digest, Sha256};

use super::{KeeperError, Step};
use crate::sys::mount;

/// Its name there.
const NAME: &str = "nodeless-shim";

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

/// Bytes that a keeper's arguments have for the command lines of its shims ([`crate::sys::title`]).
const ROOM: usize = 1 << 10;

/// Executes a copy of this process's program that nobody changes, with the same arguments and its digest.
pub(super) fn execute_copy() -> Result<Infallible, KeeperError> {
    let (program, digest) = fixed_copy()?;
    let more = ["--program".into(), digest.into(), "--room".into(), OsString::from(" ".repeat(ROOM))];
    let words = |words: &mut dyn Iterator<Item = OsString>| {
        let words = words.map(|word| CString::new(word.into_vec())).collect::<Result<Vec<_>, _>>();
        words.step("arguments of the own program")
    };
    let arguments = words(&mut std::env::args_os().chain(more))?;
    let environment = words(&mut std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    }))?;
    nix::unistd::execveat(&program, c"", &arguments, &environment, AtFlags::AT_EMPTY_PATH)
        .step("execution of the own program's copy")
}

/// Copies this process's program to where nobody changes it; with its digest.
fn fixed_copy() -> Result<(OwnedFd, String), KeeperError> {
    let mut from = File::open("/proc/self/exe").step("open of the own program")?;
    let mut program = File::from(fix(&mut from)?);
    let digest = digest(&mut program).step("digest of the shims' program")?;
    program.rewind().step("digest of the shims' program")?;
    Ok((program.into(), digest))
}

fn fix(from: &mut impl Read) -> Result<OwnedFd, KeeperError> {
    let strict = mount::NOSUID | mount::NODEV;
    let directory =
        mount::create("tmpfs", &[("mode", Some("0555"))], strict).step("file system for the shims' program")?;
    let (new, mode) = (OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o555));
    let to = openat(&directory, NAME, new, mode).step("file for the shims' program")?;
    // Closed before anything is executed: of what somebody may still write to, execve answers ETXTBSY.
    io::copy(from, &mut File::from(to)).step("copy of the own program")?;
    mount::set(&directory, mount::RDONLY, false).step("read-only mount of the shims' program")?;
    mount::close(&directory).step("read-only file system of the shims' program")?;
    openat(&directory, NAME, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).step("open of the shims' program")
}
