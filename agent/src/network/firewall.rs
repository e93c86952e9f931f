//! The nftables rules: two tables of ours, replaced whole in one transaction. Other tables are never touched.
//!
//! * `inet nodeless_BRIDGE`: masquerade of what leaves the subnet; pods reach no link-local address (cloud metadata) and
//!   send from the subnet only.
//! * `bridge nodeless_BRIDGE`: a frame of a pod's port carries the port's own MAC and IPv4 address, in IP and in ARP, or is
//!   dropped, IPv6 included. The addresses of a port are known ahead ([`super::plug`]), so they are entered
//!   [`BLOCK`] at a time before they are first used, never per pod.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use ipnet::Ipv4Net;
use nftables::helper::{self, NftablesError};
use serde_json::{Value, json};

use super::netns::{self, NetnsError};
use super::plug;

/// How many addresses the bridge table learns at once.
const BLOCK: u32 = 256;

/// The rules could not be written.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The data plane cannot be entered.
    #[error("enter the data plane")]
    Enter(#[source] NetnsError),
    /// The program `nft` failed or is missing.
    #[error("run nft (package nftables) for {what}")]
    Nft {
        /// Which rules.
        what: &'static str,
        /// Why.
        #[source]
        source: NftablesError,
    },
}

/// Applies a ruleset inside the data plane.
pub(super) async fn apply(
    netns: Option<OwnedFd>,
    what: &'static str,
    commands: Vec<Value>,
) -> Result<(), FirewallError> {
    let payload = json!({ "nftables": commands }).to_string();
    let run = move || helper::apply_ruleset_raw(&payload, helper::DEFAULT_NFT, helper::DEFAULT_ARGS);
    let outcome = netns::run(netns, run).await.map_err(FirewallError::Enter)?;
    outcome.map(|_| ()).map_err(|source| FirewallError::Nft { what, source })
}

/// The table's name.
fn table(bridge: &str) -> String {
    format!("nodeless_{bridge}")
}

/// Makes the table empty, whether it was there or not.
fn fresh(family: &str, name: &str) -> Vec<Value> {
    let table = json!({ "table": { "family": family, "name": name } });
    vec![json!({ "add": table }), json!({ "delete": table }), json!({ "add": table })]
}

fn chain(family: &str, table: &str, name: &str, kind: &str, hook: &str, priority: i32) -> Value {
    json!({ "add": { "chain": {
        "family": family, "table": table, "name": name, "type": kind, "hook": hook, "prio": priority, "policy": "accept",
    } } })
}

fn rule(family: &str, table: &str, chain: &str, expr: Vec<Value>) -> Value {
    json!({ "add": { "rule": { "family": family, "table": table, "chain": chain, "expr": expr } } })
}

fn compare(op: &str, left: Value, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": op, "left": left, "right": right.into() } })
}

fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

fn field(protocol: &str, name: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": name } })
}

fn prefix(net: Ipv4Net) -> Value {
    json!({ "prefix": { "addr": net.network(), "len": net.prefix_len() } })
}

/// Removes both tables.
pub(super) fn removal(bridge: &str) -> Vec<Value> {
    let name = table(bridge);
    ["inet", "bridge"].into_iter().flat_map(|family| fresh(family, &name).into_iter().take(2)).collect()
}

/// The routed part.
pub(super) fn routed(bridge: &str, cidr: Ipv4Net) -> Vec<Value> {
    const FAMILY: &str = "inet";
    let name = table(bridge);
    let drop = || json!({ "drop": null });
    let link_local = json!({ "prefix": { "addr": "169.254.0.0", "len": 16 } });
    let from_pods = || compare("==", meta("iifname"), bridge);
    let mut commands = fresh(FAMILY, &name);
    for hook in ["forward", "input"] {
        commands.push(chain(FAMILY, &name, hook, "filter", hook, -10));
        let to_link_local = compare("==", field("ip", "daddr"), link_local.clone());
        commands.push(rule(FAMILY, &name, hook, vec![from_pods(), to_link_local, drop()]));
        let foreign = compare("!=", field("ip", "saddr"), prefix(cidr));
        commands.push(rule(FAMILY, &name, hook, vec![from_pods(), foreign, drop()]));
    }
    commands.push(chain(FAMILY, &name, "postrouting", "nat", "postrouting", 100));
    let ours = compare("==", field("ip", "saddr"), prefix(cidr));
    let outside = compare("!=", meta("oifname"), bridge);
    commands.push(rule(FAMILY, &name, "postrouting", vec![ours, outside, json!({ "masquerade": null })]));
    commands
}

/// The bridged part, with the addresses of these blocks: in one transaction, so that the pods of before an agent's restart
/// are heard all the time.
pub(super) fn bridged(bridge: &str, cidr: Ipv4Net, blocks: impl IntoIterator<Item = u32>) -> Vec<Value> {
    const FAMILY: &str = "bridge";
    let name = table(bridge);
    let mut commands = fresh(FAMILY, &name);
    commands.push(json!({ "add": { "set": {
        "family": FAMILY, "table": name, "name": "ports", "type": ["ifname", "ether_addr", "ipv4_addr"],
    } } }));
    commands.push(chain(FAMILY, &name, "prerouting", "filter", "prerouting", -300));
    let known = |mac: Value, ip: Value| compare("==", json!({ "concat": [meta("iifname"), mac, ip] }), "@ports");
    let accept = || json!({ "accept": null });
    let ip = vec![known(field("ether", "saddr"), field("ip", "saddr")), accept()];
    commands.push(rule(FAMILY, &name, "prerouting", ip));
    let same_mac = known(field("ether", "saddr"), field("arp", "saddr ip"));
    let arp = vec![known(field("arp", "saddr ether"), field("arp", "saddr ip")), same_mac, accept()];
    commands.push(rule(FAMILY, &name, "prerouting", arp));
    for ports in plug::link_patterns(cidr) {
        let from_port = compare("==", meta("iifname"), ports);
        commands.push(rule(FAMILY, &name, "prerouting", vec![from_port, json!({ "drop": null })]));
    }
    commands.extend(blocks.into_iter().map(|block| ports(bridge, cidr, block)));
    commands
}

/// The block that an address belongs to.
pub(super) fn block_of(ip: Ipv4Addr) -> u32 {
    u32::from(ip) / BLOCK
}

/// Lets the addresses of a block speak from their ports.
pub(super) fn ports(bridge: &str, cidr: Ipv4Net, block: u32) -> Value {
    let first = block * BLOCK;
    let addresses = (0..BLOCK).map(|n| Ipv4Addr::from(first + n)).filter(|ip| cidr.contains(ip));
    let element = |ip: Ipv4Addr| {
        let mac = plug::mac(ip).map(|byte| format!("{byte:02x}")).join(":");
        json!({ "concat": [plug::link_name(ip), mac, ip] })
    };
    let elements: Vec<Value> = addresses.map(element).collect();
    let name = table(bridge);
    json!({ "add": { "element": { "family": "bridge", "table": name, "name": "ports", "elem": elements } } })
}
