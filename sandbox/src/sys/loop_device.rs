//! Loop devices: the way to mount a file on kernels that mount block devices only.
#![allow(unsafe_code)] // neither rustix nor nix knows these ioctls

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};

const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A as libc::Ioctl;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82 as libc::Ioctl;

const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;

/// How often another process may take a free device first.
const TRIES: u32 = 64;

/// What may be done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reading alone.
    Read,
    /// Writing too.
    Write,
}

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Configuration {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// Binds `file` to a free device of `dev`, the host's /dev. The device frees itself when its last user (the mount) is gone. With
/// `direct` it goes around the page cache (which the mount has of its own) where the file's file system says that it can.
pub(crate) fn attach(dev: impl AsFd, file: impl AsFd, access: Access, direct: bool) -> io::Result<OwnedFd> {
    let (dev, file) = (dev.as_fd(), file.as_fd());
    let control = openat(dev, "loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let (open, flags) = match access {
        Access::Read => (OFlags::RDONLY, READ_ONLY | AUTOCLEAR),
        Access::Write => (OFlags::RDWR, AUTOCLEAR),
    };
    for _ in 0..TRIES {
        let number = free_number(control.as_fd())?;
        let device = openat(dev, format!("loop{number}"), open | OFlags::CLOEXEC, Mode::empty())?;
        match configure(device.as_fd(), file, flags, direct) {
            // A kernel may refuse to mount what somebody can write to beside it.
            Ok(()) if access == Access::Write => {
                return Ok(openat(dev, format!("loop{number}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
            }
            Ok(()) => return Ok(device),
            // Somebody else took it first.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// Number of a device that is free at this moment, making one if there is none. `control`: /dev/loop-control.
fn free_number(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument; the descriptor is open for the borrow's time.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

fn configure(device: BorrowedFd<'_>, file: BorrowedFd<'_>, flags: u32, direct: bool) -> io::Result<()> {
    if direct {
        match try_configure(device, file, flags | DIRECT_IO) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            other => return other,
        }
    }
    try_configure(device, file, flags)
}

fn try_configure(device: BorrowedFd<'_>, file: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    let info = Info {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let configuration = Configuration { fd: file.as_raw_fd().unsigned_abs(), block_size: 0, info, reserved: [0; 8] };
    // SAFETY: `configuration` has the layout of the kernel's struct loop_config (checked by a test), lives over the call,
    // and is only read; both descriptors are open for the borrows' time.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const configuration) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernel_s_sizes() {
        assert_eq!(size_of::<Info>(), 232);
        assert_eq!(size_of::<Configuration>(), 304);
        assert_eq!(std::mem::offset_of!(Configuration, info), 8);
        assert_eq!(std::mem::offset_of!(Info, flags), 52);
    }
}
