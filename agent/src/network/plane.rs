//! The data plane: bridge, forwarding, rules.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::RouteAttribute;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, RouteMessageBuilder};

use super::addresses::{self, Traffic};
use super::firewall::{self, FirewallError};
use super::netns::{self, NetnsError};
use super::plug::{self, PlugError, Socket, io_error};
use super::{DataPlane, NetworkConfig};

const ETHERNET_MTU: u32 = 1500;

/// The data plane is not usable.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// The bridge's name does not fit the kernel.
    #[error("invalid bridge name {0:?}: 1 to 15 letters, digits, '-', '_' or '.'")]
    BridgeName(String),
    /// The namespace cannot be entered.
    #[error("enter the data plane's namespace")]
    Enter(#[source] NetnsError),
    /// The kernel refused a step.
    #[error("{step} {link}")]
    Netlink {
        /// What was tried, as a verb.
        step: &'static str,
        /// On which link.
        link: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A link could not be asked for.
    #[error("look at the data plane's links")]
    Links(#[source] PlugError),
    /// There is a link of the bridge's name that is no bridge.
    #[error("{0} exists and is no bridge: choose another --bridge")]
    NoBridge(String),
    /// The subnet is in use by another link.
    #[error("the pods' subnet {cidr} overlaps {address} of {link}: choose another --pod-cidr")]
    Overlap {
        /// The pods' subnet.
        cidr: Ipv4Net,
        /// The other address.
        address: Ipv4Net,
        /// The link that has it.
        link: String,
    },
    /// Forwarding could not be switched on.
    #[error("switch on net.ipv4.ip_forward in the data plane")]
    Forwarding(#[source] io::Error),
    /// The rules could not be written.
    #[error("write the data plane's rules")]
    Firewall(#[source] FirewallError),
}

#[derive(Debug)]
pub(super) struct Plane {
    handle: Handle,
    netns: Option<OwnedFd>,
    bridge: String,
    socket: Socket,
    /// Blocks of addresses that the bridge table knows; `None`: this kernel has no such table.
    known_blocks: Option<tokio::sync::Mutex<BTreeSet<u32>>>,
}

impl Plane {
    /// `used`: the addresses that are held, and the one that comes next.
    pub(super) async fn open(config: &NetworkConfig, used: &[Ipv4Addr]) -> Result<Plane, PlaneError> {
        let (bridge, cidr) = (config.bridge.as_str(), config.cidr.trunc());
        check_name(bridge)?;
        let netns = match &config.data_plane {
            DataPlane::Host => None,
            DataPlane::Netns(path) => Some(netns::open(path).map_err(PlaneError::Enter)?),
        };
        let entry = || duplicate(netns.as_ref());
        let handle = netns::netlink(entry()?, || ()).await.map_err(PlaneError::Enter)?;
        check_overlap(&handle, bridge, cidr).await?;
        let mtu = uplink_mtu(&handle).await.unwrap_or(ETHERNET_MTU);
        let gateway = addresses::gateway(cidr);
        let index = ensure_bridge(&handle, bridge, mtu, gateway, cidr.prefix_len()).await?;
        let (name, private) = (bridge.to_owned(), netns.is_some());
        let forwarding = netns::run(entry()?, move || switch_on_forwarding(&name, private)).await;
        forwarding.map_err(PlaneError::Enter)?.map_err(PlaneError::Forwarding)?;
        let socket = Socket { bridge: index, mtu, cidr, gateway };
        let mut plane = Plane { handle, netns, bridge: bridge.to_owned(), socket, known_blocks: None };
        plane.write_rules(config.data_plane == DataPlane::Host, used).await?;
        Ok(plane)
    }

    async fn write_rules(&mut self, required: bool, used: &[Ipv4Addr]) -> Result<(), PlaneError> {
        let rules = firewall::routed(&self.bridge, self.socket.cidr);
        match firewall::apply(self.entry()?, "masquerade", rules).await {
            Ok(()) => {}
            // A private data plane leads nowhere by itself: pods work there without masquerade.
            Err(error @ FirewallError::Nft { .. }) if !required => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the data plane has no nftables rules");
                return Ok(());
            }
            Err(error) => return Err(PlaneError::Firewall(error)),
        }
        let blocks: BTreeSet<u32> = used.iter().copied().map(firewall::block_of).collect();
        let rules = firewall::bridged(&self.bridge, self.socket.cidr, blocks.iter().copied());
        match firewall::apply(self.entry()?, "anti-spoofing", rules).await {
            Ok(()) => self.known_blocks = Some(tokio::sync::Mutex::new(blocks)),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "pods of this host may use each other's addresses: this kernel has no nftables for bridges"
                );
            }
        }
        Ok(())
    }

    /// Connects a namespace.
    pub(super) async fn plug(&self, ip: Ipv4Addr, sandbox: BorrowedFd<'_>) -> Result<(), PlugError> {
        self.let_speak(ip).await?;
        plug::plug(&self.handle, self.socket, ip, sandbox).await
    }

    /// Enters the block of this address into the bridge table, once.
    async fn let_speak(&self, ip: Ipv4Addr) -> Result<(), PlugError> {
        let Some(known) = &self.known_blocks else { return Ok(()) };
        let block = firewall::block_of(ip);
        let mut known = known.lock().await;
        if known.contains(&block) {
            return Ok(());
        }
        let commands = vec![firewall::ports(&self.bridge, self.socket.cidr, block)];
        let failed =
            |source: io::Error| PlugError::Netlink { step: "allow addresses at", link: self.bridge.clone(), source };
        let entry = self.entry().map_err(|error| failed(io::Error::other(error)))?;
        let applied = firewall::apply(entry, "addresses of ports", commands).await;
        applied.map_err(|error| failed(io::Error::other(error)))?;
        known.insert(block);
        Ok(())
    }

    /// Our links at the bridge, by name, with what their sandboxes received and sent.
    pub(super) async fn links(&self) -> Result<BTreeMap<String, Traffic>, PlugError> {
        let failed = |source| PlugError::Netlink { step: "list links of", link: self.bridge.clone(), source };
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(io_error).map_err(failed)?;
        let ours = |link: &LinkMessage| {
            let at_bridge = |a: &LinkAttribute| matches!(a, LinkAttribute::Controller(c) if *c == self.socket.bridge);
            let name = name_of(link).filter(|name| plug::is_link_name(name))?;
            link.attributes.iter().any(at_bridge).then(|| (name.to_owned(), traffic_of(link)))
        };
        Ok(links.iter().filter_map(ours).collect())
    }

    /// Deletes bridge and rules.
    pub(super) async fn remove(&self) -> Result<(), PlaneError> {
        let netlink = |source| PlaneError::Netlink { step: "delete", link: self.bridge.clone(), source };
        plug::delete(&self.handle, &self.bridge).await.map_err(netlink)?;
        match firewall::apply(self.entry()?, "removal", firewall::removal(&self.bridge)).await {
            Err(error @ FirewallError::Nft { .. }) if self.known_blocks.is_none() => {
                tracing::debug!(error = &error as &dyn std::error::Error, "no rules to remove");
                Ok(())
            }
            outcome => outcome.map_err(PlaneError::Firewall),
        }
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(super) fn cidr(&self) -> Ipv4Net {
        self.socket.cidr
    }

    pub(super) fn gateway(&self) -> Ipv4Addr {
        self.socket.gateway
    }

    fn entry(&self) -> Result<Option<OwnedFd>, PlaneError> {
        duplicate(self.netns.as_ref())
    }
}

fn duplicate(netns: Option<&OwnedFd>) -> Result<Option<OwnedFd>, PlaneError> {
    let copy = netns.map(|netns| netns.as_fd().try_clone_to_owned()).transpose();
    copy.map_err(|source| PlaneError::Enter(NetnsError::Thread(source)))
}

fn check_name(bridge: &str) -> Result<(), PlaneError> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let good = (1..=15).contains(&bridge.len()) && bridge.bytes().all(fits) && bridge != "." && bridge != "..";
    if good { Ok(()) } else { Err(PlaneError::BridgeName(bridge.to_owned())) }
}

async fn check_overlap(handle: &Handle, bridge: &str, cidr: Ipv4Net) -> Result<(), PlaneError> {
    let failed = |source| PlaneError::Netlink { step: "list addresses beside", link: bridge.to_owned(), source };
    let addresses: Vec<_> = handle.address().get().execute().try_collect().await.map_err(io_error).map_err(failed)?;
    for message in addresses {
        let prefix = message.header.prefix_len;
        let mut label = format!("link {}", message.header.index);
        let mut found = None;
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Address(IpAddr::V4(ip)) => found = Ipv4Net::new(*ip, prefix).ok(),
                AddressAttribute::Label(name) => label.clone_from(name),
                _ => {}
            }
        }
        let Some(address) = found else { continue };
        let overlaps = address.contains(&cidr.network()) || cidr.contains(&address.addr());
        if overlaps && label != bridge {
            return Err(PlaneError::Overlap { cidr, address, link: label });
        }
    }
    Ok(())
}

