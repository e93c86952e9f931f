//! What a container may do, as data.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cgroup::{Access, DeviceKind, DeviceRule};

/// Security settings of one container. The default is the default profile, never "nothing".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// Bounding, permitted and effective capabilities for uid 0 (`CAP_CHOWN` …); empty inheritable and ambient sets.
    pub capabilities: Vec<String>,
    /// `no_new_privs`.
    pub no_new_privileges: bool,
    /// The seccomp filter.
    pub seccomp: Seccomp,
    /// Paths hidden; a `*` stands for any part of one name.
    pub masked_paths: Vec<String>,
    /// Paths made read-only.
    pub readonly_paths: Vec<String>,
    /// /sys and the control groups are writable, as far as the kernel lets the container's root.
    pub writable_kernel: bool,
    /// The AppArmor profile that its programs begin in; without one that of the agent, as a rule none.
    pub apparmor: Option<String>,
    /// Every device of the host is in /dev and may be used, as far as the kernel lets the container's root.
    pub host_devices: bool,
    /// Devices of the host's beside those that every container has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
}

/// A device of the host's that a container may use; its node is the container's own, and its user's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Absolute path in the container, below /dev; directories are made when missing.
    pub path: PathBuf,
    /// Character or block.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// What may be done with it; what the node's mode would allow beyond that, the kernel refuses.
    pub access: Access,
    /// The node's permission bits.
    pub mode: u32,
}

impl Device {
    /// As the control groups know it.
    #[must_use]
    pub fn rule(&self) -> DeviceRule {
        DeviceRule { kind: self.kind, major: Some(self.major), minor: Some(self.minor), access: self.access }
    }
}

/// Which seccomp filter applies.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seccomp {
    /// The runtime's own default table.
    #[default]
    RuntimeDefault,
    /// None at all (by host policy only).
    Unconfined,
    /// A program of the operator's, made by [`crate::seccomp::profile`]: one number an instruction.
    Custom(Vec<u64>),
}

/// The nine capabilities that a container has by default (CRI-O's list).
pub const DEFAULT_CAPABILITIES: [&str; 9] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_KILL",
];

/// Every capability that Linux has, by number.
pub const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Paths masked by default: the union of what containerd, podman, CRI-O and the kubelet hide, and the switches of
/// kernel messages, which root of a pod without a user namespace could write.
pub const DEFAULT_MASKED_PATHS: [&str; 15] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/dynamic_debug",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/system/cpu/cpu*/thermal_throttle",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
];

/// Paths read-only by default.
pub const DEFAULT_READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

impl Default for Security {
    fn default() -> Self {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Self {
            capabilities: owned(&DEFAULT_CAPABILITIES),
            no_new_privileges: false,
            seccomp: Seccomp::RuntimeDefault,
            masked_paths: owned(&DEFAULT_MASKED_PATHS),
            readonly_paths: owned(&DEFAULT_READONLY_PATHS),
            writable_kernel: false,
            host_devices: false,
            devices: Vec::new(),
            apparmor: None,
        }
    }
}
