//! What agents' mass-delete brakes hold, until an operator confirms it or the pods are wanted again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A held removal could not be confirmed.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// Nobody there to tell.
    #[error("host {host} is not connected; `nodeless hosts` lists the hosts")]
    Away {
        /// Which host.
        host: String,
    },
    /// Its last complete set removed nothing that is held.
    #[error("host {host} holds no removal of pods")]
    NothingHeld {
        /// Which host.
        host: String,
    },
    /// The complete set could not be told; whether it was done is unknown. Doing it again is harmless.
    #[error("tell host {host}")]
    Call {
        /// Which host.
        host: String,
        /// Why.
        #[source]
        source: Box<tonic::Status>,
    },
}

/// By host, the UIDs that its last complete-set sync left held. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    hosts: Arc<Mutex<BTreeMap<String, Vec<String>>>>,
}

impl Held {
    /// A host's sync ended so; how many are held on all hosts now.
    pub(super) fn set(&self, host: &str, pods: Vec<String>) -> usize {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if pods.is_empty() {
            hosts.remove(host);
        } else {
            hosts.insert(host.to_owned(), pods);
        }
        hosts.values().map(Vec::len).sum()
    }

    /// What a host holds.
    pub(super) fn of(&self, host: &str) -> Vec<String> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).get(host).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_over_all_hosts_and_a_later_sync_replaces_an_earlier() {
        let held = Held::default();
        assert_eq!(held.set("a", vec!["1".to_owned(), "2".to_owned()]), 2);
        assert_eq!(held.set("b", vec!["3".to_owned()]), 3);
        assert_eq!(held.of("a"), ["1", "2"]);
        assert_eq!(held.set("a", vec![]), 1);
        assert!(held.of("a").is_empty() && held.of("nobody").is_empty());
    }
}
