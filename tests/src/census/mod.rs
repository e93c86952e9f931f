//! What a machine holds, before and after: nothing may be left by a test run.
//!
//! [`collect::take`] writes down what exists (processes, mounts, cgroups, namespaces, links, addresses, routes, tables,
//! sockets, loop devices, files); [`Census::left_since`] is pure and says what of it was not there before, and what that
//! was there is gone. Processes that are somebody's ordinary business (a child of a living program, in the same
//! namespaces and cgroup as the census) do not count: a leaked one is an orphan, or ours by name, or confined.

pub mod collect;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

/// What is counted.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A process that could be a leak (see the module's head).
    Process,
    /// A mount of the census's own mount namespace.
    Mount,
    /// A directory of any cgroup hierarchy.
    Cgroup,
    /// A named or held network namespace.
    NetworkNamespace,
    /// A network link of the census's own network namespace.
    Link,
    /// A local address.
    Address,
    /// A route.
    Route,
    /// An nftables table.
    Table,
    /// A Unix socket with a name.
    Socket,
    /// A loop device with a file behind it.
    Loop,
    /// A file or directory of ours.
    File,
    /// A kernel setting that a network of pods may change.
    Setting,
}

impl Kind {
    /// Whether it is a fault that one of these is *gone* afterwards. Other people's processes and sockets end when they like.
    fn must_stay(self) -> bool {
        !matches!(self, Kind::Process | Kind::Socket | Kind::File)
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Process => "process",
            Kind::Mount => "mount",
            Kind::Cgroup => "cgroup",
            Kind::NetworkNamespace => "network namespace",
            Kind::Link => "link",
            Kind::Address => "address",
            Kind::Route => "route",
            Kind::Table => "nftables table",
            Kind::Socket => "Unix socket",
            Kind::Loop => "loop device",
            Kind::File => "file",
            Kind::Setting => "setting",
        }
    }
}

/// Everything that was counted: for each kind, what is there, each with how many times.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Census(BTreeMap<Kind, BTreeMap<String, u64>>);

impl Census {
    /// Counts one more `what`.
    pub fn add(&mut self, kind: Kind, what: impl Into<String>) {
        *self.0.entry(kind).or_default().entry(what.into()).or_default() += 1;
    }

    /// How many things were counted.
    pub fn len(&self) -> u64 {
        self.0.values().flat_map(BTreeMap::values).sum()
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is in `self` and was not in `before`, and what was and is not though it must be.
    pub fn left_since(&self, before: &Census) -> Vec<Difference> {
        let empty = BTreeMap::new();
        let kinds: BTreeSet<Kind> = self.0.keys().chain(before.0.keys()).copied().collect();
        let mut differences = Vec::new();
        for kind in kinds {
            let now = self.0.get(&kind).unwrap_or(&empty);
            let then = before.0.get(&kind).unwrap_or(&empty);
            let names: BTreeSet<&String> = now.keys().chain(then.keys()).collect();
            for what in names {
                let now = now.get(what).copied().unwrap_or(0);
                let then = then.get(what).copied().unwrap_or(0);
                if now > then || (now < then && kind.must_stay()) {
                    differences.push(Difference { kind, what: what.clone(), then, now });
                }
            }
        }
        differences
    }
}

/// One thing that is not as it was.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Difference {
    /// What sort of thing.
    pub kind: Kind,
    /// Which.
    pub what: String,
    /// How many there were.
    pub then: u64,
    /// How many there are.
    pub now: u64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.now > self.then { "left" } else { "gone" };
        write!(f, "{verb}: {} {}", self.kind.name(), self.what)?;
        if self.now.max(self.then) > 1 { write!(f, " ({} before, {} now)", self.then, self.now) } else { Ok(()) }
    }
}
