//! The devices of a container's /dev that its specification names.

use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, makedev, mkdirat, mknodat, statat};
use rustix::io::Errno;

use super::report::Step;
use crate::cgroup::{DEFAULT_DEVICES, DeviceKind, DeviceRule};
use crate::ids::Ids;
use crate::protocol::Refusal;
use crate::spec::{Device, User};
use crate::sys::paths;

/// What is in /dev in any case and is no device of the host's, or is mounted over it.
const OWN: [&str; 9] = ["console", "fd", "mqueue", "ptmx", "pts", "shm", "stderr", "stdin", "stdout"];

/// What a container with these devices may use: the usual ones and these, and no more of these than is asked for.
pub(crate) fn rules(devices: &[Device]) -> Vec<DeviceRule> {
    let own = devices.iter().map(Device::rule);
    DEFAULT_DEVICES.into_iter().chain(own).collect()
}

/// Makes their nodes in `dev`, as the program's user's.
pub(crate) fn add(dev: &OwnedFd, devices: &[Device], user: &User, ids: &Ids) -> Result<(), Refusal> {
    for device in devices {
        let invalid = |why: &str| Refusal::Invalid { message: format!("device {}: {why}", device.path.display()) };
        let below = device.path.strip_prefix("/dev").map_err(|_| invalid("it is not below /dev"))?;
        let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        let Some(name) = below.file_name().filter(|_| plain) else { return Err(invalid("it is no plain path")) };
        if below.iter().next().is_some_and(|first| OWN.iter().any(|own| first == *own)) {
            return Err(invalid("the container has something of its own there"));
        }
        let (Some(uid), Some(gid)) = (ids.on_host(user.uid), ids.on_host(user.gid)) else {
            return Err(invalid("its user is not one of the sandbox's"));
        };
        let parent = match below.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => Some(directory(dev, parent, ids.base())?),
            None => None,
        };
        let parent = parent.as_ref().unwrap_or(dev);
        let step = || format!("device {}", device.path.display());
        let (kind, number) = (kind_of(device.kind), makedev(device.major, device.minor));
        match mknodat(parent, name, kind, Mode::empty(), number) {
            // One of those that every container has, or named twice.
            Err(Errno::EXIST) => {
                let there = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).step(step())?;
                if (FileType::from_raw_mode(there.st_mode), there.st_rdev) != (kind, number) {
                    return Err(invalid("another device has its place"));
                }
                continue;
            }
            made => made.step(step())?,
        }
        chownat(parent, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
            .step(step())?;
        chmodat(parent, name, Mode::from_raw_mode(device.mode & 0o666), AtFlags::empty()).step(step())?;
    }
    Ok(())
}

fn kind_of(kind: DeviceKind) -> FileType {
    match kind {
        DeviceKind::Char => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
    }
}

/// The directories of a path below /dev, each made as the container's root's when missing.
fn directory(dev: &OwnedFd, path: &Path, base: u32) -> Result<OwnedFd, Refusal> {
    let step = || format!("directory /dev/{}", path.display());
    let mut directory = dev.try_clone().step(step())?;
    for part in path {
        match mkdirat(&directory, part, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                let (uid, gid) = (Some(Uid::from_raw(base)), Some(Gid::from_raw(base)));
                chownat(&directory, part, uid, gid, AtFlags::SYMLINK_NOFOLLOW).step(step())?;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error).step(step()),
        }
        let name = part.to_str().ok_or(Errno::ILSEQ).step(step())?;
        directory = paths::open_plain(&directory, name, OFlags::PATH | OFlags::DIRECTORY).step(step())?;
    }
    Ok(directory)
}
