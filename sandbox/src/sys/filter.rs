//! Installing a seccomp filter.
#![allow(unsafe_code)] // seccompiler's own function also sets no_new_privs, which is not ours to set

use std::io;

/// One instruction of a classic BPF program, as the kernel wants it.
pub type Instruction = seccompiler::sock_filter;

/// Installs a filter for this thread, from now on and over `execve`. Needs `no_new_privs` or CAP_SYS_ADMIN in the
/// current user namespace. Filters stack: the strictest verdict of all wins.
pub fn install(program: &[Instruction]) -> io::Result<()> {
    let length = u16::try_from(program.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "seccomp program is too long"))?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    // SAFETY: `filter` points to `length` instructions of the kernel's own layout (seccompiler's sock_filter is
    // repr(C), the same four fields as libc's), which the kernel copies and does not write.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0u32, &raw const filter) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
