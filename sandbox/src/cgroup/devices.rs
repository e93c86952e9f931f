//! Which devices a container may use.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Character or block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// Character.
    Char,
    /// Block.
    Block,
}

/// What may be done with a device: any of reading, writing and making its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Access(u8);

impl Access {
    /// Its node may be made (`m`).
    pub const MKNOD: Self = Self(1);
    /// It may be read (`r`).
    pub const READ: Self = Self(2);
    /// It may be written (`w`).
    pub const WRITE: Self = Self(4);
    /// Both, and no node may be made: what is offered is bound, never made by the container.
    pub const READ_WRITE: Self = Self::READ.and(Self::WRITE);
    /// Everything.
    pub const ALL: Self = Self::READ_WRITE.and(Self::MKNOD);

    /// The letters and the bits, in the order in which they are written. The bits are the kernel's (`BPF_DEVCG_ACC_*`).
    const LETTERS: [(char, Self); 3] = [('r', Self::READ), ('w', Self::WRITE), ('m', Self::MKNOD)];

    /// Both of two.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The kernel's bits (`BPF_DEVCG_ACC_*`).
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// From letters of `rwm`, each at most once, at least one.
    pub fn parse(letters: &str) -> Option<Self> {
        let mut bits = 0;
        for letter in letters.chars() {
            let (_, access) = Self::LETTERS.iter().find(|(known, _)| *known == letter)?;
            if bits & access.0 != 0 {
                return None;
            }
            bits |= access.0;
        }
        (bits != 0).then_some(Self(bits))
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Self::LETTERS.iter().filter(|(_, one)| self.0 & one.0 != 0).try_for_each(|(letter, _)| write!(f, "{letter}"))
    }
}

impl From<Access> for String {
    fn from(access: Access) -> Self {
        access.to_string()
    }
}

impl TryFrom<String> for Access {
    type Error = String;

    fn try_from(letters: String) -> Result<Self, String> {
        Self::parse(&letters).ok_or_else(|| format!("{letters:?} is no device access: some of r, w and m are"))
    }
}

/// One allowed device. Written as cgroup v1 writes it, for example `c 1:3 rw`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRule {
    /// Character or block.
    pub kind: DeviceKind,
    /// Major number; `None` for all of them.
    pub major: Option<u32>,
    /// Minor number; `None` for all of them.
    pub minor: Option<u32>,
    /// What may be done with it.
    pub access: Access,
}

impl DeviceRule {
    /// This rule alone allows all of `access` to that device.
    pub fn allows(&self, kind: DeviceKind, major: u32, minor: u32, access: Access) -> bool {
        self.kind == kind
            && self.major.is_none_or(|own| own == major)
            && self.minor.is_none_or(|own| own == minor)
            && access.0 & !self.access.0 == 0
    }
}

const fn char_device(major: u32, minor: Option<u32>) -> DeviceRule {
    DeviceRule { kind: DeviceKind::Char, major: Some(major), minor, access: Access::READ_WRITE }
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

/// Every device there is, to do anything with (privileged containers).
pub const EVERY_DEVICE: [DeviceRule; 2] = [
    DeviceRule { kind: DeviceKind::Char, major: None, minor: None, access: Access::ALL },
    DeviceRule { kind: DeviceKind::Block, major: None, minor: None, access: Access::ALL },
];

/// Rules for the same device as one rule, the order of first mention kept: asking for reading and writing at once is
/// then answered by what both allow together, on every kind of host.
pub(super) fn merged(rules: &[DeviceRule]) -> Vec<DeviceRule> {
    let mut merged: Vec<DeviceRule> = Vec::with_capacity(rules.len());
    for rule in rules {
        let same = |m: &&mut DeviceRule| (m.kind, m.major, m.minor) == (rule.kind, rule.major, rule.minor);
        match merged.iter_mut().find(same) {
            Some(there) => there.access = there.access.and(rule.access),
            None => merged.push(*rule),
        }
    }
    merged
}

impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            DeviceKind::Char => 'c',
            DeviceKind::Block => 'b',
        };
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        write!(f, "{kind} {}:{} {}", number(self.major), number(self.minor), self.access)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_written_as_the_kernel_reads_them() {
        let lines: Vec<String> = DEFAULT_DEVICES.iter().chain(&EVERY_DEVICE).map(ToString::to_string).collect();
        assert_eq!(lines[0], "c 1:3 rw");
        assert_eq!(lines[8], "c 136:* rw");
        assert_eq!(lines[9..], ["c *:* rwm", "b *:* rwm"]);
    }

    #[test]
    fn access_is_read_from_the_letters_it_is_written_with() {
        for letters in ["r", "w", "m", "rw", "rm", "wm", "rwm"] {
            assert_eq!(Access::parse(letters).unwrap().to_string(), letters);
        }
        assert_eq!(Access::parse("mr"), Access::parse("rm"));
        for wrong in ["", "x", "rr", "rw ", "R"] {
            assert_eq!(Access::parse(wrong), None, "{wrong:?}");
        }
        let read: Access = serde_json::from_str("\"rw\"").unwrap();
        assert_eq!((read, serde_json::to_string(&read).unwrap().as_str()), (Access::READ_WRITE, "\"rw\""));
        assert!(serde_json::from_str::<Access>("\"\"").is_err());
    }

    #[test]
    fn rules_for_one_device_are_added_up() {
        let rule = |minor, letters| DeviceRule { access: Access::parse(letters).unwrap(), ..char_device(1, minor) };
        let rules = [rule(Some(3), "r"), rule(None, "r"), rule(Some(3), "w")];
        assert_eq!(merged(&rules), [rule(Some(3), "rw"), rule(None, "r")]);
    }
}
