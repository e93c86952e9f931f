//! Frames: an 8-byte header, then JSON.
//!
//! ```text
//!  0      2        4               8
//!  | "Ns" | fds u16 | length u32 BE | length bytes of JSON
//! ```
//!
//! `fds` descriptors belong to the frame; they arrive in order, none later than the frame's last byte.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// Bytes of header.
pub const HEADER: usize = 8;
/// Longest JSON body accepted, in bytes.
pub const MAX_BODY: usize = 4 << 20;
/// Most descriptors in one frame: 128 layers and as many mounts, with room.
pub const MAX_FDS: usize = 512;

const MAGIC: [u8; 2] = *b"Ns";

/// Why a conversation cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The bytes are no frame of ours.
    #[error("frame does not begin as one")]
    Magic,
    /// Longer than [`MAX_BODY`].
    #[error("frame of {length} bytes is too long")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// More descriptors than [`MAX_FDS`], or than the frame says.
    #[error("frame has {count} descriptors, which is too many")]
    TooManyFds {
        /// How many.
        count: usize,
    },
    /// Fewer descriptors arrived than the frame says.
    #[error("frame lacks descriptors")]
    MissingFds,
    /// The body does not parse.
    #[error("parse a message")]
    Body(#[source] serde_json::Error),
    /// The socket failed.
    #[error("socket")]
    Io(#[from] std::io::Error),
    /// The other side closed.
    #[error("the other side closed the connection")]
    Closed,
}

impl From<rustix::io::Errno> for ProtocolError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Header and body of one frame.
pub fn encode(body: &[u8], fds: usize) -> Result<Vec<u8>, ProtocolError> {
    if body.len() > MAX_BODY {
        return Err(ProtocolError::TooLong { length: body.len() });
    }
    let count = u16::try_from(fds).ok().filter(|&n| usize::from(n) <= MAX_FDS);
    let Some(count) = count else {
        return Err(ProtocolError::TooManyFds { count: fds });
    };
    let length = u32::try_from(body.len()).map_err(|_| ProtocolError::TooLong { length: body.len() })?;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&count.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(body);
    Ok(bytes)
}

/// A frame's body and descriptors.
pub type Frame = (Vec<u8>, Vec<OwnedFd>);

/// Cuts a stream of bytes and descriptors into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Decoder {
    /// Adds what was received.
    pub fn push(&mut self, bytes: &[u8], fds: impl IntoIterator<Item = OwnedFd>) -> Result<(), ProtocolError> {
        self.bytes.extend_from_slice(bytes);
        self.fds.extend(fds);
        if self.fds.len() > 2 * MAX_FDS {
            return Err(ProtocolError::TooManyFds { count: self.fds.len() });
        }
        Ok(())
    }

    /// The next whole frame's body and descriptors, if it is there.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        let Some((header, rest)) = self.bytes.split_at_checked(HEADER) else {
            return Ok(None);
        };
        if header[..2] != MAGIC {
            return Err(ProtocolError::Magic);
        }
        let count = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
        if length > MAX_BODY {
            return Err(ProtocolError::TooLong { length });
        }
        if count > MAX_FDS {
            return Err(ProtocolError::TooManyFds { count });
        }
        if rest.len() < length {
            return Ok(None);
        }
        if self.fds.len() < count {
            return Err(ProtocolError::MissingFds);
        }
        let body = rest[..length].to_vec();
        self.bytes.drain(..HEADER + length);
        Ok(Some((body, self.fds.drain(..count).collect())))
    }

    /// Nothing of an unfinished frame is held.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.fds.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fd() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..6),
                                      cut in 1usize..50) {
            let mut stream = Vec::new();
            for body in &bodies {
                stream.extend(encode(body, 0).unwrap());
            }
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in stream.chunks(cut) {
                decoder.push(piece, []).unwrap();
                while let Some((body, fds)) = decoder.next_frame().unwrap() {
                    prop_assert!(fds.is_empty());
                    seen.push(body);
                }
            }
            prop_assert_eq!(seen, bodies);
            prop_assert!(decoder.is_empty());
        }

        #[test]
        fn noise_is_refused_or_waited_for_but_never_panics(noise in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut decoder = Decoder::default();
            decoder.push(&noise, []).unwrap();
            let _ = decoder.next_frame();
        }
    }

    #[test]
    fn descriptors_go_to_the_frame_that_claims_them() {
        let mut decoder = Decoder::default();
        decoder.push(&encode(b"1", 2).unwrap(), [fd(), fd(), fd()]).unwrap();
        decoder.push(&encode(b"2", 1).unwrap(), []).unwrap();
        assert_eq!(decoder.next_frame().unwrap().unwrap().1.len(), 2);
        assert_eq!(decoder.next_frame().unwrap().unwrap().1.len(), 1);
        assert!(decoder.is_empty());
    }

    #[test]
    fn limits_are_kept_on_both_sides() {
        assert!(matches!(encode(&vec![0; MAX_BODY + 1], 0), Err(ProtocolError::TooLong { .. })));
        assert!(matches!(encode(b"", MAX_FDS + 1), Err(ProtocolError::TooManyFds { .. })));
        let mut decoder = Decoder::default();
        decoder.push(&[b'N', b's', 0, 0, 0xff, 0, 0, 0], []).unwrap();
        assert!(matches!(decoder.next_frame(), Err(ProtocolError::TooLong { .. })));
        let mut decoder = Decoder::default();
        decoder.push(&encode(b"", 1).unwrap(), []).unwrap();
        assert!(matches!(decoder.next_frame(), Err(ProtocolError::MissingFds)));
    }
}
