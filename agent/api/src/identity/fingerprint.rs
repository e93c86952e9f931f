//! The hash of a public key, by which a CA is pinned and a host's key is recognised.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// SHA-256 of a DER SubjectPublicKeyInfo, written `sha256:` and 64 hexadecimal digits (as kubeadm does).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpkiHash([u8; 32]);

/// The text is no public key hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid key hash {0:?}: expected sha256: and 64 hexadecimal digits")]
pub struct ParseSpkiHashError(String);

impl SpkiHash {
    /// Hashes a DER SubjectPublicKeyInfo.
    pub fn of_spki(der: &[u8]) -> SpkiHash {
        SpkiHash(Sha256::digest(der).into())
    }
}

impl fmt::Display for SpkiHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl FromStr for SpkiHash {
    type Err = ParseSpkiHashError;

    fn from_str(text: &str) -> Result<SpkiHash, ParseSpkiHashError> {
        let invalid = || ParseSpkiHashError(text.to_owned());
        let digits = text.strip_prefix("sha256:").ok_or_else(invalid)?;
        let mut hash = [0; 32];
        hex::decode_to_slice(digits, &mut hash).map_err(|_| invalid())?;
        Ok(SpkiHash(hash))
    }
}

impl TryFrom<String> for SpkiHash {
    type Error = ParseSpkiHashError;

    fn try_from(text: String) -> Result<SpkiHash, ParseSpkiHashError> {
        text.parse()
    }
}

impl From<SpkiHash> for String {
    fn from(hash: SpkiHash) -> String {
        hash.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_reads_back_and_anything_else_is_refused() {
        let hash = SpkiHash::of_spki(b"key");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        for bad in ["", "sha256:", "sha256:00", "md5:00", &hash.to_string()[7..], &format!("{hash}00")] {
            assert!(bad.parse::<SpkiHash>().is_err(), "{bad}");
        }
    }
}
