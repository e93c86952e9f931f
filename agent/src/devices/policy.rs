//! The operator's file: which devices there are to be had, under which names.
//!
//! ```toml
//! ["example.com/serial"]                        # a resource, as pods name it
//! devices = ["/dev/ttyUSB*", "/dev/ttyACM0"]    # paths; `*` and `?` stand for parts of one name
//! access = "rw"                                 # rw (the default), r or w
//! path = "/dev/serial/"                         # in the container: a directory, or the one device's path [as on the host]
//!
//! ["example.com/fuse"]
//! devices = ["/dev/fuse"]
//! units = 64                                    # shared: so many containers may have all of `devices` at once
//! ```
//! Without `units` each device is a unit of its own, for one pod at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Component, Path, PathBuf};

use sandbox::cgroup::Access;
use serde::Deserialize;

use super::nodes::number_of;
use crate::pod::spec::scalars::{Scalars, is_extended};

/// More units of one resource make no sense on one host.
const MOST_UNITS: u32 = 10_000;
/// Names of a container's own /dev.
const OWN: [&str; 12] =
    ["console", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "tty", "urandom", "zero"];

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It cannot be read.
    #[error("could not read the device policy {path:?}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML, or has keys that are none; the inner error names key and line.
    #[error("device policy {path:?} is not valid")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// What it says cannot be.
    #[error("device policy {path:?}, resource {resource:?}: {problem}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Which resource.
        resource: String,
        /// What is wrong, and what to do about it.
        problem: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    devices: Vec<String>,
    units: Option<u32>,
    access: Option<Access>,
    path: Option<PathBuf>,
}

/// One resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Its units, and the devices on the host that a unit is; `None` in place of devices of its own when all are shared.
    units: BTreeMap<String, Option<PathBuf>>,
    /// The devices of every unit of a shared resource.
    shared: Vec<PathBuf>,
    /// What may be done with them.
    pub access: Access,
    /// Where they are in the container, when not where they are on the host.
    path: Option<PathBuf>,
}

impl Offer {
    /// Names of its units.
    pub fn units(&self) -> impl Iterator<Item = &str> {
        self.units.keys().map(String::as_str)
    }

    /// The devices behind some units, each with its path in the container; `None` for a unit that is offered no more.
    pub fn devices(&self, units: &BTreeSet<String>) -> Option<BTreeMap<PathBuf, PathBuf>> {
        let mut devices = BTreeMap::new();
        for unit in units {
            match self.units.get(unit)? {
                Some(own) => drop(devices.insert(own.clone(), self.inside(own))),
                None => devices.extend(self.shared.iter().map(|device| (device.clone(), self.inside(device)))),
            }
        }
        Some(devices)
    }

    fn inside(&self, device: &Path) -> PathBuf {
        match &self.path {
            None => device.to_owned(),
            Some(path) if is_directory(path) => path.join(device.file_name().unwrap_or_default()),
            Some(path) => path.clone(),
        }
    }
}

fn is_directory(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// Everything that the operator offers. Nothing, by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    resources: BTreeMap<String, Offer>,
}

impl Policy {
    /// Reads and checks the file, and looks the devices up that are there. One that is missing is no error (it may have been
    /// unplugged): there are fewer units.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|source| PolicyError::Read { path: path.to_owned(), source })?;
        let entries: BTreeMap<String, Entry> = toml::from_str(&text)
            .map_err(|source| PolicyError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        let mut policy = Self::default();
        let mut owners: BTreeMap<(bool, u64), String> = BTreeMap::new();
        for (resource, entry) in entries {
            let invalid = |problem| PolicyError::Invalid { path: path.to_owned(), resource: resource.clone(), problem };
            let offer = offer(&resource, entry).map_err(invalid)?;
            for device in offer.units.values().flatten() {
                let Some(number) = number_of(device).ok().flatten() else { continue };
                if let Some(other) = owners.insert(number, resource.clone()) {
                    return Err(invalid(format!(
                        "{} is given to one pod at a time, and is also a unit of {other:?}: leave it out of one of them, or \
                         share it with `units`",
                        device.display()
                    )));
                }
            }
            policy.resources.insert(resource, offer);
        }
        Ok(policy)
    }

    /// A resource, if it is offered.
    pub fn offer(&self, resource: &str) -> Option<&Offer> {
        self.resources.get(resource)
    }

    /// How many units there are of each resource.
    pub fn capacity(&self) -> Scalars {
        self.resources.iter().map(|(name, offer)| (name.clone(), offer.units.len() as u64)).collect()
    }
}

