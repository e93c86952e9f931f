//! Device programs in the kernel: verified once, put in charge of as many cgroups as need the same rules.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::CgroupError;
use super::device_program::assemble;
use super::devices::{DEFAULT_DEVICES, DeviceRule};
use crate::sys::device_filter;

/// A rule list that the kernel has taken as a program. It lives as long as this, or what it is in charge of.
#[derive(Debug)]
pub struct DeviceProgram {
    fd: OwnedFd,
}

impl DeviceProgram {
    /// Gives the rules to the kernel; `None` where it has no such programs.
    pub fn load(rules: &[DeviceRule]) -> Result<Option<Self>, CgroupError> {
        let program = assemble(rules).ok_or(CgroupError::NoSuchDevice)?;
        match device_filter::load(&program) {
            Ok(fd) => Ok(Some(Self { fd })),
            // Built without BPF, or without device programs.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => Ok(None),
            Err(source) => Err(CgroupError::DeviceProgram { step: "load", source }),
        }
    }

    /// That of what every container may use, for a host on which it is to be loaded once.
    pub fn usual() -> Result<Option<Self>, CgroupError> {
        Self::load(&DEFAULT_DEVICES)
    }

    /// Takes over the descriptor of a loaded program.
    pub fn adopt(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// In charge of a cgroup of the unified hierarchy, alone.
    pub(super) fn put(&self, dir: BorrowedFd<'_>) -> Result<(), CgroupError> {
        device_filter::attach(dir, &self.fd).map_err(|source| CgroupError::DeviceProgram { step: "attachment", source })
    }
}

impl AsFd for DeviceProgram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