async fn ensure_bridge(
    handle: &Handle,
    bridge: &str,
    mtu: u32,
    gateway: Ipv4Addr,
    prefix: u8,
) -> Result<u32, PlaneError> {
    let failed = |step| move |source| PlaneError::Netlink { step, link: bridge.to_owned(), source };
    if plug::find(handle, bridge).await.map_err(PlaneError::Links)?.is_none() {
        // A fixed MAC: otherwise it would change with each port, and pods' neighbour entries with it.
        let message = LinkBridge::new(bridge).address(plug::mac(gateway).to_vec()).mtu(mtu).build();
        handle.link().add(message).execute().await.map_err(io_error).map_err(failed("make"))?;
    }
    let found = plug::find(handle, bridge).await.map_err(PlaneError::Links)?;
    let link = found.ok_or_else(|| failed("find")(io::Error::from(io::ErrorKind::NotFound)))?;
    if !is_bridge(&link) {
        return Err(PlaneError::NoBridge(bridge.to_owned()));
    }
    let index = link.header.index;
    let address = handle.address().add(index, IpAddr::V4(gateway), prefix).replace().execute().await;
    address.map_err(io_error).map_err(failed("give an address to"))?;
    let up = [index, 1].map(|index| LinkUnspec::new_with_index(index).up().build());
    for message in up {
        handle.link().set(message).execute().await.map_err(io_error).map_err(failed("raise"))?;
    }
    Ok(index)
}

