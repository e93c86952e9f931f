//! What a stub tells its shim before its program takes over, and the one thing that it is told.
//!
//! The channel is a socket that closes at `execve`. `Executing` and then the end of the channel is success; `Failed`
//! is not; the end without `Executing` means that the stub was killed on the way.

use std::io;

use serde::{Deserialize, Serialize};

use crate::protocol::Refusal;

/// One message of a stub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub(crate) enum Report {
    /// What can be made without an order is made.
    Ready,
    /// The root that was to be made ahead comes with this; or none, where the kernel takes no layers by descriptor. After
    /// `Failed` instead of this it waits on.
    Assembled,
    /// The terminal's master side comes with this.
    Terminal,
    /// Something was left out that is no reason to fail.
    Degraded {
        /// What.
        what: String,
    },
    /// `execve` comes next.
    Executing,
    /// It cannot go on.
    Failed {
        /// Why.
        refusal: Refusal,
    },
}

/// What the shim says once all that the program needs is there: it may be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proceed;

/// Names the step that failed.
pub(crate) trait Step<T> {
    /// `step` says what was tried, as in "mount of /proc".
    fn step(self, step: impl Into<String>) -> Result<T, Refusal>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, Refusal> {
        self.map_err(|error| Refusal::failed(step, &error.into()))
    }
}
