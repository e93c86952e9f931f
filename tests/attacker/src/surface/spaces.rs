//! Ways from one namespace to another, and to mounts that are not one's own.
#![allow(unsafe_code)] // raw system calls, with arguments that no crate lets through

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const NS_GET_USERNS: libc::c_ulong = 0xb701;
const NS_GET_PARENT: libc::c_ulong = 0xb702;
const NS_GET_OWNER_UID: libc::c_ulong = 0xb704;
/// `NS_MNT_GET_NEXT`, `NS_MNT_GET_PREV`, with `struct mnt_ns_info` of 16 bytes.
const NS_MNT_GET_NEXT: libc::c_ulong = 0x8010_b70b;
const NS_MNT_GET_PREV: libc::c_ulong = 0x8010_b70c;
const SYS_STATMOUNT: libc::c_long = 457;
const SYS_LISTMOUNT: libc::c_long = 458;
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

/// A line for each way: its name, and `ERRNO`, or what it gave.
pub(crate) fn run() {
    for name in ["user", "net", "ipc", "uts", "pid", "mnt", "cgroup", "time"] {
        let Ok(file) = File::open(format!("/proc/self/ns/{name}")) else { continue };
        println!("{name} owner {}", told(step(&file, NS_GET_USERNS)));
        println!("{name} parent {}", told(step(&file, NS_GET_PARENT)));
        if name == "mnt" {
            println!("{name} next {}", told(step(&file, NS_MNT_GET_NEXT)));
            println!("{name} previous {}", told(step(&file, NS_MNT_GET_PREV)));
        }
        if name == "user" {
            let mut uid = 0u32;
            // SAFETY: the kernel writes one u32, which lives during the call.
            let result = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_OWNER_UID, &raw mut uid) };
            println!("{name} owner-uid {}", if result == 0 { uid.to_string() } else { last() });
        }
    }
    mounts();
}

/// Mounts seen by number: every one that answers must be of the own mount namespace.
fn mounts() {
    let mut room = [0u64; 32];
    // SAFETY: path and room live during the call; `struct statx` has 256 bytes.
    let result = unsafe {
        libc::syscall(libc::SYS_statx, libc::AT_FDCWD, c"/".as_ptr(), 0, STATX_MNT_ID_UNIQUE, room.as_mut_ptr())
    };
    if result != 0 || room[0] as u32 & STATX_MNT_ID_UNIQUE == 0 {
        return println!("mounts not numbered here");
    }
    // `stx_mnt_id` is at byte 144.
    let own = room[18];
    let mine = list(u64::MAX).unwrap_or_default();
    let foreign = (own.saturating_sub(4000)..own + 4000).filter(|id| !mine.contains(id) && stat(*id)).count();
    let listed = (own.saturating_sub(4000)..own + 4000).filter(|id| !mine.contains(id) && list(*id).is_ok()).count();
    let told = mine.iter().filter(|id| stat(**id)).count() == mine.len();
    println!("mounts own-told {told} foreign-told {foreign} foreign-listed {listed}");
}

fn request(id: u64, parameter: u64) -> [u64; 4] {
    // `struct mnt_id_req`: size 24 and a spare word, the mount's id, the parameter.
    [24, id, parameter, 0]
}

fn stat(id: u64) -> bool {
    let request = request(id, 1);
    let mut room = [0u64; 128];
    // SAFETY: request and room live during the call.
    unsafe { libc::syscall(SYS_STATMOUNT, request.as_ptr(), room.as_mut_ptr(), 1024, 0) == 0 }
}

fn list(id: u64) -> io::Result<Vec<u64>> {
    let request = request(id, 0);
    let mut room = vec![0u64; 512];
    // SAFETY: request and room live during the call.
    let count = unsafe { libc::syscall(SYS_LISTMOUNT, request.as_ptr(), room.as_mut_ptr(), 512, 0) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    room.truncate(count);
    Ok(room)
}

fn step(file: &File, request: libc::c_ulong) -> Option<OwnedFd> {
    let mut info = [0u64; 2];
    // SAFETY: the request takes nothing, or room for two words; a descriptor that it gives is nobody else's.
    unsafe {
        let fd = libc::ioctl(file.as_raw_fd(), request, info.as_mut_ptr());
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
    }
}

fn told(fd: Option<OwnedFd>) -> String {
    let Some(fd) = fd else { return last() };
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let own = std::fs::read_link("/proc/self/ns/user").ok();
    match link {
        Ok(path) if Some(&path) == own.as_ref() => "own-user".to_owned(),
        Ok(path) => path.display().to_string(),
        Err(error) => error.to_string(),
    }
}

fn last() -> String {
    super::isolate::Outcome::Refused(io::Error::last_os_error().raw_os_error().unwrap_or(0)).to_string()
}
