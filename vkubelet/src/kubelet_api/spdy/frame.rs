//! Frames, as bytes and as what they mean.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::headers::{Deflater, Headers, Inflater};

/// Longest control frame. Kubernetes' are below 200 bytes.
const LONGEST_CONTROL: usize = 64 << 10;
const VERSION: u16 = 3;
const CONTROL: u16 = 0x8000;
const FIN: u8 = 1;
const LONGEST_DATA: usize = (1 << 24) - 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why a stream is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Reset {
    /// What it did makes no sense.
    Protocol = 1,
    /// It is not served.
    Refused = 3,
    /// It is not wanted any more.
    Cancel = 5,
}

/// The peer does not speak SPDY/3.1, or more of it than anybody needs; the connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A control frame that is too long.
    #[error("a control frame of type {kind} and {length} bytes")]
    Long {
        /// Its type.
        kind: u16,
        /// Its length.
        length: usize,
    },
    /// A control frame that is too short for what it says, or of a type that nobody knows.
    #[error("a control frame of type {kind} cannot be understood")]
    Control {
        /// Its type.
        kind: u16,
    },
    /// A header block.
    #[error("a header block {0}")]
    Headers(&'static str),
}

/// What the peer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It opens a stream.
    Open {
        /// Its number.
        stream: u32,
        /// Its headers.
        headers: Headers,
        /// It will send nothing on it.
        ended: bool,
    },
    /// It accepts a stream of ours.
    Accepted {
        /// Its number.
        stream: u32,
    },
    /// A piece of a stream's data: frames arrive in as many pieces as they are read in.
    Data {
        /// Which stream.
        stream: u32,
        /// The piece.
        bytes: Bytes,
        /// It was the last.
        ended: bool,
    },
    /// It gives a stream up.
    Reset {
        /// Which stream.
        stream: u32,
    },
    /// It asks for the same back.
    Ping {
        /// Which ping.
        id: u32,
    },
    /// It is leaving.
    GoAway,
    /// Nothing that matters here.
    Nothing,
}

/// Takes frames from bytes.
#[derive(Debug, Default)]
pub struct Parser {
    inflater: Inflater,
    /// A data frame that has begun: its stream, how much of it is to come, whether it is the last.
    data: Option<(u32, usize, bool)>,
}

impl Parser {
    /// The next thing said; `None`: more bytes are needed.
    ///
    /// # Errors
    /// The peer breaks the protocol; nothing after it can be understood.
    pub fn next(&mut self, bytes: &mut BytesMut) -> Result<Option<Said>, ProtocolError> {
        if let Some((stream, left, last)) = self.data.take() {
            return Ok(self.piece(bytes, stream, left, last));
        }
        let Some(head) = bytes.first_chunk::<8>().copied() else { return Ok(None) };
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let (flags, length) = (head[4], u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize);
        if head[0] & 0x80 == 0 {
            bytes.advance(8);
            let last = flags & FIN != 0;
            if length == 0 {
                return Ok(Some(Said::Data { stream: first, bytes: Bytes::new(), ended: last }));
            }
            return Ok(self.piece(bytes, first, length, last));
        }
        let kind = u16::from_be_bytes([head[2], head[3]]);
        if length > LONGEST_CONTROL {
            return Err(ProtocolError::Long { kind, length });
        }
        if bytes.len() < 8 + length {
            bytes.reserve(8 + length - bytes.len());
            return Ok(None);
        }
        bytes.advance(8);
        let payload = bytes.split_to(length).freeze();
        self.control(kind, flags, payload).map(Some)
    }

    fn piece(&mut self, bytes: &mut BytesMut, stream: u32, left: usize, last: bool) -> Option<Said> {
        let piece = bytes.split_to(left.min(bytes.len())).freeze();
        let left = left - piece.len();
        if left > 0 {
            self.data = Some((stream, left, last));
        }
        (!piece.is_empty()).then_some(Said::Data { stream, bytes: piece, ended: last && left == 0 })
    }

    fn control(&mut self, kind: u16, flags: u8, mut payload: Bytes) -> Result<Said, ProtocolError> {
        let unclear = ProtocolError::Control { kind };
        let number = |payload: &mut Bytes| payload.try_get_u32().map_err(|_| unclear);
        Ok(match kind {
            SYN_STREAM => {
                let stream = number(&mut payload)? & 0x7fff_ffff;
                // The stream that it belongs to, its priority and slot: never used.
                payload.try_get_u32().and_then(|_| payload.try_get_u16()).map_err(|_| unclear)?;
                let headers = self.inflater.read(&payload)?;
                Said::Open { stream, headers, ended: flags & FIN != 0 }
            }
            SYN_REPLY => {
                let stream = number(&mut payload)? & 0x7fff_ffff;
                self.inflater.read(&payload)?;
                Said::Accepted { stream }
            }
            HEADERS => {
                number(&mut payload)?;
                self.inflater.read(&payload)?;
                Said::Nothing
            }
            RST_STREAM => Said::Reset { stream: number(&mut payload)? & 0x7fff_ffff },
            PING => Said::Ping { id: number(&mut payload)? },
            GOAWAY => Said::GoAway,
            SETTINGS | WINDOW_UPDATE => Said::Nothing,
            _ => return Err(unclear),
        })
    }
}

/// Makes frames. Its order of calls is the order on the wire.
#[derive(Debug, Default)]
pub struct Encoder {
    deflater: Deflater,
}

fn control(kind: u16, flags: u8, payload: &[&[u8]]) -> Bytes {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    let mut frame = BytesMut::with_capacity(8 + length);
    frame.put_u16(CONTROL | VERSION);
    frame.put_u16(kind);
    frame.put_u8(flags);
    frame.put_uint(length as u64, 3);
    payload.iter().for_each(|part| frame.put_slice(part));
    frame.freeze()
}

impl Encoder {
    /// Opens a stream, as a client does.
    pub fn open(&mut self, stream: u32, headers: &[(&str, &str)], ended: bool) -> Bytes {
        let block = self.deflater.write(headers);
        control(SYN_STREAM, u8::from(ended) * FIN, &[&stream.to_be_bytes(), &[0; 6], &block])
    }

    /// Accepts a stream of the peer's.
    pub fn accept(&mut self, stream: u32) -> Bytes {
        let block = self.deflater.write(&[]);
        control(SYN_REPLY, 0, &[&stream.to_be_bytes(), &block])
    }

    /// Refuses or gives up a stream.
    pub fn reset(&self, stream: u32, why: Reset) -> Bytes {
        control(RST_STREAM, 0, &[&stream.to_be_bytes(), &(why as u32).to_be_bytes()])
    }

    /// Asks for the same back, or gives it.
    pub fn ping(&self, id: u32) -> Bytes {
        control(PING, 0, &[&id.to_be_bytes()])
    }

    /// Nothing after this.
    pub fn go_away(&self, last: u32) -> Bytes {
        control(GOAWAY, 0, &[&last.to_be_bytes(), &0_u32.to_be_bytes()])
    }

    /// The head of a data frame, which its bytes follow: fewer than 2^24.
    pub fn data(&self, stream: u32, length: usize, ended: bool) -> [u8; 8] {
        debug_assert!(length <= LONGEST_DATA);
        let (s, l) = (stream.to_be_bytes(), u32::try_from(length).unwrap_or(0).to_be_bytes());
        [s[0], s[1], s[2], s[3], u8::from(ended) * FIN, l[1], l[2], l[3]]
    }
}
