//! Each thing that a container must not be able to ask of the kernel, really asked.
//!
//! Prints a line for each attempt: its name and what became of it.
#![allow(unsafe_code)] // raw system calls, with arguments that no crate lets through

use std::arch::asm;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::isolate::{answer, isolated};

type Attempt = (&'static str, fn() -> Result<(), i32>);

/// A system call by its number, with up to six arguments.
macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {
        // SAFETY: every pointer given is null, or of something that lives during the call.
        answer(unsafe { libc::syscall($number as libc::c_long $(, $argument)*) })
    };
}

const NULL: *const libc::c_void = std::ptr::null();

#[rustfmt::skip]
const ATTEMPTS: &[Attempt] = &[
    // Namespaces.
    ("unshare-user", || call!(libc::SYS_unshare, libc::CLONE_NEWUSER)),
    ("unshare-cgroup", || call!(libc::SYS_unshare, libc::CLONE_NEWCGROUP)),
    ("unshare-mount", || call!(libc::SYS_unshare, libc::CLONE_NEWNS)),
    ("unshare-net", || call!(libc::SYS_unshare, libc::CLONE_NEWNET)),
    ("unshare-pid", || call!(libc::SYS_unshare, libc::CLONE_NEWPID)),
    ("unshare-ipc", || call!(libc::SYS_unshare, libc::CLONE_NEWIPC)),
    ("unshare-uts", || call!(libc::SYS_unshare, libc::CLONE_NEWUTS)),
    ("unshare-time", || call!(libc::SYS_unshare, 0x80)),
    ("unshare-files", || call!(libc::SYS_unshare, libc::CLONE_FILES)),
    ("clone-user", || clone_child(libc::CLONE_NEWUSER)),
    ("clone-mount", || clone_child(libc::CLONE_NEWNS)),
    ("clone-net", || clone_child(libc::CLONE_NEWNET)),
    ("clone3", || call!(libc::SYS_clone3, NULL, 0)),
    ("setns-own-net", || setns("/proc/self/ns/net")),
    ("setns-own-mnt", || setns("/proc/self/ns/mnt")),
    ("setns-own-user", || setns("/proc/self/ns/user")),
    ("setns-by-pidfd", || {
        let pidfd = opened(call_fd(libc::SYS_pidfd_open, [std::process::id().into(), 0]))?;
        call!(libc::SYS_setns, pidfd.as_raw_fd(), libc::CLONE_NEWNET)
    }),
    // Mounts.
    ("mount-tmpfs", || mount("none", "/tmp", "tmpfs", 0, "")),
    ("mount-proc", || mount("none", "/tmp", "proc", 0, "")),
    ("mount-sysfs", || mount("none", "/tmp", "sysfs", 0, "")),
    ("mount-cgroup", || mount("none", "/tmp", "cgroup", 0, "pids")),
    ("mount-cgroup2", || mount("none", "/tmp", "cgroup2", 0, "")),
    ("mount-overlay", || mount("none", "/tmp", "overlay", 0, "lowerdir=/bin:/etc")),
    ("mount-bind", || mount("/proc", "/tmp", "", libc::MS_BIND | libc::MS_REC, "")),
    ("mount-remount-rw", || mount("none", "/sys", "", libc::MS_REMOUNT | libc::MS_BIND, "")),
    ("mount-shared", || mount("none", "/", "", libc::MS_SHARED | libc::MS_REC, "")),
    ("mount-move", || mount("/proc", "/tmp", "", libc::MS_MOVE, "")),
    ("umount-proc-sys", || umount("/proc/sys")),
    ("umount-sys", || umount("/sys")),
    ("umount-dev-shm", || umount("/dev/shm")),
    ("pivot_root", || call!(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr())),
    ("chroot", || call!(libc::SYS_chroot, c"/tmp".as_ptr())),
    ("fsopen-tmpfs", || call!(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0)),
    ("fsconfig", || call!(libc::SYS_fsconfig, -1, 6, NULL, NULL, 0)),
    ("fsmount", || call!(libc::SYS_fsmount, -1, 0, 0)),
    ("fspick", || call!(libc::SYS_fspick, libc::AT_FDCWD, c"/proc".as_ptr(), 0)),
    ("open_tree-clone", || call!(libc::SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), 1)),
    ("move_mount", || call!(libc::SYS_move_mount, libc::AT_FDCWD, c"/proc".as_ptr(), libc::AT_FDCWD, c"/tmp".as_ptr(), 0)),
    ("mount_setattr", || {
        let clear: [u64; 4] = [0, 1, 0, 0];
        call!(libc::SYS_mount_setattr, libc::AT_FDCWD, c"/sys".as_ptr(), 0, clear.as_ptr(), 32)
    }),
    ("swapon", || call!(libc::SYS_swapon, c"/tmp/swap".as_ptr(), 0)),
    ("swapoff", || call!(libc::SYS_swapoff, c"/tmp/swap".as_ptr())),
    ("quotactl", || call!(libc::SYS_quotactl, 0x0080_0007_u32 << 8, c"/dev/null".as_ptr(), 0, NULL)),
    ("acct", || call!(libc::SYS_acct, c"/etc/passwd".as_ptr())),
    // The kernel's machinery.
    ("io_uring_setup", || { let room = [0u8; 120]; call!(libc::SYS_io_uring_setup, 8, room.as_ptr()) }),
    ("io_uring_enter", || call!(libc::SYS_io_uring_enter, -1, 0, 0, 0, NULL, 0)),
    ("io_uring_register", || call!(libc::SYS_io_uring_register, -1, 0, NULL, 0)),
    ("bpf-map", || { let attributes = [2u32, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0]; call!(libc::SYS_bpf, 0, attributes.as_ptr(), 48) }),
    ("bpf-program", || { let attributes = [0u8; 128]; call!(libc::SYS_bpf, 5, attributes.as_ptr(), 128) }),
    ("perf_event_open", || {
        let mut attributes = [0u8; 128];
        attributes[0] = 1;
        attributes[4] = 128;
        call!(libc::SYS_perf_event_open, attributes.as_ptr(), 0, -1, -1, 0)
    }),
    ("keyctl", || call!(libc::SYS_keyctl, 0, -3, 0)),
    ("add_key", || call!(libc::SYS_add_key, c"user".as_ptr(), c"mine".as_ptr(), c"x".as_ptr(), 1, -3)),
    ("request_key", || call!(libc::SYS_request_key, c"user".as_ptr(), c"mine".as_ptr(), NULL, -3)),
    ("userfaultfd", || call!(libc::SYS_userfaultfd, 0)),
    ("userfaultfd-user-mode", || call!(libc::SYS_userfaultfd, 1)),
    ("process_vm_readv", || { let mut word = 0u64; vm(libc::SYS_process_vm_readv, &raw mut word) }),
    ("process_vm_writev", || { let mut word = 0u64; vm(libc::SYS_process_vm_writev, &raw mut word) }),
    ("process_madvise", || call!(libc::SYS_process_madvise, -1, NULL, 0, 0, 0)),
    ("pidfd_getfd", || call!(libc::SYS_pidfd_getfd, -1, 0, 0)),
    ("kcmp", || call!(libc::SYS_kcmp, std::process::id(), std::process::id(), 0, 0, 0)),
    ("kexec_load", || call!(libc::SYS_kexec_load, 0, 0, NULL, 0)),
    ("kexec_file_load", || call!(libc::SYS_kexec_file_load, -1, -1, 0, NULL, 0)),
    ("init_module", || call!(libc::SYS_init_module, NULL, 0, c"".as_ptr())),
    ("finit_module", || call!(libc::SYS_finit_module, -1, c"".as_ptr(), 0)),
    ("delete_module", || call!(libc::SYS_delete_module, c"nothing".as_ptr(), 0)),
    ("open_by_handle_at", open_by_handle),
    ("fanotify_init", || call!(libc::SYS_fanotify_init, 0, 0)),
    ("lookup_dcookie", || call!(libc::SYS_lookup_dcookie, 0, NULL, 0)),
    ("reboot", || call!(libc::SYS_reboot, 0xfee1_dead_u32, 0x2812_1969, 0, NULL)),
    ("syslog-read-all", || { let mut room = [0u8; 64]; call!(libc::SYS_syslog, 3, room.as_mut_ptr(), 64) }),
    ("settimeofday", || call!(libc::SYS_settimeofday, NULL, NULL)),
    ("clock_settime", || { let never = [0i64, -1]; call!(libc::SYS_clock_settime, 0, never.as_ptr()) }),
    ("sethostname", || call!(libc::SYS_sethostname, c"other".as_ptr(), 5)),
    ("setdomainname", || call!(libc::SYS_setdomainname, c"other".as_ptr(), 5)),
    ("vhangup", || call!(libc::SYS_vhangup)),
    ("iopl", || call!(libc::SYS_iopl, 3)),
    ("ioperm", || call!(libc::SYS_ioperm, 0x80, 1, 1)),
    ("modify_ldt", || { let mut room = [0u8; 64]; call!(libc::SYS_modify_ldt, 0, room.as_mut_ptr(), 64) }),
    ("move_pages", || call!(libc::SYS_move_pages, 0, 0, NULL, NULL, NULL, 0)),
    ("migrate_pages", || call!(libc::SYS_migrate_pages, 0, 0, NULL, NULL)),
    ("mbind", || call!(libc::SYS_mbind, NULL, 0, 0, NULL, 0, 0)),
    ("set_mempolicy", || call!(libc::SYS_set_mempolicy, 0, NULL, 0)),
    ("nfsservctl", || call!(libc::SYS_nfsservctl, 0, NULL, NULL)),
    ("personality-no-randomisation", || call!(libc::SYS_personality, 0x004_0000)),
    ("personality-read-implies-exec", || call!(libc::SYS_personality, 0x040_0000)),
    ("personality-mmap-page-zero", || call!(libc::SYS_personality, 0x010_0000)),
    ("personality-query", || call!(libc::SYS_personality, 0xffff_ffff_u32)),
    ("unknown-number-600", || call!(600)),
    ("unknown-number-100000", || call!(100_000)),
    ("map-page-zero", || {
        let at = call_fd(libc::SYS_mmap, [0, 4096, 3, i64::from(libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS), -1, 0]);
        if at == -1 { Err(last()) } else { Ok(()) }
    }),
    // Foreign entries.
    ("int80-getpid", || foreign(20, 0)),
    ("int80-socketcall", || foreign(102, 1)),
    ("int80-unshare", || foreign(310, libc::CLONE_NEWUSER)),
    ("int80-keyctl", || foreign(288, 0)),
    ("x32-getpid", || call!(0x4000_0000_i64 | libc::SYS_getpid)),
    ("x32-ptrace", || call!(0x4000_0000_i64 | 521, 0, 0, 0, 0)),
    ("x32-unshare", || call!(0x4000_0000_i64 | libc::SYS_unshare, libc::CLONE_NEWUSER)),
    // Privileges of the own process.
    ("lower-oom_score_adj", lower_oom_score),
    ("raise-hard-open-files", || limit(libc::RLIMIT_NOFILE)),
    ("raise-hard-core", || limit(libc::RLIMIT_CORE)),
    ("real-time-priority", || {
        let priority = 50i32;
        call!(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, &raw const priority)
    }),
    ("nice-minus-20", || call!(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, -20)),
    ("io-class-real-time", || call!(libc::SYS_ioprio_set, 1, 0, 1 << 13)),
    ("lock-all-memory", || {
        let none = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        call!(libc::SYS_prlimit64, 0, libc::RLIMIT_MEMLOCK, &raw const none, NULL)
    }),
    ("write-uid_map", || write("/proc/self/uid_map", b"0 0 4294967295")),
    // Device nodes.
    ("mknod-memory", || mknod("/tmp/mem", libc::S_IFCHR, 1, 1)),
    ("mknod-disk", || mknod("/tmp/disk", libc::S_IFBLK, 8, 0)),
    ("mknod-tun", || mknod("/tmp/tun", libc::S_IFCHR, 10, 200)),
    ("mknod-null-in-dev", || mknod("/dev/other", libc::S_IFCHR, 1, 3)),
    // The kernel's knobs.
    ("core_pattern", || open_for_writing("/proc/sys/kernel/core_pattern")),
    ("modprobe", || open_for_writing("/proc/sys/kernel/modprobe")),
    ("panic", || open_for_writing("/proc/sys/kernel/panic")),
    ("ns_last_pid", || open_for_writing("/proc/sys/kernel/ns_last_pid")),
    ("hostname-by-file", || open_for_writing("/proc/sys/kernel/hostname")),
    ("ip_forward", || open_for_writing("/proc/sys/net/ipv4/ip_forward")),
    ("binfmt_misc", || open_for_writing("/proc/sys/fs/binfmt_misc/register")),
    ("overcommit", || open_for_writing("/proc/sys/vm/overcommit_memory")),
    ("drop_caches", || open_for_writing("/proc/sys/vm/drop_caches")),
    ("sysrq-trigger", || open_for_writing("/proc/sysrq-trigger")),
    ("irq-affinity", || open_for_writing("/proc/irq/default_smp_affinity")),
    ("uevent_helper", || open_for_writing("/sys/kernel/uevent_helper")),
    ("sys-uevent", || open_for_writing("/sys/class/mem/null/uevent")),
    ("sys-profiling", || open_for_writing("/sys/kernel/profiling")),
    ("kcore", || read_first("/proc/kcore")),
    ("kmsg", || read_first("/proc/kmsg")),
    ("kpagemap", || read_first("/proc/kpagecount")),
    ("slabinfo", || read_first("/proc/slabinfo")),
    ("timer_list", || read_first("/proc/timer_list")),
    ("keys", || read_first("/proc/keys")),
    ("interrupts", || read_first("/proc/interrupts")),
    ("sched_debug", || read_first("/proc/sched_debug")),
];

