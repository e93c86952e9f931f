//! Join tokens: 192 random bits, shown once, kept as a SHA-256 with an expiry and a number of uses.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::locked_file::{self, StateError};

const PREFIX: &str = "nlj_";

/// What a new token allows.
#[derive(Debug, Clone)]
pub struct TokenOptions {
    /// From now on for this long.
    pub ttl: Duration,
    /// For so many joins; `None` is as many as come.
    pub uses: Option<u32>,
    /// Whether a host id that is enrolled already may get a new key with it.
    pub rejoin: bool,
    /// Only for this host id, when given.
    pub host_id: Option<String>,
}

impl Default for TokenOptions {
    fn default() -> Self {
        TokenOptions { ttl: Duration::from_secs(3600), uses: None, rejoin: false, host_id: None }
    }
}

/// A token as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredToken {
    /// SHA-256 of the token's text, in hexadecimal.
    pub sha256: String,
    /// Unix seconds.
    pub expires_unix: u64,
    /// Uses left; `None` is unlimited.
    pub uses_left: Option<u32>,
    /// May replace the key of an enrolled host.
    pub rejoin: bool,
    /// Only for this host id.
    pub host_id: Option<String>,
}

/// A token was made or could not be.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The operating system gave no randomness.
    #[error("get random bytes")]
    Random,
    /// The tokens file does not work.
    #[error("keep join tokens")]
    State(#[source] StateError),
}

/// What a valid token grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// May replace the key of an enrolled host.
    pub rejoin: bool,
}

fn file(state_dir: &Path) -> PathBuf {
    super::directory(state_dir).join("tokens.json")
}

fn now_unix() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn digest(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

/// Makes a token, for `vkubelet token create` (which may run beside the daemon). The text is not kept anywhere.
pub fn create(state_dir: &Path, options: &TokenOptions) -> Result<String, TokenError> {
    let mut random = [0_u8; 24];
    rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut random).map_err(|_| TokenError::Random)?;
    let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
    let now = now_unix();
    let stored = StoredToken {
        sha256: digest(&token),
        expires_unix: now.saturating_add(options.ttl.as_secs()),
        uses_left: options.uses,
        rejoin: options.rejoin,
        host_id: options.host_id.clone(),
    };
    locked_file::update(&file(state_dir), |tokens: &mut Vec<StoredToken>| {
        // One that is used up stays until it expires: a join whose answer was lost may be repeated with the same key.
        tokens.retain(|token| token.expires_unix > now);
        tokens.push(stored);
    })
    .map_err(TokenError::State)?;
    Ok(token)
}

/// The tokens that still allow something.
pub fn list(state_dir: &Path) -> Result<Vec<StoredToken>, TokenError> {
    let mut tokens: Vec<StoredToken> = locked_file::read(&file(state_dir)).map_err(TokenError::State)?;
    let now = now_unix();
    tokens.retain(|token| token.expires_unix > now && token.uses_left != Some(0));
    Ok(tokens)
}

/// Uses a token once for a host. `None`: unknown, expired, used up, or for another host; which of them is not told.
/// `again`: this host is enrolled with this very key already, so that the join is a repetition and costs no use.
pub(super) fn redeem(state_dir: &Path, token: &str, host_id: &str, again: bool) -> Result<Option<Grant>, TokenError> {
    redeem_at(&file(state_dir), token, host_id, again, now_unix()).map_err(TokenError::State)
}

fn redeem_at(path: &Path, token: &str, host_id: &str, again: bool, now: u64) -> Result<Option<Grant>, StateError> {
    // The hash of a guess says nothing about the hash kept, so comparing hashes needs no constant time.
    let sha256 = digest(token);
    locked_file::update(path, |tokens: &mut Vec<StoredToken>| {
        let found = tokens.iter_mut().find(|stored| stored.sha256 == sha256)?;
        let for_this_host = found.host_id.as_deref().is_none_or(|only| only == host_id);
        if found.expires_unix <= now || !for_this_host || (found.uses_left == Some(0) && !again) {
            return None;
        }
        if let (Some(left), false) = (&mut found.uses_left, again) {
            *left -= 1;
        }
        Some(Grant { rejoin: found.rejoin })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_shown_once_and_kept_as_a_hash() {
        let dir = tempfile::tempdir().expect("tempdir");
        let token = create(dir.path(), &TokenOptions::default()).expect("token");
        let kept = std::fs::read_to_string(file(dir.path())).expect("file");
        assert!(token.len() >= 36 && !kept.contains(&token[4..]), "{kept}");
        assert_ne!(token, create(dir.path(), &TokenOptions::default()).expect("another"));
        assert_eq!(list(dir.path()).expect("list").len(), 2);
    }

    #[test]
    fn a_token_ends_with_its_time_and_its_uses() {
        let dir = tempfile::tempdir().expect("tempdir");
        let options = TokenOptions { uses: Some(2), ttl: Duration::from_secs(60), ..TokenOptions::default() };
        let token = create(dir.path(), &options).expect("token");
        let path = file(dir.path());
        let redeem =
            |token: &str, after: u64| redeem_at(&path, token, "edge-1", false, now_unix() + after).expect("answer");
        assert_eq!(redeem(&token, 61), None, "expired");
        assert_eq!(redeem("nlj_guess", 0), None, "unknown");
        assert!(redeem(&token, 0).is_some() && redeem(&token, 0).is_some());
        assert_eq!(redeem(&token, 0), None, "used up");
        let again = redeem_at(&path, &token, "edge-1", true, now_unix()).expect("answer");
        assert!(again.is_some(), "the answer of the last use was lost");
        assert!(list(dir.path()).expect("list").is_empty());
    }

    #[test]
    fn one_use_is_one_use_under_a_race() {
        let dir = tempfile::tempdir().expect("tempdir");
        let token = create(dir.path(), &TokenOptions { uses: Some(1), ..TokenOptions::default() }).expect("token");
        let granted = std::thread::scope(|scope| {
            let redeem = || super::redeem(dir.path(), &token, "edge-1", false).expect("answer").is_some();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(redeem)).collect();
            threads.into_iter().map(|thread| thread.join().expect("thread")).filter(|yes| *yes).count()
        });
        assert_eq!(granted, 1);
    }

    #[test]
    fn a_token_for_one_host_admits_no_other() {
        let dir = tempfile::tempdir().expect("tempdir");
        let options = TokenOptions { host_id: Some("edge-1".into()), ..TokenOptions::default() };
        let token = create(dir.path(), &options).expect("token");
        assert_eq!(redeem(dir.path(), &token, "edge-2", false).expect("answer"), None);
        assert_eq!(redeem(dir.path(), &token, "edge-1", false).expect("answer"), Some(Grant { rejoin: false }));
    }
}
