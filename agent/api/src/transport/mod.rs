//! The reversed connection: the agent dials and then serves; vkubelet accepts and then calls.
//!
//! ```text
//! agent                                       vkubelet
//!   TCP connect, TLS 1.3 with client cert  ──>   accept            ALPN [`ALPN_AGENT`]
//!   read [`preamble`]                      <──   "NODELESS/1 OK" or a refusal with its reason
//!   [`serve`]: HTTP/2 server               <──   [`Caller::connect`]: HTTP/2 client, gRPC calls
//! ```
//!
//! Enrolment uses the same port in the ordinary direction, without a client certificate, by ALPN [`ALPN_JOIN`].
//!
//! Either side notices a dead peer within [`KEEPALIVE_INTERVAL`] + [`KEEPALIVE_TIMEOUT`] (HTTP/2 PING). Each connection is
//! wrapped once in a [`Watched`] stream, whose [`Link`] says when it ended and why, and can end it.

mod caller;
mod io;
pub mod preamble;
mod server;

use std::time::Duration;

pub use caller::{Caller, ConnectError};
pub use io::{Link, Watched};
pub use server::{ServeError, agent_routes, serve};

/// ALPN protocol of an agent's reversed connection.
pub const ALPN_AGENT: &[u8] = b"nodeless-agent/1";
/// ALPN protocol of an enrolment call.
pub const ALPN_JOIN: &[u8] = b"nodeless-join/1";
/// Largest gRPC message in either direction, in bytes.
pub const MAX_MESSAGE: usize = 4 << 20;
/// A quiet connection is asked for a sign of life this often.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// Without an answer for this long it is dead.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// Streams of a connection at once. A connection that the peer must be done with: streams at once.
pub const MAX_STREAMS: u32 = 1024;
/// HTTP/2 receive window of one stream, in bytes: enough for logs at LAN speed, little enough for a stalled reader.
pub const STREAM_WINDOW: u32 = 256 << 10;
/// HTTP/2 receive window of a connection, in bytes: with every stream stalled (a session whose client reads nothing, a container
/// that takes no input) there is room for what the hosts are told.
pub const CONNECTION_WINDOW: u32 = 2 * MAX_STREAMS * STREAM_WINDOW;

#[cfg(test)]
mod tests;
