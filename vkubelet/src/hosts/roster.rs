//! The enrolled hosts: which key each host id belongs to, and which hosts were revoked.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

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

/// The hosts that belong to the node, read again only when their file is another: each pod that waits asks for them at every
/// change of a host.
#[derive(Debug)]
pub(super) struct Watched {
    state_dir: PathBuf,
    read: Mutex<Option<(Version, Arc<BTreeSet<String>>)>>,
}

/// Which version of the file: it is replaced whole. `None`: there is none.
type Version = Option<(u64, u64, i64, i64)>;

impl Watched {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned(), read: Mutex::default() }
    }

    /// Ids of the hosts that have joined and are not revoked.
    pub(super) fn enrolled(&self) -> Result<Arc<BTreeSet<String>>, StateError> {
        // Before it is read: what comes in between is seen the next time.
        let found = version(&file(&self.state_dir))?;
        let mut known = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((version, hosts)) = &*known
            && *version == found
        {
            return Ok(Arc::clone(hosts));
        }
        let roster = read(&self.state_dir)?;
        let hosts = roster.into_iter().filter(|(_, host)| host.revoked_unix.is_none()).map(|(id, _)| id);
        let hosts: Arc<BTreeSet<String>> = Arc::new(hosts.collect());
        *known = Some((found, Arc::clone(&hosts)));
        Ok(hosts)
    }
}

fn version(path: &Path) -> Result<Version, StateError> {
    match std::fs::symlink_metadata(path) {
        Ok(file) => Ok(Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StateError::Look { path: path.to_owned(), source }),
    }
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

    #[test]
    fn a_change_by_anybody_is_seen_and_an_unchanged_file_is_not_read() {
        let dir = tempfile::tempdir().expect("tempdir");
        let watched = Watched::new(dir.path());
        let names = |watched: &Watched| watched.enrolled().expect("enrolled").iter().cloned().collect::<Vec<_>>();
        assert!(names(&watched).is_empty());
        for host in ["edge-1", "edge-2"] {
            super::enroll(dir.path(), host, SpkiHash::of_spki(host.as_bytes()), false, 1).expect("enrol");
        }
        assert_eq!(names(&watched), ["edge-1", "edge-2"]);
        let (one, two) = (watched.enrolled().expect("enrolled"), watched.enrolled().expect("enrolled"));
        assert!(Arc::ptr_eq(&one, &two));
        revoke(dir.path(), "edge-1", 5).expect("revoke");
        assert_eq!(names(&watched), ["edge-2"]);
        std::fs::write(file(dir.path()), "{").expect("write");
        assert!(matches!(watched.enrolled(), Err(StateError::Damaged { .. })));
    }
}
