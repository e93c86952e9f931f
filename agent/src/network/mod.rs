//! The pods' network: one bridge, one veth pair a pod, addresses of this host alone.
//!
//! ```text
//!  data plane (the host's namespace, or a private one)         a pod's namespace
//!  ┌──────────────────────────────────────────────┐            ┌───────────────┐
//!  │ uplink ── nftables: masquerade ── [bridge] ── nl0a580002 ═╪═ eth0          │
//!  │                                   10.88.0.1  └ group LIVE │  10.88.0.2/16 │
//!  └──────────────────────────────────────────────┘            └───────────────┘
//! ```
//!
//! * [`addresses`] (pure) decides who gets which address; [`journal`] makes that durable before the kernel hears of it.
//! * [`plane`] makes the bridge ready; [`firewall`] writes the nftables rules; [`plug`] makes a pair; [`unplug`] deletes
//!   pairs, many at once; [`netns`] runs code inside a namespace, on a thread that ends afterwards.
//!
//! A link's name and MAC address are functions of its IPv4 address: so what the kernel has can be compared with the
//! journal, and the anti-spoofing rules for an address can be written before it is first used.
//!
//! Order. Attach: journal, then kernel. Detach: kernel, then journal. So an address is never given away while a link may
//! hold it, and [`Network::reconcile`] finds all that a killed agent left behind.
//!
//! IPv4 only for now: [`Address`] and the rules have room for a second family; pods' IPv6 frames are dropped at the bridge.
//! This module knows nothing of pods and images. What it changes on a host whose own namespace is the data plane:
//! its bridge, its two nftables tables, and `net.ipv4.ip_forward` when that is off (with a log line).

mod addresses;
mod firewall;
mod journal;
mod netns;
mod plane;
mod plug;
mod port;
mod unplug;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::Ipv4Net;

pub use crate::ports::Address;
pub use addresses::{AddressError, Traffic};
pub use firewall::FirewallError;
pub use journal::JournalError;
pub use netns::NetnsError;
pub use plane::PlaneError;
pub use plug::PlugError;

use journal::Journal;
use plane::Plane;
use unplug::Unplugger;

/// Where bridge, links and rules live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataPlane {
    /// In the host's own network namespace.
    Host,
    /// In the namespace mounted at this path.
    Netns(PathBuf),
}

/// What the network needs to know.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Directory of the journal; ours alone.
    pub state_dir: PathBuf,
    /// Where the data plane lives.
    pub data_plane: DataPlane,
    /// The pods' subnet; its first address is the bridge's. /30 or larger.
    pub cidr: Ipv4Net,
    /// The bridge's name, at most 15 bytes.
    pub bridge: String,
}