/// Runs them all.
pub(crate) fn run() {
    for (name, attempt) in ATTEMPTS {
        println!("{name} {}", isolated(2000, attempt));
    }
}

/// Every socket family and kind: those that a socket can be had of.
pub(crate) fn families() {
    let kinds = [("stream", 1), ("dgram", 2), ("raw", 3), ("rdm", 4), ("seqpacket", 5), ("packet", 10)];
    for family in 0..=64 {
        for (name, kind) in kinds {
            let made = isolated(2000, || call!(libc::SYS_socket, family, kind, 0));
            println!("{family} {name} {made}");
        }
    }
    for family in [2, 10] {
        for (name, kind, protocol) in [("icmp-raw", 3, 1), ("udp-raw", 3, 255), ("ping", 2, 1), ("ping6", 2, 58)] {
            println!("{family} {name} {}", isolated(2000, || call!(libc::SYS_socket, family, kind, protocol)));
        }
    }
}

fn last() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn call_fd<const N: usize>(number: libc::c_long, arguments: [i64; N]) -> libc::c_long {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&arguments);
    // SAFETY: numbers only, no pointers.
    unsafe { libc::syscall(number, all[0], all[1], all[2], all[3], all[4], all[5]) }
}

fn opened(fd: libc::c_long) -> Result<OwnedFd, i32> {
    // SAFETY: the kernel gave this descriptor just now, to nobody else.
    if fd < 0 { Err(last()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }) }
}

