//! What a process can get of another one, and of its own past.
#![allow(unsafe_code)] // raw system calls, with arguments that no crate lets through

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use super::isolate::{answer, isolated};

fn last() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Everything that /proc and the kernel offer of process `pid`; a line for each way.
pub(crate) fn peek(pid: i32) {
    let path = |name: &str| format!("/proc/{pid}/{name}");
    for name in ["exe", "cwd", "root", "fd/0", "fd/3", "ns/mnt", "ns/net", "ns/user", "ns/pid"] {
        println!("link-{name} {}", isolated(2000, || fs::read_link(path(name)).map(drop).map_err(|e| errno(&e))));
    }
    // To open the memory is to have it; of the others it is the content that counts.
    println!("read-mem {}", isolated(2000, || fs::File::open(path("mem")).map(drop).map_err(|e| errno(&e))));
    for name in ["maps", "environ", "auxv", "stack", "syscall", "io", "pagemap", "personality"] {
        println!("read-{name} {}", isolated(2000, || first_byte(&path(name))));
    }
    for name in ["root/", "cwd/", "fd/", "map_files/"] {
        println!("list-{name} {}", isolated(2000, || first_entry(&path(name))));
    }
    for name in ["mem", "oom_score_adj", "coredump_filter", "clear_refs"] {
        let open = || fs::OpenOptions::new().write(true).open(path(name)).map(drop).map_err(|e| errno(&e));
        println!("write-{name} {}", isolated(2000, open));
    }
    // SAFETY: numbers only; the words live during the calls.
    let call = |number, a: i64, b: i64| answer(unsafe { libc::syscall(number, a, b, 0, 0, 0, 0) });
    println!("ptrace-attach {}", isolated(2000, || call(libc::SYS_ptrace, 16, pid.into())));
    println!("ptrace-seize {}", isolated(2000, || call(libc::SYS_ptrace, 0x4206, pid.into())));
    println!("pidfd_getfd {}", isolated(2000, || getfd(pid)));
    println!("process_vm_readv {}", isolated(2000, || read_memory(pid)));
    println!("signal {}", isolated(2000, || call(libc::SYS_kill, pid.into(), 0)));
    println!("prlimit {}", isolated(2000, || prlimit(pid)));
}

fn first_byte(path: &str) -> Result<(), i32> {
    let mut file = fs::File::open(path).map_err(|error| errno(&error))?;
    match io::Read::read(&mut file, &mut [0; 8]) {
        Ok(0) => Err(libc::ENODATA),
        Ok(_) => Ok(()),
        Err(error) => Err(errno(&error)),
    }
}

fn first_entry(path: &str) -> Result<(), i32> {
    let mut entries = fs::read_dir(path).map_err(|error| errno(&error))?;
    match entries.next() {
        None => Err(libc::ENODATA),
        Some(entry) => entry.map(drop).map_err(|error| errno(&error)),
    }
}

fn getfd(pid: i32) -> Result<(), i32> {
    // SAFETY: numbers only.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if pidfd < 0 {
            return Err(last());
        }
        answer(libc::syscall(libc::SYS_pidfd_getfd, pidfd, 0, 0))
    }
}

fn read_memory(pid: i32) -> Result<(), i32> {
    let mut word = 0u64;
    let part = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
    // SAFETY: both parts live during the call; what is not mapped over there is told, not touched.
    let got = unsafe { libc::syscall(libc::SYS_process_vm_readv, pid, &raw const part, 1, &raw const part, 1, 0) };
    // Not mapped there, but asked: the way is open.
    if got == -1 && last() == libc::EFAULT { Ok(()) } else { answer(got) }
}

fn prlimit(pid: i32) -> Result<(), i32> {
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: the limit lives during the call.
    answer(unsafe { libc::syscall(libc::SYS_prlimit64, pid, libc::RLIMIT_NOFILE, &raw const limit, 0) })
}

/// The session keyring: its number, and whether a key called `name` is found and read through it.
pub(crate) fn keys(name: &str) {
    let name = std::ffi::CString::new(name).expect("no zero in it");
    // SAFETY: the strings and the room live during the calls.
    unsafe {
        let session = libc::syscall(libc::SYS_keyctl, 0, -3, 0);
        println!("session {}", if session < 0 { last().to_string() } else { "some".into() });
        let key = libc::syscall(libc::SYS_keyctl, 10, -3, c"user".as_ptr(), name.as_ptr(), 0);
        if key < 0 {
            return println!("search {}", last());
        }
        let mut room = [0u8; 64];
        let count = libc::syscall(libc::SYS_keyctl, 11, key, room.as_mut_ptr(), room.len());
        println!("found {}", String::from_utf8_lossy(&room[..usize::try_from(count).unwrap_or(0)]));
    }
}

