//! Keys that a process holds through its session.
#![allow(unsafe_code)] // keyctl is in neither rustix nor nix

use std::io;

/// `KEYCTL_JOIN_SESSION_KEYRING`.
const JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Gives this process a session keyring of its own, empty, in place of the one that it inherited. A kernel without keys has
/// nothing to leave; where a filter of the host's own refuses to ask for keys, it refuses this process's children too.
pub fn leave_session() -> io::Result<()> {
    // SAFETY: with a null name the call reads no memory of ours; the other arguments are ignored.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    if result != -1 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
        error => Err(error),
    }
}
