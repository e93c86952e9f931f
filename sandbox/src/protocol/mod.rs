//! How agent, keeper and shim speak: frames of JSON with file descriptors beside them, over a stream socket.
//!
//! ```text
//!  agent (namespace/)  ── keeper::Request ──>  keeper     layers, clones, spawning
//!                      ── shim::Request ────>  shim       one sandbox
//!                      <─ shim::Notice ──────             events, unasked
//! ```
//!
//! * [`frame`]: header, limits, and a decoder that knows no sockets (so that it also serves virtio-serial).
//! * [`connection`]: frames over a Unix socket, descriptors by `SCM_RIGHTS`; blocking and non-blocking alike.
//! * [`keeper`], [`shim`]: the messages, with the order of the descriptors that go with each.
//!
//! # Versions
//! The first request on every connection is `Hello` with the versions that the caller speaks; the answer names the highest
//! that both do. An agent must be able to speak to shims that an older or a newer agent started, so:
//! * Fields are only ever added, with serde defaults; whoever does not know one passes it over.
//! * A request that came with a later version ([`shim::Request::since`]) is not sent to a side that speaks an earlier one,
//!   and one that a shim does not know at all is answered [`Refusal::Unsupported`], by name. Neither ends the connection.
//! * A notice that came with a later version goes only to who asked for what it tells of, and one that is not known is
//!   passed over.
//! * What any released version sent must parse for ever: `tests/data/protocol`.
//!
//! | version | what it added |
//! | --- | --- |
//! | 1 | everything up to here |
//! | 2 | attach, resize, pause, resume; `ContainerSpec::target`; refusals of unknown requests by name; which program runs |
//! | 3 | images as mounts: [`Mount::layers`](crate::spec::Mount::layers) |

pub(crate) mod asking;
pub mod connection;
pub mod frame;
pub mod keeper;
pub mod shim;

use serde::{Deserialize, Serialize};

pub use connection::{Connection, Fill};
pub use frame::ProtocolError;

/// The protocol versions that this build speaks, lowest and highest.
pub const VERSIONS: Versions = Versions { lowest: 1, highest: 3 };

/// A range of protocol versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Lowest spoken.
    pub lowest: u32,
    /// Highest spoken.
    pub highest: u32,
}

impl Versions {
    /// The highest version that both sides speak.
    pub fn negotiate(self, other: Self) -> Option<u32> {
        let highest = self.highest.min(other.highest);
        (highest >= self.lowest && highest >= other.lowest).then_some(highest)
    }
}

/// A request with the number by which its answer is known; 0 is kept for notices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call<T> {
    /// Chosen by the caller, echoed in the answer.
    pub id: u64,
    /// What is asked.
    pub body: T,
}

/// What is left of a request that does not parse: enough to refuse it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Unparsed {
    /// The call's number.
    pub id: u64,
    /// What was asked, by name.
    pub body: Named,
}

impl Unparsed {
    /// Why `body` is refused, by name; `names` are those of all requests that there are. `None`: it is not even a request.
    pub fn refuse(body: &[u8], names: &[&str], version: u32, error: &serde_json::Error) -> Option<(u64, Refusal)> {
        let Self { id, body: Named { op } } = serde_json::from_slice(body).ok()?;
        let refusal = if names.contains(&op.as_str()) {
            Refusal::Invalid { message: format!("request {op}: {error}") }
        } else {
            Refusal::unknown_request(&op, version)
        };
        Some((id, refusal))
    }
}

/// A request's name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Named {
    /// As in [`shim::Request`] and [`keeper::Request`].
    pub op: String,
}

/// What comes back on a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer<T> {
    /// The call's number.
    pub id: u64,
    /// Its outcome.
    pub result: Result<T, Refusal>,
}

/// Why a request was not carried out; the serialisable twin of `SandboxError`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Refusal {
    /// What was asked for is not there.
    NotFound {
        /// Its name.
        what: String,
    },
    /// It cannot be carried out, now or later.
    Invalid {
        /// Why.
        message: String,
    },
    /// There is no such request in the version that the asked side speaks. Since version 2.
    Unsupported {
        /// The request's name.
        what: String,
    },
    /// The program could not be executed.
    Exec {
        /// In a runtime's words.
        message: String,
        /// 127, 126 or 128.
        code: i32,
    },
    /// A step failed.
    Failed {
        /// Which step.
        operation: String,
        /// The kernel's words.
        message: String,
        /// Its errno, if any.
        #[serde(default)]
        errno: Option<i32>,
    },
}

impl Refusal {
    /// There is no such request in `version`, in words that it has.
    pub fn unknown_request(name: &str, version: u32) -> Self {
        match version {
            1 => Self::Invalid { message: format!("request {name} is unknown in version 1") },
            _ => Self::Unsupported { what: format!("request {name}") },
        }
    }

    /// A step that the kernel refused.
    pub fn failed(operation: impl Into<String>, error: &std::io::Error) -> Self {
        Self::Failed { operation: operation.into(), message: error.to_string(), errno: error.raw_os_error() }
    }
}

impl From<Refusal> for crate::contract::SandboxError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound { what } => Self::NotFound { what },
            Refusal::Invalid { message } => Self::Invalid { message },
            Refusal::Unsupported { what } => Self::Unsupported { what },
            Refusal::Exec { message, code } => Self::Exec { message, code },
            Refusal::Failed { operation, message, .. } => Self::Failed { operation, message },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_is_chosen_or_none() {
        let range = |lowest, highest| Versions { lowest, highest };
        assert_eq!(range(1, 3).negotiate(range(2, 5)), Some(3));
        assert_eq!(range(2, 5).negotiate(range(1, 3)), Some(3));
        assert_eq!(range(1, 1).negotiate(range(2, 2)), None);
    }
}
