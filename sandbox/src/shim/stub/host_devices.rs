//! The host's devices for a privileged container's /dev.
//!
//! The kernel's own list is /sys/dev: a directory for each device, whose `uevent` holds its name and, where it has one, its
//! usual mode. It is read through a mount of its own that nobody else sees; nothing of the host's /dev is needed.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, chmodat, makedev, mkdirat, mknodat, openat};
use rustix::io::Errno;

use super::report::Step;
use crate::protocol::Refusal;
use crate::sys::mount;

/// Mode of a device that asks for none: root alone.
const MODE: u32 = 0o600;
/// Made otherwise, or the container's own.
const OWN: [&str; 5] = ["console", "ptmx", "pts", "shm", "mqueue"];

/// A device as the kernel names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Device {
    name: String,
    major: u32,
    minor: u32,
    mode: u32,
}

/// Makes a node in `dev` for each device that has none there yet.
pub(crate) fn populate(dev: &OwnedFd) -> Result<(), Refusal> {
    let strict = mount::NOSUID | mount::NODEV | mount::NOEXEC | mount::RDONLY;
    let sys = mount::create("sysfs", &[], strict).step("mount of /sys for the host's devices")?;
    for (directory, kind) in [("dev/char", FileType::CharacterDevice), ("dev/block", FileType::BlockDevice)] {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let list = match openat(&sys, directory, flags, Mode::empty()) {
            Err(Errno::NOENT) => continue,
            other => other.step(format!("open of /sys/{directory}"))?,
        };
        for entry in Dir::read_from(&list).step(format!("list of /sys/{directory}"))? {
            let entry = entry.step(format!("list of /sys/{directory}"))?;
            let Ok(number) = entry.file_name().to_str() else { continue };
            if number.starts_with('.') {
                continue;
            }
            let uevent = openat(&list, format!("{number}/uevent"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            // One that went meanwhile.
            let Ok(uevent) = uevent else { continue };
            let text = std::io::read_to_string(std::fs::File::from(uevent)).unwrap_or_default();
            if let Some(device) = parse(&text) {
                make(dev, &device, kind)?;
            }
        }
    }
    Ok(())
}

fn make(dev: &OwnedFd, device: &Device, kind: FileType) -> Result<(), Refusal> {
    let step = || format!("device /dev/{}", device.name);
    for (end, _) in device.name.match_indices('/') {
        match mkdirat(dev, &device.name[..end], Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) => {}
            other => other.step(step())?,
        }
    }
    let mode = Mode::from_raw_mode(device.mode);
    match mknodat(dev, device.name.as_str(), kind, mode, makedev(device.major, device.minor)) {
        // The container's own null device and the like.
        Err(Errno::EXIST) => return Ok(()),
        other => other.step(step())?,
    }
    chmodat(dev.as_fd(), device.name.as_str(), mode, AtFlags::empty()).step(step())
}

fn parse(uevent: &str) -> Option<Device> {
    let value = |key: &str| uevent.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let name = value("DEVNAME")?;
    let plain = std::path::Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    let own = OWN.iter().any(|own| name.split('/').next() == Some(own));
    if name.is_empty() || !plain || own {
        return None;
    }
    let mode = value("DEVMODE").and_then(|mode| u32::from_str_radix(mode, 8).ok()).unwrap_or(MODE);
    let number = |key| value(key)?.parse().ok();
    Some(Device { name: name.to_owned(), major: number("MAJOR")?, minor: number("MINOR")?, mode: mode & 0o777 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_the_kernel_tells_it() {
        let device = |name: &str, major, minor, mode| Some(Device { name: name.into(), major, minor, mode });
        assert_eq!(parse("MAJOR=10\nMINOR=229\nDEVNAME=fuse\nDEVMODE=0666\n"), device("fuse", 10, 229, 0o666));
        assert_eq!(parse("MAJOR=8\nMINOR=1\nDEVNAME=sda1\nDEVTYPE=partition\n"), device("sda1", 8, 1, 0o600));
        assert_eq!(parse("MAJOR=116\nMINOR=1\nDEVNAME=snd/seq\n"), device("snd/seq", 116, 1, 0o600));
        for none in ["MAJOR=1\nMINOR=1\n", "MAJOR=1\nMINOR=1\nDEVNAME=../x\n", "MAJOR=5\nMINOR=2\nDEVNAME=ptmx\n", ""] {
            assert_eq!(parse(none), None, "{none:?}");
        }
    }
}
