//! One pair: from the bridge into a sandbox's namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::netns::{self, NetnsError};

/// IFLA_GROUP of pairs in use ("nl", then 0).
pub(super) const LIVE: u32 = 0x6e6c_0000;
const INTERFACE: &str = "eth0";
const LOOPBACK: u32 = 1;

/// A pair could not be made, deleted or listed.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// The sandbox's namespace cannot be used.
    #[error("use the sandbox's network namespace")]
    Namespace(#[source] io::Error),
    /// The sandbox's namespace cannot be entered.
    #[error("enter the sandbox's network namespace")]
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
    /// There is an `eth0` already which is not ours.
    #[error("the sandbox's network namespace has another {INTERFACE} already")]
    Occupied,
    /// The task that deletes links has ended.
    #[error("the network is closing")]
    Closing,
}

/// The name of an address's link at the bridge.
pub(super) fn link_name(ip: Ipv4Addr) -> String {
    format!("nl{:08x}", u32::from(ip))
}

/// Whether a name is of this form.
pub(super) fn is_link_name(name: &str) -> bool {
    name.strip_prefix("nl").is_some_and(|hex| hex.len() == 8 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Patterns (`nl0a58*`) that match the names of a subnet's links and of no other subnet's: at most eight.
pub(super) fn link_patterns(cidr: Ipv4Net) -> Vec<String> {
    let (prefix, first) = (usize::from(cidr.prefix_len()), u32::from(cidr.network()));
    let digits = prefix.div_ceil(4);
    let variants = 1_u32 << (digits * 4 - prefix);
    let step = |n: u32| u64::from(n) << (32 - digits * 4);
    let pattern = |n| format!("nl{:.digits$}*", format!("{:08x}", u64::from(first) + step(n)));
    (0..variants).map(pattern).collect()
}

/// The MAC address of an address's `eth0`: locally administered, unicast.
pub(super) fn mac(ip: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [0x0a, 0x58, a, b, c, d]
}

pub(super) fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

fn is(error: &io::Error, errno: nix::Error) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

pub(super) fn is_absent(error: &io::Error) -> bool {
    is(error, nix::Error::ENODEV) || is(error, nix::Error::ENXIO)
}

/// What a pair needs to know of its bridge.
#[derive(Debug, Clone, Copy)]
pub(super) struct Socket {
    pub(super) bridge: u32,
    pub(super) mtu: u32,
    pub(super) cidr: Ipv4Net,
    pub(super) gateway: Ipv4Addr,
}

/// Makes the pair, or completes one that was begun. Idempotent.
pub(super) async fn plug(
    data_plane: &Handle,
    socket: Socket,
    ip: Ipv4Addr,
    sandbox: BorrowedFd<'_>,
) -> Result<(), PlugError> {
    let entry = sandbox.try_clone_to_owned().map_err(PlugError::Namespace)?;
    let inside = netns::netlink(Some(entry), ignore_router_advertisements).await.map_err(PlugError::Enter)?;
    let name = link_name(ip);
    let failed = |step| {
        let link = name.clone();
        move |source| PlugError::Netlink { step, link, source }
    };
    let made = data_plane.link().add(pair(&name, socket, ip, sandbox)).execute().await.map_err(io_error);
    match made {
        Ok(()) => {}
        Err(error) if is(&error, nix::Error::EEXIST) => match find(&inside, INTERFACE).await? {
            Some(link) if has_mac(&link, mac(ip)) => {}
            Some(_) => return Err(PlugError::Occupied),
            None => {
                // A pair of a killed attach whose other end went to a namespace that is none of ours any more.
                delete(data_plane, &name).await.map_err(failed("delete"))?;
                let again = data_plane.link().add(pair(&name, socket, ip, sandbox)).execute().await;
                again.map_err(io_error).map_err(failed("make"))?;
            }
        },
        Err(source) => return Err(failed("make")(source)),
    }
    configure(&inside, socket, ip).await
}

/// The pair: our end on the bridge and up, the other end in the sandbox's namespace from the first moment on.
fn pair(name: &str, socket: Socket, ip: Ipv4Addr, sandbox: BorrowedFd<'_>) -> LinkMessage {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(INTERFACE)
        .address(mac(ip).to_vec())
        .mtu(socket.mtu)
        .setns_by_fd(sandbox.as_raw_fd())
        .build();
    LinkMessageBuilder::<LinkVeth>::new(name, INTERFACE)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .controller(socket.bridge)
        .mtu(socket.mtu)
        .link_group(LIVE)
        .up()
        .build()
}

async fn configure(inside: &Handle, socket: Socket, ip: Ipv4Addr) -> Result<(), PlugError> {
    let failed = |step| move |source| PlugError::Netlink { step, link: INTERFACE.to_owned(), source };
    let missing = || failed("find")(io::Error::from(io::ErrorKind::NotFound));
    let index = find(inside, INTERFACE).await?.ok_or_else(missing)?.header.index;
    let up = |index| inside.link().set(LinkUnspec::new_with_index(index).up().build()).execute();
    up(LOOPBACK).await.map_err(io_error).map_err(failed("raise lo beside"))?;
    let address = inside.address().add(index, IpAddr::V4(ip), socket.cidr.prefix_len()).replace().execute();
    address.await.map_err(io_error).map_err(failed("give an address to"))?;
    up(index).await.map_err(io_error).map_err(failed("raise"))?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(socket.gateway).output_interface(index).build();
    inside.route().add(route).replace().execute().await.map_err(io_error).map_err(failed("route through"))
}

/// Before any link exists there, so that the new one inherits it: a pod must not take routes from its neighbours.
fn ignore_router_advertisements() {
    for which in ["default", "all"] {
        let path = format!("/proc/sys/net/ipv6/conf/{which}/accept_ra");
        match std::fs::write(&path, "0") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path, %error, "cannot switch off router advertisements in a sandbox");
            }
            // No file: no IPv6.
            _ => {}
        }
    }
}

