//! Frames over a Unix stream socket, descriptors by `SCM_RIGHTS`.
//!
//! One type for blocking and non-blocking use: [`Connection::fill`] reads once, [`Connection::flush`] writes what it can.
//! A blocking caller uses [`Connection::send`] and [`Connection::receive`].

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frame::{Decoder, Frame, MAX_BODY, ProtocolError, encode};

/// The kernel takes at most 253 descriptors a message.
const FDS_A_MESSAGE: usize = 250;
/// A peer that does not read is cut off above this many bytes waiting.
const MAX_BACKLOG: usize = 4 * MAX_BODY;

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Bytes; there may be more.
    Data,
    /// Nothing now (non-blocking sockets).
    WouldBlock,
    /// The other side closed.
    Closed,
    /// The other side closed, and had not read all that it was sent (unix(7): `ECONNRESET`).
    Unread,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: VecDeque<OwnedFd>,
}

/// One end of a conversation.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    decoder: Decoder,
    outgoing: VecDeque<Outgoing>,
    backlog: usize,
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Connection {
    /// Wraps a connected stream socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, decoder: Decoder::default(), outgoing: VecDeque::new(), backlog: 0 }
    }

    /// The socket, to wait on.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Bytes wait to be sent.
    pub fn wants_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Appends a message to what will be sent; the descriptors are closed once sent.
    pub fn queue(&mut self, message: &impl Serialize, fds: Vec<OwnedFd>) -> Result<(), ProtocolError> {
        let body = serde_json::to_vec(message).map_err(ProtocolError::Body)?;
        let bytes = encode(&body, fds.len())?;
        if self.backlog + bytes.len() > MAX_BACKLOG {
            return Err(ProtocolError::TooLong { length: self.backlog + bytes.len() });
        }
        self.backlog += bytes.len();
        self.outgoing.push_back(Outgoing { bytes, sent: 0, fds: fds.into() });
        Ok(())
    }

    /// Writes what the socket takes; true when nothing waits any more.
    pub fn flush(&mut self) -> Result<bool, ProtocolError> {
        while let Some(frame) = self.outgoing.front_mut() {
            match send_some(self.socket.as_fd(), frame) {
                Ok(sent) => {
                    self.backlog -= sent;
                    if frame.sent == frame.bytes.len() {
                        self.outgoing.pop_front();
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(ProtocolError::Closed),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }

    /// Reads once.
    pub fn fill(&mut self) -> Result<Fill, ProtocolError> {
        // Most messages are shorter, and the stack of a shim stays as large as it was once.
        let mut bytes = [0u8; 4 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(256))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Fill::WouldBlock),
                Err(Errno::CONNRESET) => return Ok(Fill::Unread),
                Err(errno) => return Err(errno.into()),
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(ProtocolError::MissingFds);
        }
        if received.bytes == 0 {
            return Ok(Fill::Closed);
        }
        self.decoder.push(&bytes[..received.bytes], fds)?;
        Ok(Fill::Data)
    }

    /// The next whole message among what was read.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>, ProtocolError> {
        match self.decoder.next_frame()? {
            Some((body, fds)) => Ok(Some((serde_json::from_slice(&body).map_err(ProtocolError::Body)?, fds))),
            None => Ok(None),
        }
    }

    /// The next whole message's text, for whoever must answer also what does not parse.
    pub fn next_body(&mut self) -> Result<Option<Frame>, ProtocolError> {
        self.decoder.next_frame()
    }

    /// Blocking: sends a message.
    pub fn send(&mut self, message: &impl Serialize, fds: Vec<OwnedFd>) -> Result<(), ProtocolError> {
        self.queue(message, fds)?;
        self.flush().map(|_| ())
    }

    /// Blocking: waits for the next message.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<(T, Vec<OwnedFd>), ProtocolError> {
        loop {
            if let Some(message) = self.next_message()? {
                return Ok(message);
            }
            if matches!(self.fill()?, Fill::Closed | Fill::Unread) {
                return Err(ProtocolError::Closed);
            }
        }
    }
}

fn send_some(socket: BorrowedFd<'_>, frame: &mut Outgoing) -> Result<usize, Errno> {
    let count = frame.fds.len().min(FDS_A_MESSAGE);
    // With descriptors still to come, keep the frame's last byte back, so that none arrives after it.
    let end = if frame.fds.len() > count { (frame.sent + 1).min(frame.bytes.len()) } else { frame.bytes.len() };
    let borrowed: Vec<BorrowedFd<'_>> = frame.fds.iter().take(count).map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_A_MESSAGE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if count > 0 {
        control.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    let sent = sendmsg(socket, &[IoSlice::new(&frame.bytes[frame.sent..end])], &mut control, SendFlags::NOSIGNAL)?;
    frame.fds.drain(..count);
    frame.sent += sent;
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (Connection, Connection) {
        let (a, b) = UnixStream::pair().unwrap();
        (Connection::new(a.into()), Connection::new(b.into()))
    }

    #[test]
    fn messages_and_descriptors_arrive_together_and_in_order() {
        let (mut a, mut b) = pair();
        let files: Vec<OwnedFd> =
            (0..400).map(|_| rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::empty()).unwrap()).collect();
        for (i, file) in files.iter().enumerate() {
            rustix::io::write(file, i.to_string().as_bytes()).unwrap();
        }
        a.send(&vec!["x"; 3], files).unwrap();
        a.send(&"second", vec![]).unwrap();
        let (body, fds) = b.receive::<Vec<String>>().unwrap();
        assert_eq!(body.len(), 3);
        for (i, fd) in fds.iter().enumerate() {
            let text = std::fs::read_to_string(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
            assert_eq!(text, i.to_string());
        }
        assert_eq!(fds.len(), 400);
        assert_eq!(b.receive::<String>().unwrap().0, "second");
    }

    #[test]
    fn a_closed_peer_is_told_apart_from_an_error() {
        let (a, mut b) = pair();
        drop(a);
        assert!(matches!(b.receive::<String>(), Err(ProtocolError::Closed)));
        assert!(matches!(b.send(&1, vec![]), Err(ProtocolError::Closed)));
    }

    #[test]
    fn a_peer_that_closed_tells_whether_it_had_read_all() {
        let (mut a, mut b) = pair();
        a.send(&"read", vec![]).unwrap();
        b.send(&"answer", vec![]).unwrap();
        assert_eq!(b.receive::<String>().unwrap().0, "read");
        drop(b);
        assert_eq!(a.receive::<String>().unwrap().0, "answer");
        assert_eq!(a.fill().unwrap(), Fill::Closed);
        let (mut a, mut b) = pair();
        a.send(&"read", vec![]).unwrap();
        b.send(&"answer", vec![]).unwrap();
        assert_eq!(b.receive::<String>().unwrap().0, "read");
        a.send(&"never read", vec![]).unwrap();
        drop(b);
        assert_eq!(a.receive::<String>().unwrap().0, "answer", "what it said before comes first");
        assert_eq!(a.fill().unwrap(), Fill::Unread);
    }
}
