//! The enrolled hosts: which key each host id belongs to, and which hosts were revoked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use agent_api::identity::SpkiHash;
use serde::{Deserialize, Serialize};

use super::locked_file::{self, StateError};

/// One enrolled host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolledHost {
    /// The key that stands for this host.
    pub key: SpkiHash,
    /// Unix seconds of the enrolment.
    pub enrolled_unix: u64,
    /// Unix seconds of the revocation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_unix: Option<u64>,
}

/// Host id to host.
pub type Roster = BTreeMap<String, EnrolledHost>;

/// What became of an enrolment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Enrolled {
    /// The host id is new.
    New,
    /// The same key again: a join that was repeated.
    Again,
    /// Another key took the host id, as the token allowed.
    Replaced,
    /// The host id belongs to another key.
    Taken,
    /// The host was revoked and the token does not allow to re-join.
    Revoked,
}

fn file(state_dir: &Path) -> PathBuf {
    super::directory(state_dir).join("hosts.json")
}

/// All enrolled hosts.
pub fn read(state_dir: &Path) -> Result<Roster, StateError> {
    locked_file::read(&file(state_dir))
}

/// Revokes a host, for `vkubelet host revoke`: its certificate is refused from now on, by a running daemon within seconds.
/// False: no such host.
pub fn revoke(state_dir: &Path, host_id: &str, now_unix: u64) -> Result<bool, StateError> {
    locked_file::update(&file(state_dir), |roster: &mut Roster| {
        let Some(host) = roster.get_mut(host_id) else { return false };
        host.revoked_unix.get_or_insert(now_unix);
        true
    })
}

pub(super) fn enroll(
    state_dir: &Path,
    host_id: &str,
    key: SpkiHash,
    rejoin: bool,
    now_unix: u64,
) -> Result<Enrolled, StateError> {
    locked_file::update(&file(state_dir), |roster: &mut Roster| {
        let outcome = decide(roster.get(host_id), key, rejoin);
        if matches!(outcome, Enrolled::New | Enrolled::Replaced) {
            let host = EnrolledHost { key, enrolled_unix: now_unix, revoked_unix: None };
            roster.insert(host_id.to_owned(), host);
        }
        outcome
    })
}

fn decide(known: Option<&EnrolledHost>, key: SpkiHash, rejoin: bool) -> Enrolled {
    match known {
        None => Enrolled::New,
        Some(_) if rejoin => Enrolled::Replaced,
        Some(host) if host.revoked_unix.is_some() => Enrolled::Revoked,
        Some(host) if host.key == key => Enrolled::Again,
        Some(_) => Enrolled::Taken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_id_belongs_to_its_first_key_until_a_rejoin() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (one, two) = (SpkiHash::of_spki(b"1"), SpkiHash::of_spki(b"2"));
        let enroll = |key, rejoin| super::enroll(dir.path(), "edge-1", key, rejoin, 1).expect("enrol");
        assert_eq!(enroll(one, false), Enrolled::New);
        assert_eq!(enroll(one, false), Enrolled::Again);
        assert_eq!(enroll(two, false), Enrolled::Taken);
        assert_eq!(enroll(two, true), Enrolled::Replaced);
        assert_eq!(enroll(one, false), Enrolled::Taken);
        assert!(revoke(dir.path(), "edge-1", 5).expect("revoke"));
        assert!(!revoke(dir.path(), "edge-2", 5).expect("no such host"));
        assert_eq!(enroll(two, false), Enrolled::Revoked);
        assert_eq!(enroll(two, true), Enrolled::Replaced);
        assert_eq!(read(dir.path()).expect("read")["edge-1"].revoked_unix, None);
    }
}
