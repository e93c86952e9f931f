//! Which devices a container may use.

use std::fmt;

/// Character or block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Character.
    Char,
    /// Block.
    Block,
}

/// One allowed device. Written as cgroup v1 writes it, for example `c 1:3 rw`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRule {
    /// Character or block.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number; `None` for all of them.
    pub minor: Option<u32>,
    /// Some of `r`, `w` and `m` (mknod).
    pub access: &'static str,
}

const fn char_device(major: u32, minor: Option<u32>) -> DeviceRule {
    DeviceRule { kind: DeviceKind::Char, major, minor, access: "rw" }
}

/// What every container may use: null, zero, full, random, urandom, tty, console, ptmx and its terminals. Nothing may
/// be made (`m`): the runtime binds the nodes that it offers.
pub const DEFAULT_DEVICES: [DeviceRule; 9] = [
    char_device(1, Some(3)),
    char_device(1, Some(5)),
    char_device(1, Some(7)),
    char_device(1, Some(8)),
    char_device(1, Some(9)),
    char_device(5, Some(0)),
    char_device(5, Some(1)),
    char_device(5, Some(2)),
    char_device(136, None),
];

impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            DeviceKind::Char => 'c',
            DeviceKind::Block => 'b',
        };
        match self.minor {
            Some(minor) => write!(f, "{kind} {}:{minor} {}", self.major, self.access),
            None => write!(f, "{kind} {}:* {}", self.major, self.access),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DEFAULT_DEVICES;

    #[test]
    fn rules_are_written_as_the_kernel_reads_them() {
        let lines: Vec<String> = DEFAULT_DEVICES.iter().map(ToString::to_string).collect();
        assert_eq!(lines[0], "c 1:3 rw");
        assert_eq!(lines[8], "c 136:* rw");
    }
}