fn offer(resource: &str, entry: Entry) -> Result<Offer, String> {
    let name = resource.split_once('/').filter(|_| is_extended(resource));
    if !name.is_some_and(|(domain, name)| is_label(domain) && is_label(name) && !name.contains('/')) {
        return Err("a resource is named DOMAIN/NAME, as example.com/fuse, and not in kubernetes.io".to_owned());
    }
    let access = entry.access.unwrap_or(Access::READ_WRITE);
    if access.to_string().contains('m') {
        return Err(format!(
            "access {access:?} is not rw, r or w: containers never make devices",
            access = access.to_string()
        ));
    }
    if entry.devices.is_empty() {
        return Err("`devices` names none: name at least one path on the host".to_owned());
    }
    let mut found = BTreeSet::new();
    let mut complete = true;
    for pattern in &entry.devices {
        let matches = expand(pattern)?;
        if matches.is_empty() {
            tracing::warn!(resource, device = pattern, "a device of the device policy is not there");
            complete = false;
        }
        found.extend(matches);
    }
    if let Some(path) = &entry.path {
        check_inside(path)?;
        let several = entry.devices.len() > 1 || is_pattern(&entry.devices[0]);
        if several && !is_directory(path) {
            return Err(format!(
                "`path` {} is one path for several devices: end it with a slash to make it their directory",
                path.display()
            ));
        }
    }
    let offer = |units, shared| Offer { units, shared, access, path: entry.path.clone() };
    let offer = match entry.units {
        None => {
            offer(found.into_iter().map(|device| (device.display().to_string(), Some(device))).collect(), Vec::new())
        }
        Some(0) => return Err("`units` is 0: leave the resource out, or give some".to_owned()),
        Some(many) if many > MOST_UNITS => return Err(format!("`units` is {many}, more than {MOST_UNITS}")),
        // What is shared is there as a whole or not at all.
        Some(_) if !complete => offer(BTreeMap::new(), found.into_iter().collect()),
        Some(units) => offer((0..units).map(|unit| (unit.to_string(), None)).collect(), found.into_iter().collect()),
    };
    for device in offer.units.values().flatten().chain(&offer.shared) {
        check_inside(&offer.inside(device)).map_err(|problem| {
            if offer.path.is_some() { problem } else { format!("{problem}; say with `path` where it is to be") }
        })?;
    }
    Ok(offer)
}

fn is_label(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(plain)
        && ends(text.as_bytes().first())
        && ends(text.as_bytes().last())
}

/// A place in the container's /dev that is not taken.
fn check_inside(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let below = path.strip_prefix("/dev").ok().filter(|below| below.components().next().is_some());
    let Some(below) = below.filter(|below| below.components().all(|part| matches!(part, Component::Normal(_)))) else {
        return Err(format!("{shown} is not a path below /dev, where a container's devices are"));
    };
    match below.iter().next().and_then(|first| first.to_str()) {
        Some(first) if OWN.contains(&first) || first.starts_with("std") => {
            Err(format!("{shown} is a container's own in any case"))
        }
        Some(_) => Ok(()),
        None => Err(format!("{shown} is not text")),
    }
}

fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?'])
}

/// The devices on the host that a path, or a pattern, means.
fn expand(pattern: &str) -> Result<Vec<PathBuf>, String> {
    let path = Path::new(pattern);
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("device {pattern:?} is not an absolute path on the host"));
    }
    let mut found = vec![PathBuf::from("/")];
    for part in path.components().filter_map(|part| match part {
        Component::Normal(part) => part.to_str(),
        _ => None,
    }) {
        let mut next = Vec::new();
        for directory in found {
            if is_pattern(part) {
                let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
                let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
                next.extend(names.filter(|name| matches(part, name)).map(|name| directory.join(name)));
            } else {
                next.push(directory.join(part));
            }
        }
        found = next;
    }
    let mut devices = Vec::new();
    for path in found {
        match std::fs::metadata(&path) {
            Ok(there) if there.file_type().is_char_device() || there.file_type().is_block_device() => {
                devices.push(path)
            }
            // Among what a pattern matches there may be anything.
            Ok(_) if is_pattern(pattern) => {}
            Ok(_) => return Err(format!("{} is no device", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("could not look at {}: {error}", path.display())),
        }
    }
    devices.sort();
    Ok(devices)
}

/// Whether a name is what a pattern means; a hidden one only when the pattern says so.
fn matches(pattern: &str, name: &str) -> bool {
    fn rest(pattern: &[char], name: &[char]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some(('*', after)), _) => (0..=name.len()).any(|taken| rest(after, &name[taken..])),
            (Some(('?', after)), Some((_, others))) => rest(after, others),
            (Some((wanted, after)), Some((found, others))) => wanted == found && rest(after, others),
            _ => false,
        }
    }
    let chars = |text: &str| text.chars().collect::<Vec<_>>();
    name.starts_with('.') == pattern.starts_with('.') && rest(&chars(pattern), &chars(name))
}

#[cfg(test)]
mod tests;