fn is_bridge(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge))),
        _ => false,
    })
}

/// The MTU of the link that leads out; pods must not send more.
async fn uplink_mtu(handle: &Handle) -> Option<u32> {
    let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let routes: Vec<_> = handle.route().get(query).execute().try_collect().await.ok()?;
    let default = routes.iter().find(|route| route.header.destination_prefix_length == 0)?;
    let out = default.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })?;
    let mut links = Box::pin(handle.link().get().match_index(out).execute());
    let link = links.try_next().await.ok()??;
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// Runs inside the data plane.
fn switch_on_forwarding(bridge: &str, private: bool) -> io::Result<()> {
    const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
    if std::fs::read_to_string(FORWARD)?.trim() != "1" {
        if !private {
            tracing::info!("switching on net.ipv4.ip_forward of this host: pods need it to reach beyond it");
        }
        std::fs::write(FORWARD, "1")?;
    }
    // Pods' IPv6 ends at the bridge for now, and the host must not take routes from them.
    let ipv6 = format!("/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6");
    match std::fs::write(ipv6, "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

/// Our end sends what the sandbox receives.
fn traffic_of(link: &LinkMessage) -> Traffic {
    let stats = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(Traffic { rx_bytes: stats.tx_bytes, tx_bytes: stats.rx_bytes }),
        _ => None,
    });
    stats.unwrap_or_default()
}