fn text(text: &str) -> CString {
    CString::new(text).expect("no zero in it")
}

fn clone_child(flags: i32) -> Result<(), i32> {
    let child = call_fd(libc::SYS_clone, [i64::from(flags | libc::SIGCHLD), 0, 0, 0, 0]);
    match child {
        -1 => Err(last()),
        // SAFETY: takes any number.
        0 => unsafe { libc::_exit(0) },
        _ => Ok(()),
    }
}

fn setns(path: &str) -> Result<(), i32> {
    let file = std::fs::File::open(path).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))?;
    call!(libc::SYS_setns, file.as_raw_fd(), 0)
}

fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong, options: &str) -> Result<(), i32> {
    let [source, target, kind, options] = [source, target, kind, options].map(text);
    call!(libc::SYS_mount, source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.as_ptr())
}

fn umount(target: &str) -> Result<(), i32> {
    call!(libc::SYS_umount2, text(target).as_ptr(), libc::MNT_DETACH)
}

fn vm(number: libc::c_long, word: *mut u64) -> Result<(), i32> {
    let part = libc::iovec { iov_base: word.cast(), iov_len: 8 };
    call!(number, std::process::id(), &raw const part, 1, &raw const part, 1, 0)
}

/// "Shocker": a file of the host by a handle that was guessed.
fn open_by_handle() -> Result<(), i32> {
    // `struct file_handle`: 8 bytes of handle, type 1 (inode and generation), inode 2.
    let handle: [u32; 4] = [8, 1, 2, 0];
    let etc = std::fs::File::open("/etc").map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))?;
    call!(libc::SYS_open_by_handle_at, etc.as_raw_fd(), handle.as_ptr(), libc::O_RDONLY)
}

