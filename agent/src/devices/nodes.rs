//! Units into device nodes, as the host has them when a container is started.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use sandbox::cgroup::DeviceKind;
use sandbox::spec::Device;

use super::policy::Policy;

/// Why a container cannot have its devices now.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The agent was started anew with another policy.
    #[error("the device policy of this host offers {resource} as this pod has it no more")]
    NotOffered {
        /// Which resource.
        resource: String,
    },
    /// It is not there, or something else is.
    #[error("device {path:?} of {resource} is not there any more")]
    Gone {
        /// Which resource.
        resource: String,
        /// Where it was.
        path: PathBuf,
    },
    /// Nobody could say.
    #[error("could not look at device {path:?} of {resource}")]
    Look {
        /// Which resource.
        resource: String,
        /// Where it should be.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Two devices would have one path.
    #[error("two devices are to be {path:?} in the container")]
    Twice {
        /// Where.
        path: PathBuf,
    },
}

/// Kind (is it a block device) and number of what is at a path; `None` where nothing is, or no device.
pub(super) fn number_of(path: &Path) -> io::Result<Option<(bool, u64)>> {
    match std::fs::metadata(path) {
        Ok(found) if found.file_type().is_char_device() => Ok(Some((false, found.rdev()))),
        Ok(found) if found.file_type().is_block_device() => Ok(Some((true, found.rdev()))),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The devices of one container's units. Blocking.
pub fn nodes(policy: &Policy, units: &BTreeMap<String, BTreeSet<String>>) -> Result<Vec<Device>, NodeError> {
    let mut nodes: BTreeMap<PathBuf, Device> = BTreeMap::new();
    for (resource, units) in units {
        let not_offered = || NodeError::NotOffered { resource: resource.clone() };
        let offer = policy.offer(resource).ok_or_else(not_offered)?;
        for (path, inside) in offer.devices(units).ok_or_else(not_offered)? {
            let number = match number_of(&path) {
                Ok(found) => found.ok_or_else(|| NodeError::Gone { resource: resource.clone(), path: path.clone() })?,
                Err(source) => return Err(NodeError::Look { resource: resource.clone(), path, source }),
            };
            let mode = std::fs::metadata(&path).map_or(0, |found| found.mode());
            let mut device = Device {
                path: inside.clone(),
                kind: if number.0 { DeviceKind::Block } else { DeviceKind::Char },
                major: rustix::fs::major(number.1),
                minor: rustix::fs::minor(number.1),
                access: offer.access,
                mode: mode_of(mode, &offer.access.to_string()),
            };
            if let Some(other) = nodes.get(&inside) {
                if (other.kind, other.major, other.minor) != (device.kind, device.major, device.minor) {
                    return Err(NodeError::Twice { path: inside });
                }
                // Had by way of two resources: what either gives.
                device.access = device.access.and(other.access);
                device.mode |= other.mode;
            }
            nodes.insert(inside, device);
        }
    }
    Ok(nodes.into_values().collect())
}

/// The host's mode within what may be done, all of which its user may do.
fn mode_of(host: u32, access: &str) -> u32 {
    let bits = |letter, bits| if access.contains(letter) { bits } else { 0 };
    let allowed = bits('r', 0o444) | bits('w', 0o222);
    (host & allowed) | (0o600 & allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_the_hosts_mode_within_what_may_be_done_and_its_user_may_do_all_of_it() {
        for (host, access, mode) in [
            (0o600, "rw", 0o600),
            (0o666, "rw", 0o666),
            (0o666, "r", 0o444),
            (0o660, "w", 0o220),
            (0o000, "r", 0o400),
            (0o2640, "rw", 0o640),
        ] {
            assert_eq!(mode_of(host, access), mode, "{host:o} {access}");
        }
    }
}
