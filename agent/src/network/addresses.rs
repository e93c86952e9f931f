//! Who holds which address. Pure.
//!
//! Addresses never used come first, in order; then those freed longest ago: a peer that still talks to an address of a pod
//! that ended must not reach its successor soon.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Bytes of one sandbox, as the sandbox sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Received by the sandbox.
    pub rx_bytes: u64,
    /// Sent by it.
    pub tx_bytes: u64,
}

/// An address could not be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// All are held.
    #[error("all {held} addresses of {cidr} are in use")]
    Exhausted {
        /// The subnet.
        cidr: Ipv4Net,
        /// How many are held.
        held: usize,
    },
    /// The subnet has no room for pods.
    #[error("subnet {cidr} is too small: /30 or larger")]
    TooSmall {
        /// The subnet.
        cidr: Ipv4Net,
    },
    /// A record contradicts what came before it.
    #[error("address {ip} cannot be held by sandbox {sandbox}: {reason}")]
    Contradiction {
        /// The address.
        ip: Ipv4Addr,
        /// Sandbox id.
        sandbox: String,
        /// Why.
        reason: &'static str,
    },
}

/// Addresses of one subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pool {
    cidr: Ipv4Net,
    /// Offset of the first address that was never used.
    next: u32,
    held: BTreeMap<String, Ipv4Addr>,
    /// Freed ones, the longest ago first.
    freed: VecDeque<Ipv4Addr>,
}

/// Offsets 0 and 1 are the subnet's own and the bridge's.
const FIRST: u32 = 2;

impl Pool {
    pub(super) fn new(cidr: Ipv4Net) -> Result<Pool, AddressError> {
        let cidr = cidr.trunc();
        if cidr.prefix_len() > 30 {
            return Err(AddressError::TooSmall { cidr });
        }
        Ok(Pool { cidr, next: FIRST, held: BTreeMap::new(), freed: VecDeque::new() })
    }

    pub(super) fn cidr(&self) -> Ipv4Net {
        self.cidr
    }

    pub(super) fn of(&self, sandbox: &str) -> Option<Ipv4Addr> {
        self.held.get(sandbox).copied()
    }

    pub(super) fn held(&self) -> impl Iterator<Item = (&String, &Ipv4Addr)> {
        self.held.iter()
    }

    /// The address that the next new holder gets.
    pub(super) fn peek(&self) -> Result<Ipv4Addr, AddressError> {
        if self.next < self.end() {
            return Ok(self.at(self.next));
        }
        let exhausted = || AddressError::Exhausted { cidr: self.cidr, held: self.held.len() };
        self.freed.front().copied().ok_or_else(exhausted)
    }

    /// Records a holder. The address must be one that is free.
    pub(super) fn hold(&mut self, sandbox: &str, ip: Ipv4Addr) -> Result<(), AddressError> {
        let no = |reason| Err(AddressError::Contradiction { ip, sandbox: sandbox.to_owned(), reason });
        if self.held.contains_key(sandbox) {
            return no("the sandbox holds one already");
        }
        if self.next < self.end() && ip == self.at(self.next) {
            self.next += 1;
        } else if let Some(place) = self.freed.iter().position(|freed| *freed == ip) {
            self.freed.remove(place);
        } else {
            return no("it is not free");
        }
        self.held.insert(sandbox.to_owned(), ip);
        Ok(())
    }

    /// Frees what the sandbox holds.
    pub(super) fn free(&mut self, sandbox: &str) -> Option<Ipv4Addr> {
        let ip = self.held.remove(sandbox)?;
        self.freed.push_back(ip);
        Some(ip)
    }

    /// After a reboot nobody holds anything.
    pub(super) fn free_all(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.freed.extend(held.into_values());
    }

    /// One past the last usable offset: the broadcast address's.
    fn end(&self) -> u32 {
        u32::MAX.checked_shr(u32::from(self.cidr.prefix_len())).unwrap_or(0)
    }

    fn at(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.cidr.network()) + offset)
    }
}

/// The bridge's address.
pub(super) fn gateway(cidr: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(cidr.network()) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn pool(cidr: &str) -> Pool {
        Pool::new(cidr.parse().expect("cidr")).expect("pool")
    }

    fn take(pool: &mut Pool, sandbox: &str) -> Result<Ipv4Addr, AddressError> {
        let ip = pool.peek()?;
        pool.hold(sandbox, ip).map(|()| ip)
    }

    #[test]
    fn the_longest_freed_address_comes_back_last() {
        let mut pool = pool("10.0.0.0/29");
        let given: Vec<Ipv4Addr> = ["a", "b", "c", "d", "e"].map(|id| take(&mut pool, id).expect("room")).into();
        assert_eq!(given.first().expect("first").to_string(), "10.0.0.2");
        assert_eq!(given.last().expect("last").to_string(), "10.0.0.6");
        assert!(matches!(take(&mut pool, "f"), Err(AddressError::Exhausted { held: 5, .. })));
        pool.free("d");
        pool.free("a");
        assert_eq!(take(&mut pool, "f"), Ok(given[3]));
        assert_eq!(take(&mut pool, "g"), Ok(given[0]));
    }

    #[test]
    fn a_subnet_without_room_is_refused() {
        assert!(Pool::new("10.0.0.0/31".parse().expect("cidr")).is_err());
        assert!(take(&mut pool("10.0.0.0/30"), "a").is_ok());
        assert_eq!(pool("10.88.7.9/16").cidr().to_string(), "10.88.0.0/16");
    }

    proptest! {
        #[test]
        fn no_two_hold_one_address_and_none_is_lost(steps in proptest::collection::vec((0..12_u8, any::<bool>()), 0..200)) {
            let mut pool = pool("10.0.0.0/28");
            for (id, hold) in steps {
                let id = id.to_string();
                if hold && pool.of(&id).is_none() {
                    let ip = take(&mut pool, &id).expect("13 addresses for 12 sandboxes");
                    prop_assert!(ip != gateway(pool.cidr()) && pool.cidr().contains(&ip));
                } else if !hold {
                    pool.free(&id);
                }
                let held: BTreeSet<_> = pool.held().map(|(_, ip)| *ip).collect();
                let freed: BTreeSet<_> = pool.freed.iter().copied().collect();
                prop_assert_eq!(held.len(), pool.held.len());
                prop_assert_eq!(freed.len(), pool.freed.len());
                prop_assert!(held.is_disjoint(&freed));
                prop_assert_eq!(held.len() + freed.len(), (pool.next - FIRST) as usize);
            }
        }
    }
}