fn mknod(path: &str, kind: libc::mode_t, major: u32, minor: u32) -> Result<(), i32> {
    call!(libc::SYS_mknodat, libc::AT_FDCWD, text(path).as_ptr(), kind | 0o666, libc::makedev(major, minor))
}

fn limit(resource: libc::__rlimit_resource_t) -> Result<(), i32> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    call!(libc::SYS_prlimit64, 0, resource, NULL, &raw mut now)?;
    now.rlim_max = now.rlim_max.saturating_add(1);
    let wanted = now.rlim_max;
    call!(libc::SYS_prlimit64, 0, resource, &raw const now, NULL)?;
    // That it was done is not always true.
    call!(libc::SYS_prlimit64, 0, resource, NULL, &raw mut now)?;
    if now.rlim_max == wanted { Ok(()) } else { Err(libc::EPERM) }
}

fn write(path: &str, bytes: &[u8]) -> Result<(), i32> {
    std::fs::write(path, bytes).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
}

/// By one: whoever started the process may have been further down.
fn lower_oom_score() -> Result<(), i32> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let score = std::fs::read_to_string(FILE).ok().and_then(|score| score.trim().parse::<i32>().ok());
    write(FILE, (score.ok_or(libc::EIO)? - 1).to_string().as_bytes())
}

fn open_for_writing(path: &str) -> Result<(), i32> {
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .map(drop)
        .map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
}

/// Whether a byte can be read: an empty file is one that hides.
fn read_first(path: &str) -> Result<(), i32> {
    let mut byte = [0];
    let mut file = std::fs::File::open(path).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))?;
    match io::Read::read(&mut file, &mut byte) {
        Ok(0) => Err(libc::ENODATA),
        Ok(_) => Ok(()),
        Err(error) => Err(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}

/// A 32-bit call by `int 0x80`.
fn foreign(number: i32, first: i32) -> Result<(), i32> {
    let mut result = number;
    // SAFETY: a system call by the old gate; the kernel keeps every register but eax, and clears r8 to r11. `rbx`, which
    // the compiler keeps for itself, is put back.
    unsafe {
        asm!(
            "push rbx",
            "mov ebx, {first:e}",
            "int 0x80",
            "pop rbx",
            first = in(reg) first,
            inout("eax") result,
            in("ecx") 0, in("edx") 0, in("esi") 0, in("edi") 0,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    if result < 0 { Err(-result) } else { Ok(()) }
}
