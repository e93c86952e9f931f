//! The server side of SPDY/3.1, as far as Kubernetes uses it: streams that the client opens over an upgraded connection.
//!
//! ```text
//! bytes ──> frame::Parser (headers::Inflater) ──> connection: reader ──> a queue a stream ──> who serves it
//! bytes <── frame::Encoder (headers::Deflater) <── connection: writer <── Outbound <──────────┘
//! ```
//!
//! The parts without a connection are pure. SPDY as Kubernetes uses it has no flow control of its own: a stream that nobody
//! reads holds the whole connection up, so whoever serves one takes its data or drops the queue, which discards it.

pub mod connection;
mod dictionary;
pub mod frame;
pub mod headers;
#[cfg(test)]
mod tests;
