//! All that a container may see, mount, write and reach; whatever is more is a hole until somebody writes down here why not.

/// Mounts: target, file system, the part of it that is shown, attributes (without how times are kept). A cgroup v1 hierarchy
/// stands for all of them.
#[rustfmt::skip]
pub(crate) const MOUNTS: &[(&str, &str, &str, &str)] = &[
    ("/", "overlay", "/", "rw,nodev"),
    ("/proc", "proc", "/", "rw,nosuid,nodev,noexec"),
    ("/proc/bus", "proc", "/bus", "ro,nosuid,nodev,noexec"),
    ("/proc/fs", "proc", "/fs", "ro,nosuid,nodev,noexec"),
    ("/proc/irq", "proc", "/irq", "ro,nosuid,nodev,noexec"),
    ("/proc/sys", "proc", "/sys", "ro,nosuid,nodev,noexec"),
    ("/proc/sysrq-trigger", "proc", "/sysrq-trigger", "ro,nosuid,nodev,noexec"),
    // Hidden directories: the empty one that all share. Hidden files: the container's own null device.
    ("/proc/acpi", "tmpfs", "/parts/stage/empty", "ro,nosuid,nodev,noexec"),
    ("/proc/asound", "tmpfs", "/parts/stage/empty", "ro,nosuid,nodev,noexec"),
    ("/proc/dynamic_debug", "tmpfs", "/parts/stage/empty", "ro,nosuid,nodev,noexec"),
    ("/proc/scsi", "tmpfs", "/parts/stage/empty", "ro,nosuid,nodev,noexec"),
    ("/proc/interrupts", "tmpfs", "/dev/null", "rw,nosuid"),
    ("/proc/kcore", "tmpfs", "/dev/null", "rw,nosuid"),
    ("/proc/keys", "tmpfs", "/dev/null", "rw,nosuid"),
    ("/proc/latency_stats", "tmpfs", "/dev/null", "rw,nosuid"),
    ("/proc/sched_debug", "tmpfs", "/dev/null", "rw,nosuid"),
    ("/proc/timer_list", "tmpfs", "/dev/null", "rw,nosuid"),
    ("/proc/timer_stats", "tmpfs", "/dev/null", "rw,nosuid"),
    ("/sys", "sysfs", "/", "ro,nosuid,nodev,noexec"),
    ("/sys/devices/system/cpu/*/thermal_throttle", "tmpfs", "/parts/stage/empty", "ro,nosuid,nodev,noexec"),
    ("/sys/devices/virtual/powercap", "tmpfs", "/parts/stage/empty", "ro,nosuid,nodev,noexec"),
    ("/sys/firmware", "tmpfs", "/parts/stage/empty", "ro,nosuid,nodev,noexec"),
    ("/sys/fs/selinux", "tmpfs", "/parts/stage/empty", "ro,nosuid,nodev,noexec"),
    ("/sys/fs/cgroup", "tmpfs", "/parts/cgroups", "ro,nosuid,nodev,noexec"),
    ("/sys/fs/cgroup", "cgroup2", "/", "ro,nosuid,nodev,noexec"),
    ("/sys/fs/cgroup/*", "cgroup", "/", "ro,nosuid,nodev,noexec"),
    // Device nodes live here, so no nodev; nobody in the container can make one. Of the pod's file system in memory, as shared
    // memory is.
    ("/dev", "tmpfs", "/dev", "rw,nosuid"),
    ("/dev/pts", "devpts", "/", "rw,nosuid,noexec"),
    ("/dev/shm", "tmpfs", "/shm", "rw,nosuid,nodev,noexec"),
    ("/dev/mqueue", "mqueue", "/", "rw,nosuid,nodev,noexec"),
];

/// Paths outside of the image's own that can be written, besides those of the process itself.
pub(crate) const WRITABLE: &[&str] = &[
    // The container's own.
    "/dev/",
    "/dev/mqueue/",
    "/dev/pts/",
    "/dev/shm/",
    // Whoever waits for pressure writes for what; without CAP_SYS_RESOURCE two seconds at the least.
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
    "/proc/pressure/irq",
];

/// Files of the process's own that can be written: of /proc/N and /proc/N/task/N.
#[rustfmt::skip]
pub(crate) const OWN_PROCESS: &[&str] = &[
    // Labels of a security module, where there is one that lets them be changed.
    "attr/current", "attr/exec", "attr/fscreate", "attr/keycreate", "attr/sockcreate", "attr/apparmor/current",
    "attr/apparmor/exec", "attr/smack/current",
    // Its own memory, name and bookkeeping.
    "autogroup", "clear_refs", "comm", "coredump_filter", "mem", "sched", "timerslack_ns", "make-it-fail", "fail-nth",
    // Written once, by the shim; the kernel refuses a second time.
    "gid_map", "projid_map", "uid_map", "setgroups", "loginuid", "timens_offsets",
    // Raised, never lowered, without CAP_SYS_RESOURCE.
    "oom_adj", "oom_score_adj",
];

/// Device nodes: path, kind and number. All of them open but the terminal of who has none.
#[rustfmt::skip]
pub(crate) const DEVICES: &[&str] = &[
    "/dev/full c 1:7", "/dev/null c 1:3", "/dev/pts/ptmx c 5:2", "/dev/random c 1:8", "/dev/tty c 5:0",
    "/dev/urandom c 1:9", "/dev/zero c 1:5",
    // The null device over what is hidden.
    "/proc/interrupts c 1:3", "/proc/kcore c 1:3", "/proc/keys c 1:3", "/proc/latency_stats c 1:3",
    "/proc/sched_debug c 1:3", "/proc/timer_list c 1:3", "/proc/timer_stats c 1:3",
];

/// Capabilities, as bits: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE.
pub(crate) const CAPABILITIES: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10;

/// System calls that the filter lets through to the kernel, by number (x86-64), as ranges. Four answer by their arguments:
/// socket 41, socketpair 53, clone 56, personality 135.
#[rustfmt::skip]
pub(crate) const CALLS: &[(u32, u32)] = &[
    (0, 102), (104, 133), (135, 135), (137, 138), (140, 152), (157, 160), (162, 162), (186, 211), (213, 226),
    (228, 235), (240, 245), (247, 247), (251, 255), (257, 271), (273, 278), (280, 297), (299, 299), (301, 303),
    (305, 307), (309, 309), (314, 319), (322, 322), (324, 335), (424, 424), (434, 434), (436, 437), (439, 439),
    (441, 441), (444, 449), (451, 458), (462, 466), (468, 469),
];

/// Calls that the filter knows and refuses with EPERM; `clone3` (435) and whatever is in neither list is ENOSYS.
#[rustfmt::skip]
pub(crate) const DENIED: &[(u32, u32)] = &[
    (103, 103), (134, 134), (136, 136), (139, 139), (153, 156), (161, 161), (163, 185), (212, 212), (227, 227),
    (236, 239), (246, 246), (248, 250), (256, 256), (272, 272), (279, 279), (298, 298), (300, 300), (304, 304),
    (308, 308), (310, 313), (320, 321), (323, 323), (425, 433), (438, 438), (440, 440), (442, 443), (450, 450),
    (459, 461), (467, 467),
];

/// `uprobe`, which the kernel lets past every filter (Linux 6.18): ENXIO unless it stands where a probe was set.
pub(crate) const PAST_EVERY_FILTER: u32 = 336;
