//! Who is who on the wire: vkubelet's own CA, hosts' keys and certificates, and the TLS configurations made of them.
//!
//! ```text
//! vkubelet: [`Authority`] (one file, made once) ── signs ──> its own server certificate, renewed in memory
//!                                               └─ signs ──> host certificates: CSR + join token, host id in CN and URI SAN
//! agent:    [`HostKey`] (never leaves the host) ── CSR ──> certificate; trusts the CA pinned by [`SpkiHash`] at join
//! ```
//!
//! Server certificates carry only `serverAuth`, host certificates only `clientAuth`: a host cannot pose as vkubelet. The
//! server is verified by the logical name [`SERVER_NAME`], since agents reach it through addresses that it does not know.
//! TLS 1.3 only, provider aws-lc-rs, chosen explicitly (no process-wide default is needed).

mod authority;
mod fingerprint;
mod host_id;
mod host_key;
mod peer;
pub mod private_file;
pub mod tls;

pub use authority::{Authority, AuthorityError, HOST_VALIDITY, SERVER_NAME};
pub use fingerprint::{ParseSpkiHashError, SpkiHash};
pub use host_id::{HostId, InvalidHostId};
pub use host_key::{HostKey, HostKeyError};
pub use peer::{HostPeer, PeerError};

#[cfg(test)]
mod tests;
