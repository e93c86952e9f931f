//! What can go wrong, in words that say what to do.

use std::path::PathBuf;

use vkubelet::client_api::Problem;
use vkubelet::client_api::frames::FrameError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// No socket.
    #[error("no vkubelet socket at {}: is vkubelet running? Its --run-dir says where the socket is: give --socket RUN_DIR/vkubelet.sock or NODELESS_SOCKET", .0.display())]
    NoSocket(PathBuf),
    /// A socket that nobody serves.
    #[error("nobody answers at {}: vkubelet has ended; start it again", .0.display())]
    Refused(PathBuf),
    /// Not ours.
    #[error("no permission for {}: run as root or as vkubelet's user", .0.display())]
    Denied(PathBuf),
    /// Something else about the socket.
    #[error("connect to {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The connection broke, or is not HTTP.
    #[error("talk to vkubelet: {0}")]
    Talk(String),
    /// vkubelet said no.
    #[error("{}", .0.detail)]
    Problem(Problem),
    /// An argument that cannot be used.
    #[error("{0}")]
    Argument(String),
    /// Exec connection.
    #[error("{0}")]
    Frames(#[from] FrameError),
    /// Standard output could not be written.
    #[error("write output: {0}")]
    Output(std::io::Error),
    /// Whoever read our output has gone: no failure.
    #[error("output closed")]
    PipeClosed,
}

impl Failure {
    /// Of writing to standard output.
    pub(crate) fn output(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe { Self::PipeClosed } else { Self::Output(error) }
    }

    /// The thing asked for does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Problem(problem) if problem.status == 404)
    }
}
