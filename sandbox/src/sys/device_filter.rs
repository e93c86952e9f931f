//! Device programs of control groups: loading, attaching, replacing.
#![allow(unsafe_code)] // bpf(2) has no safe wrapper

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One eBPF instruction, as the kernel wants it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u8,
    /// Source register << 4 | target register.
    pub registers: u8,
    /// Of a jump or of a memory access.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 1 << 1;
const REPLACE: u32 = 1 << 2;
/// The kernel's own limit of programs at one place.
const MOST: usize = 64;

/// `BPF_PROG_LOAD`'s part of `union bpf_attr`, up to what is needed; the kernel takes what is missing as zero.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// That of `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
}

/// That of `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

/// That of `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// Plain structs of integers, laid out as the kernel's for their command.
trait Attributes {}
impl Attributes for Load {}
impl Attributes for Attach {}
impl Attributes for Query {}
impl Attributes for ById {}

/// The call itself.
///
/// # Safety
/// Every address in `attributes` must be of memory that is valid, for as long as the call lasts, for what `command` does
/// with it.
unsafe fn bpf<T: Attributes>(command: libc::c_int, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: `attributes` is an exclusive borrow of `size_of::<T>()` bytes, which the kernel reads and (for a query) writes;
    // the caller answers for the addresses in it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// Loads a device program. The kernel verifies it; it lives as long as the descriptor and whatever it is attached to.
pub fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut attributes = Load {
        kind: TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "device program is too long"))?,
        instructions: program.as_ptr() as u64,
        licence: c"Apache-2.0".as_ptr() as u64,
        name: *b"nodeless_device\0",
        ..Load::default()
    };
    // SAFETY: `instructions` is that many instructions of the kernel's layout, `licence` a string that ends with 0; both
    // outlive the call, and the kernel copies them.
    let fd = unsafe { bpf(PROG_LOAD, &mut attributes)? };
    // SAFETY: on success the kernel gave a fresh descriptor (close-on-exec), which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `program` the only device program of a v2 cgroup. Where there is one, it is replaced in one step, so that at no
/// time nothing, or both, decide. Programs of its ancestors decide as well, as before.
pub fn attach(cgroup: BorrowedFd<'_>, program: &OwnedFd) -> io::Result<()> {
    let there = attached(cgroup)?;
    let (flags, replaced) = match there.as_slice() {
        [one] => (ALLOW_MULTI | REPLACE, one.as_raw_fd() as u32),
        _ => (ALLOW_MULTI, 0),
    };
    let mut attributes = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_fd().as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        flags,
        replaced,
    };
    // SAFETY: no address is in it.
    unsafe { bpf(PROG_ATTACH, &mut attributes)? };
    if there.len() > 1 {
        for old in &there {
            detach(cgroup, old)?;
        }
    }
    Ok(())
}

fn detach(cgroup: BorrowedFd<'_>, program: &OwnedFd) -> io::Result<()> {
    let mut attributes = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        ..Attach::default()
    };
    // SAFETY: no address is in it.
    unsafe { bpf(PROG_DETACH, &mut attributes) }.map(drop)
}

/// The device programs of a cgroup itself.
pub fn attached(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0u32; MOST];
    let mut attributes = Query {
        target: cgroup.as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        ids: ids.as_mut_ptr() as u64,
        count: MOST as u32,
        ..Query::default()
    };
    // SAFETY: `ids` is room for `count` numbers and outlives the call.
    unsafe { bpf(PROG_QUERY, &mut attributes)? };
    ids.iter().take(attributes.count as usize).map(|id| by_id(*id)).collect()
}

fn by_id(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: no address is in it.
    let fd = unsafe { bpf(PROG_GET_FD_BY_ID, &mut ById { id, ..ById::default() })? };
    // SAFETY: on success the kernel gave a fresh descriptor (close-on-exec), which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