/// An operation of the network failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Addresses could not be kept.
    #[error("keep the pods' addresses")]
    Journal(#[source] JournalError),
    /// No address, or not this one.
    #[error("give sandbox {sandbox} an address")]
    Address {
        /// Sandbox id.
        sandbox: String,
        /// Why.
        #[source]
        source: AddressError,
    },
    /// The data plane is not usable.
    #[error("prepare the data plane")]
    Plane(#[source] PlaneError),
    /// The pair could not be made.
    #[error("connect sandbox {sandbox}")]
    Plug {
        /// Sandbox id.
        sandbox: String,
        /// Why.
        #[source]
        source: PlugError,
    },
    /// Links could not be deleted or listed.
    #[error("disconnect sandboxes")]
    Unplug(#[source] PlugError),
    /// The sandbox is being detached at this moment.
    #[error("sandbox {sandbox} is being disconnected")]
    Detaching {
        /// Sandbox id.
        sandbox: String,
    },
}

/// The network of this host's pods. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    journal: Mutex<Journal>,
    detaching: Mutex<BTreeSet<String>>,
    plane: Plane,
    unplugger: Unplugger,
}

impl Network {
    /// Opens the journal and makes the data plane ready. Repeating it on a ready one changes nothing.
    pub async fn open(config: NetworkConfig) -> Result<Network, NetworkError> {
        let journal = Journal::open(&config.state_dir, config.cidr).map_err(NetworkError::Journal)?;
        let mut used: Vec<Ipv4Addr> = journal.all().into_iter().map(|(_, ip)| ip).collect();
        used.extend(journal.next());
        let plane = Plane::open(&config, &used).await.map_err(NetworkError::Plane)?;
        let unplugger = Unplugger::start(plane.handle().clone());
        let inner = Inner { journal: Mutex::new(journal), detaching: Mutex::default(), plane, unplugger };
        Ok(Network { inner: Arc::new(inner) })
    }

    /// Connects a sandbox's network namespace: `eth0` with address and default route, `lo` up. Idempotent; the address is
    /// durable before the kernel hears of it.
    pub async fn attach(&self, sandbox: &str, netns: BorrowedFd<'_>) -> Result<Address, NetworkError> {
        if self.detaching().contains(sandbox) {
            return Err(NetworkError::Detaching { sandbox: sandbox.to_owned() });
        }
        let plug = |source| NetworkError::Plug { sandbox: sandbox.to_owned(), source };
        let netns: OwnedFd = netns.try_clone_to_owned().map_err(|source| plug(PlugError::Namespace(source)))?;
        let (ip, new) = self.journal().hold(sandbox).map_err(|error| match error {
            JournalError::Address(source) => NetworkError::Address { sandbox: sandbox.to_owned(), source },
            other => NetworkError::Journal(other),
        })?;
        let plugged = self.inner.plane.plug(ip, netns.as_fd()).await;
        if let Err(source) = plugged {
            if new {
                // Nobody has heard of this address yet. Whatever fails here is found by reconcile.
                let _ = self.detach(sandbox).await;
            }
            return Err(plug(source));
        }
        Ok(self.address(ip))
    }

    /// Disconnects a sandbox and frees its address. Idempotent. Many at once cost little more than one.
    pub async fn detach(&self, sandbox: &str) -> Result<(), NetworkError> {
        let Some(ip) = self.journal().held(sandbox) else {
            return Ok(());
        };
        if !self.detaching().insert(sandbox.to_owned()) {
            return Err(NetworkError::Detaching { sandbox: sandbox.to_owned() });
        }
        let _mark = Mark { network: self, sandbox };
        self.inner.unplugger.unplug(vec![plug::link_name(ip)]).await.map_err(NetworkError::Unplug)?;
        self.journal().free(sandbox).map_err(NetworkError::Journal)
    }

    /// Disconnects and frees all that none of these sandboxes holds: after an agent's restart. Returns what was freed.
    pub async fn reconcile(&self, live: &[String]) -> Result<Vec<String>, NetworkError> {
        let live: BTreeSet<&str> = live.iter().map(String::as_str).collect();
        let held = self.journal().all();
        let dead: Vec<&(String, Ipv4Addr)> = held.iter().filter(|(id, _)| !live.contains(id.as_str())).collect();
        let kept: BTreeSet<String> =
            held.iter().filter(|(id, _)| live.contains(id.as_str())).map(|(_, ip)| plug::link_name(*ip)).collect();
        let links = self.inner.plane.links().await.map_err(NetworkError::Unplug)?;
        let stray: Vec<String> = links.into_keys().filter(|name| !kept.contains(name)).collect();
        if !stray.is_empty() {
            tracing::info!(links = stray.len(), "deleting links that no sandbox holds");
            self.inner.unplugger.unplug(stray).await.map_err(NetworkError::Unplug)?;
        }
        for (sandbox, _) in &dead {
            self.journal().free(sandbox).map_err(NetworkError::Journal)?;
        }
        Ok(dead.into_iter().map(|(sandbox, _)| sandbox.clone()).collect())
    }

    /// Bytes received and sent by each connected sandbox since it was connected.
    pub async fn traffic(&self) -> Result<BTreeMap<String, Traffic>, NetworkError> {
        let links = self.inner.plane.links().await.map_err(NetworkError::Unplug)?;
        let held = self.journal().all();
        let of = |(id, ip): (String, Ipv4Addr)| links.get(&plug::link_name(ip)).map(|traffic| (id, *traffic));
        Ok(held.into_iter().filter_map(of).collect())
    }

    /// Every sandbox that holds an address.
    pub fn addresses(&self) -> BTreeMap<String, Address> {
        self.journal().all().into_iter().map(|(id, ip)| (id, self.address(ip))).collect()
    }

    /// The pods' subnet.
    pub fn cidr(&self) -> Ipv4Net {
        self.inner.plane.cidr()
    }

    /// Deletes bridge and rules, when no sandbox holds an address any more (uninstall, quickstart's end). False: some do.
    pub async fn remove(&self) -> Result<bool, NetworkError> {
        if !self.journal().all().is_empty() {
            return Ok(false);
        }
        self.inner.plane.remove().await.map_err(NetworkError::Plane)?;
        Ok(true)
    }

    fn address(&self, ip: Ipv4Addr) -> Address {
        let plane = &self.inner.plane;
        Address { ip: IpAddr::V4(ip), gateway: IpAddr::V4(plane.gateway()), prefix: plane.cidr().prefix_len() }
    }

    fn journal(&self) -> std::sync::MutexGuard<'_, Journal> {
        self.inner.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn detaching(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.inner.detaching.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a sandbox out of `detaching`, also when the caller gave up waiting.
struct Mark<'a> {
    network: &'a Network,
    sandbox: &'a str,
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        self.network.detaching().remove(self.sandbox);
    }
}

#[cfg(test)]
mod tests;
