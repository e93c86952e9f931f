//! The loopback interface.
#![allow(unsafe_code)] // an ioctl that rustix lacks

use rustix::ioctl::{Opcode, Setter, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Brings `lo` of the caller's network namespace up. Allocates nothing and has no `errno`: see [`super::hold`].
pub fn loopback_up() -> rustix::io::Result<()> {
    const SET_FLAGS: Opcode = libc::SIOCSIFFLAGS as Opcode;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq; the name is terminated by the zeroes after it.
    unsafe { ioctl(&socket, Setter::<SET_FLAGS, libc::ifreq>::new(request)) }
}
