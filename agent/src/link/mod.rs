//! The link to vkubelet: joining it once, and one connection kept alive for ever.
//!
//! ```text
//! nodeless-agent join ── [`join`]: key made here, CSR + token, CA pinned by hash ──> STATE_DIR/pki/identity.json
//! nodeless-agent run  ── [`serve`]: dial, TLS, read the welcome, serve gRPC; again after each end, with back-off
//! ```
//!
//! `pki/` (0700) holds `identity.json` (0600): key, certificate, CA, vkubelet's address, host id; one file, so that a join is
//! complete or has not happened. The certificate is renewed when a third of its life is left. `joining.json` beside it keeps the key of a join under way, so that a join whose answer
//! was lost can be repeated without spending the token twice.
//!
//! This module knows nothing of pods.

mod backoff;
mod dial;
mod identity;
mod join;
mod renew;
mod serve;

pub use dial::DialError;
pub use identity::{IdentityError, LinkIdentity, load};
pub use join::{JoinError, JoinOptions, Joined, join};
pub use serve::{LinkConfig, LinkState, serve};

#[cfg(test)]
mod tests;
