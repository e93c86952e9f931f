//! A terminal from the container's own /dev/pts.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, fchown, fstatfs, mknodat, openat};
use rustix::process::{Gid, Uid, ioctl_tiocsctty};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::report::Step;
use crate::protocol::Refusal;
use crate::sys::{mount, paths};

const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// Both sides of a terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    pub(crate) slave: OwnedFd,
}

/// Opens a new terminal of the devpts mount that `pts` is the root of, checked to be one (CVE-2025-52565). The slave
/// is opened through the master, never by a path.
pub(crate) fn open(pts: &OwnedFd, owner: u32, group: u32) -> Result<Terminal, Refusal> {
    let terminal = open_own(pts, None)?;
    fchown(&terminal.slave, Some(Uid::from_raw(owner)), Some(Gid::from_raw(group))).step("owner of a terminal")?;
    Ok(terminal)
}

/// The same for a process that is its owner already; its group is the mount's.
pub(crate) fn open_own(pts: &OwnedFd, size: Option<(u16, u16)>) -> Result<Terminal, Refusal> {
    if fstatfs(pts).step("check of /dev/pts")?.f_type != DEVPTS_SUPER_MAGIC {
        return Err(Refusal::Invalid { message: "/dev/pts is not a devpts file system".into() });
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let master = openat(pts, "ptmx", flags, Mode::empty()).step("open of a terminal")?;
    unlockpt(&master).step("unlocking of a terminal")?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .step("open of a terminal's other side")?;
    if let Some((columns, rows)) = size {
        resize(&master, columns, rows).step("size of a terminal")?;
    }
    Ok(Terminal { master, slave })
}

/// The /dev/pts of the mount namespace that this process has joined.
pub(crate) fn joined_pts() -> Result<OwnedFd, Refusal> {
    let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).step("open of /")?;
    paths::open_plain(&root, "dev/pts", OFlags::PATH | OFlags::DIRECTORY).step("open of /dev/pts")
}

/// Sets the size.
pub(crate) fn resize(master: &OwnedFd, columns: u16, rows: u16) -> rustix::io::Result<()> {
    tcsetwinsize(master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })
}

/// Makes the terminal the container's /dev/console.
pub(crate) fn bind_console(dev: &OwnedFd, slave: &OwnedFd) -> Result<(), Refusal> {
    mknodat(dev, "console", rustix::fs::FileType::RegularFile, Mode::from_raw_mode(0o600), 0).step("/dev/console")?;
    let target = paths::open_plain(dev, "console", OFlags::PATH).step("open of /dev/console")?;
    let copy = mount::clone_tree(slave, "", false).step("copy of the terminal")?;
    mount::attach(&copy, &target).step("mount of /dev/console")
}

/// Makes the terminal the controlling one of this session.
pub(crate) fn control(slave: &OwnedFd) -> Result<(), Refusal> {
    ioctl_tiocsctty(slave).step("controlling terminal")
}