/// The link of this name, if there is one.
pub(super) async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, PlugError> {
    let mut links = Box::pin(handle.link().get().match_name(name).execute());
    match links.try_next().await.map_err(io_error) {
        Ok(link) => Ok(link),
        Err(error) if is_absent(&error) => Ok(None),
        Err(source) => Err(PlugError::Netlink { step: "find", link: name.to_owned(), source }),
    }
}

/// Deletes one link; absent is fine.
pub(super) async fn delete(handle: &Handle, name: &str) -> io::Result<()> {
    let message = LinkUnspec::new_with_name(name).build();
    match handle.link().del_with_message(message).execute().await.map_err(io_error) {
        Err(error) if is_absent(&error) => Ok(()),
        outcome => outcome,
    }
}

fn has_mac(link: &LinkMessage, mac: [u8; 6]) -> bool {
    link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Address(address) if *address == mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_links_name_fits_the_kernel_and_tells_its_address() {
        let name = link_name(Ipv4Addr::new(10, 88, 0, 2));
        assert_eq!(name, "nl0a580002");
        assert!(is_link_name(&name) && !is_link_name("nlmon0") && !is_link_name("nodeless0"));
        let patterns = |cidr: &str| link_patterns(cidr.parse().expect("cidr")).join(" ");
        assert_eq!(patterns("10.88.0.0/16"), "nl0a58*");
        assert_eq!(patterns("10.88.64.0/18"), "nl0a584* nl0a585* nl0a586* nl0a587*");
        assert_eq!(patterns("10.88.0.4/30"), "nl0a580004* nl0a580005* nl0a580006* nl0a580007*");
        assert_eq!(mac(Ipv4Addr::new(10, 88, 0, 2))[0] & 0b11, 0b10, "local and unicast");
    }
}
