//! What a join leaves on disk.

use std::path::{Path, PathBuf};

use agent_api::identity::private_file::{self, PrivateFileError};
use agent_api::identity::{HostId, HostKey, HostKeyError};
use serde::{Deserialize, Serialize};

/// The identity of this host towards its vkubelet.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkIdentity {
    /// Our id, as the certificate says.
    pub host_id: HostId,
    /// `HOST:PORT` of vkubelet's agent listener.
    pub vkubelet: String,
    /// The node name that vkubelet told.
    pub node_name: String,
    /// Our certificate.
    pub certificate_pem: String,
    /// The CA that vkubelet's certificate must be of.
    pub ca_pem: String,
    /// Our private key; secret.
    pub key_pem: String,
}

impl std::fmt::Debug for LinkIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("LinkIdentity");
        shown.field("host_id", &self.host_id).field("vkubelet", &self.vkubelet).field("node_name", &self.node_name);
        shown.finish_non_exhaustive()
    }
}

/// The identity on disk could not be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Reading or writing failed.
    #[error("keep this host's identity")]
    File(#[source] PrivateFileError),
    /// The host has not joined.
    #[error("this host has not joined a vkubelet: run `nodeless-agent join` first ({} is missing)", path.display())]
    NotJoined {
        /// Where the identity would be.
        path: PathBuf,
    },
    /// The content is not what we wrote.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The key of a join under way could not be made or read.
    #[error("make this host's key")]
    Key(#[source] HostKeyError),
}

/// The key of a join under way.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Joining {
    key_pem: String,
}

fn dir(state_dir: &Path) -> PathBuf {
    state_dir.join("pki")
}

fn file(state_dir: &Path) -> PathBuf {
    dir(state_dir).join("identity.json")
}

fn joining_file(state_dir: &Path) -> PathBuf {
    dir(state_dir).join("joining.json")
}

/// Reads the identity that a join left. [`IdentityError::NotJoined`] when there is none.
pub fn load(state_dir: &Path) -> Result<LinkIdentity, IdentityError> {
    let path = file(state_dir);
    match private_file::read(&path).map_err(IdentityError::File)? {
        Some(bytes) => serde_json::from_slice(&bytes).map_err(|source| IdentityError::Damaged { path, source }),
        None => Err(IdentityError::NotJoined { path }),
    }
}

/// Replaces the identity; a join under way is complete with it.
pub(super) fn store(state_dir: &Path, identity: &LinkIdentity) -> Result<(), IdentityError> {
    private_file::ensure_dir(&dir(state_dir)).map_err(IdentityError::File)?;
    write_json(&file(state_dir), identity)?;
    // A leftover key without a join is harmless, and the next join may use it.
    let _ = std::fs::remove_file(joining_file(state_dir));
    Ok(())
}

/// The key for a join: that of an earlier attempt, else a new one, on disk before anybody hears of it.
pub(super) fn joining_key(state_dir: &Path) -> Result<HostKey, IdentityError> {
    let path = joining_file(state_dir);
    if let Some(bytes) = private_file::read(&path).map_err(IdentityError::File)? {
        let joining: Joining =
            serde_json::from_slice(&bytes).map_err(|source| IdentityError::Damaged { path, source })?;
        return HostKey::from_pem(&joining.key_pem).map_err(IdentityError::Key);
    }
    let key = HostKey::generate().map_err(IdentityError::Key)?;
    private_file::ensure_dir(&dir(state_dir)).map_err(IdentityError::File)?;
    write_json(&path, &Joining { key_pem: key.to_pem() })?;
    Ok(key)
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), IdentityError> {
    let bytes =
        serde_json::to_vec_pretty(value).map_err(|source| IdentityError::Damaged { path: path.to_owned(), source })?;
    private_file::write(path, &bytes).map_err(IdentityError::File)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_that_was_cut_short_goes_on_with_its_key() {
        let dir = tempfile::tempdir().expect("tempdir");
        let first = joining_key(dir.path()).expect("key").spki_hash();
        assert_eq!(joining_key(dir.path()).expect("key").spki_hash(), first);
        assert!(matches!(load(dir.path()), Err(IdentityError::NotJoined { .. })));
        let identity = LinkIdentity {
            host_id: HostId::new("edge-1").expect("id"),
            vkubelet: "127.0.0.1:1".into(),
            node_name: "node".into(),
            certificate_pem: String::new(),
            ca_pem: String::new(),
            key_pem: "secret".into(),
        };
        store(dir.path(), &identity).expect("store");
        assert_eq!(load(dir.path()).expect("load"), identity);
        assert!(!format!("{identity:?}").contains("secret"));
        assert_ne!(joining_key(dir.path()).expect("key").spki_hash(), first, "a new join has a new key");
    }
}
