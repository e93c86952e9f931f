//! The frames of an exec, after the upgrade to [`PROTOCOL`]: one byte of kind, four of length (big-endian), the payload.
//!
//! ```text
//! client -> vkubelet   0 stdin bytes    1 stdin has ended
//! vkubelet -> client   2 stdout bytes   3 stderr bytes   4 exit: {"code": N, "error": "..."} (the last one)
//! ```

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The value of `Upgrade`.
pub const PROTOCOL: &str = "nodeless-exec/1";
/// Longer frames are refused.
pub const MAX_FRAME: usize = 1 << 20;

/// What a frame holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Input for the command.
    Stdin(Vec<u8>),
    /// No more input.
    StdinEnd,
    /// Its output.
    Stdout(Vec<u8>),
    /// Its errors.
    Stderr(Vec<u8>),
    /// It has ended.
    Exit(ExecEnd),
}

/// How a command ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecEnd {
    /// Exit code.
    pub code: i32,
    /// It could not be run: why. Empty: it ran.
    pub error: String,
}

/// The other side does not speak this protocol, or the connection broke.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection broke.
    #[error("exec connection")]
    Io(#[from] std::io::Error),
    /// Not a frame.
    #[error("exec connection: frame of kind {kind} and {length} bytes is not valid")]
    Invalid {
        /// The kind byte.
        kind: u8,
        /// The length said.
        length: usize,
    },
}

/// Writes one frame.
pub async fn write(io: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> Result<(), FrameError> {
    let exit;
    let (kind, payload): (u8, &[u8]) = match frame {
        Frame::Stdin(bytes) => (0, bytes),
        Frame::StdinEnd => (1, &[]),
        Frame::Stdout(bytes) => (2, bytes),
        Frame::Stderr(bytes) => (3, bytes),
        Frame::Exit(end) => {
            exit = serde_json::to_vec(end).map_err(std::io::Error::from)?;
            (4, &exit)
        }
    };
    let too_long = || FrameError::Invalid { kind, length: payload.len() };
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_FRAME).ok_or_else(too_long)?;
    let mut bytes = Vec::with_capacity(5 + payload.len());
    bytes.push(kind);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    io.write_all(&bytes).await?;
    io.flush().await?;
    Ok(())
}

/// Reads one frame. `None`: the other side has ended in order.
pub async fn read(io: &mut (impl AsyncRead + Unpin)) -> Result<Option<Frame>, FrameError> {
    let kind = match io.read_u8().await {
        Ok(kind) => kind,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let length = io.read_u32().await? as usize;
    let invalid = || FrameError::Invalid { kind, length };
    if length > MAX_FRAME {
        return Err(invalid());
    }
    let mut payload = vec![0; length];
    io.read_exact(&mut payload).await?;
    Ok(Some(match kind {
        0 => Frame::Stdin(payload),
        1 if length == 0 => Frame::StdinEnd,
        2 => Frame::Stdout(payload),
        3 => Frame::Stderr(payload),
        4 => Frame::Exit(serde_json::from_slice(&payload).map_err(|_| invalid())?),
        _ => return Err(invalid()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[tokio::test]
    async fn frames_survive_the_wire() {
        let (mut a, mut b) = tokio::io::duplex(1 << 16);
        let frames = [
            Frame::Stdin(b"in".to_vec()),
            Frame::StdinEnd,
            Frame::Stdout(Vec::new()),
            Frame::Stderr(vec![0; 4000]),
            Frame::Exit(ExecEnd { code: 3, error: String::new() }),
        ];
        for frame in &frames {
            write(&mut a, frame).await.unwrap();
        }
        drop(a);
        for frame in frames {
            assert_eq!(read(&mut b).await.unwrap(), Some(frame));
        }
        assert_eq!(read(&mut b).await.unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_allocate_much(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(read(&mut bytes.as_slice()));
        }
    }
}