/// Puts a key into the session keyring, if that can be done.
pub(crate) fn add_key(name: &str, value: &str) {
    let name = std::ffi::CString::new(name).expect("no zero in it");
    // SAFETY: the strings live during the call.
    let made =
        unsafe { libc::syscall(libc::SYS_add_key, c"user".as_ptr(), name.as_ptr(), value.as_ptr(), value.len(), -3) };
    println!("added {}", if made < 0 { last().to_string() } else { "yes".into() });
}

/// Whether a path opens, for reading and for writing.
pub(crate) fn open(path: &str) {
    let read = isolated(2000, || fs::File::open(path).map(drop).map_err(|e| errno(&e)));
    let write = isolated(2000, || fs::OpenOptions::new().write(true).open(path).map(drop).map_err(|e| errno(&e)));
    println!("read {read} write {write}");
}

/// Who runs: effective ids.
pub(crate) fn who() {
    // SAFETY: these cannot fail.
    let (uid, euid, egid) = unsafe { (libc::getuid(), libc::geteuid(), libc::getegid()) };
    println!("uid {uid} euid {euid} egid {egid}");
}

/// Types into the own terminal, as if somebody had.
pub(crate) fn type_in() {
    for byte in b"id\n" {
        // SAFETY: one byte, which lives during the call.
        let result = answer(unsafe { libc::ioctl(0, libc::TIOCSTI, byte).into() });
        println!("typed {result:?}");
    }
    // The console's own: paste into it, switch it, take it.
    for (name, request) in [("linux", libc::TIOCLINUX), ("console", libc::TIOCCONS)] {
        let mut byte = 3u8;
        // SAFETY: one byte, which lives during the call.
        println!("{name} {:?}", answer(unsafe { libc::ioctl(0, request, &raw mut byte).into() }));
    }
}

/// Dies as a program does that would leave a core file, or be looked at by a program of the host's. `limit`: what it would
/// have core files limited to.
pub(crate) fn crash(limit: u64) {
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: the limit lives during the calls; the signal, whose handler of the standard library is taken away first, ends
    // this process.
    unsafe {
        libc::syscall(libc::SYS_setrlimit, libc::RLIMIT_CORE, &raw const limit);
        libc::syscall(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, &raw const limit, std::ptr::null::<u8>());
        let mut before = limit;
        libc::syscall(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, &raw const limit, &raw mut before);
        libc::prctl(libc::PR_SET_DUMPABLE, 1);
        libc::signal(libc::SIGSEGV, libc::SIG_DFL);
        libc::raise(libc::SIGSEGV);
    }
}

/// CVE-2022-0492: a cgroup of one's own user namespace, whose `release_agent` the host's root would run.
pub(crate) fn release_agent() {
    let spaces = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP;
    println!("unshare {}", isolated(5000, || unshare(spaces)));
    for controllers in ["rdma", "pids", "memory", "cpu,cpuacct", "devices", "freezer", "name=systemd", "misc"] {
        let attempt = || {
            unshare(spaces)?;
            let options = std::ffi::CString::new(controllers).expect("no zero in it");
            // SAFETY: the strings live during the call.
            answer(unsafe {
                let (none, target, kind) = (c"none".as_ptr(), c"/tmp".as_ptr(), c"cgroup".as_ptr());
                libc::mount(none, target, kind, 0, options.as_ptr().cast()).into()
            })?;
            let agent = fs::OpenOptions::new().write(true).open("/tmp/release_agent").map_err(|e| errno(&e))?;
            // SAFETY: the bytes live during the call.
            answer(unsafe { libc::write(agent.as_raw_fd(), c"/evil".as_ptr().cast(), 5) as libc::c_long })
        };
        println!("{controllers} {}", isolated(5000, attempt));
    }
}

/// A file system that the kernel's record speaks of, mounted in a user namespace of one's own.
pub(crate) fn mount_in_own_namespace() {
    let mount = |kind: &str, options: &str| {
        unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)?;
        let (kind, options) = (std::ffi::CString::new(kind), std::ffi::CString::new(options));
        let (kind, options) = (kind.expect("no zero in it"), options.expect("no zero in it"));
        // SAFETY: the strings live during the call.
        answer(unsafe {
            libc::mount(c"none".as_ptr(), c"/tmp".as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast()).into()
        })
    };
    let overlay = "lowerdir=/bin,upperdir=/dev/shm/upper,workdir=/dev/shm/work,userxattr";
    let _ = (fs::create_dir("/dev/shm/upper"), fs::create_dir("/dev/shm/work"));
    for (kind, options) in [("overlay", overlay), ("tmpfs", ""), ("proc", ""), ("sysfs", ""), ("fuse", "fd=0")] {
        println!("{kind} {}", isolated(5000, || mount(kind, options)));
    }
}

fn unshare(flags: i32) -> Result<(), i32> {
    // SAFETY: a number only.
    answer(unsafe { libc::unshare(flags).into() })
}
