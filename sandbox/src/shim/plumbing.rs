//! Pipes and channels between the shim and what it forks.

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use super::log::Stream;
use super::own_root;
use super::stub::report::Step;
use crate::protocol::Refusal;

/// A container's streams.
pub(super) struct Plumbing {
    /// What the program gets, unless it gets a terminal.
    pub(super) streams: Vec<OwnedFd>,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) outputs: Vec<(OwnedFd, Stream)>,
}

pub(super) fn plumb(tty: bool, open_stdin: bool) -> Result<Plumbing, Refusal> {
    if tty {
        return Ok(Plumbing { streams: Vec::new(), stdin: None, outputs: Vec::new() });
    }
    let pipe = || pipe_with(PipeFlags::CLOEXEC).step("pipe");
    let (stdin_read, stdin) = if open_stdin {
        let (read, write) = pipe()?;
        (read, Some(write))
    } else {
        (own_root::null()?, None)
    };
    let (out_read, out) = pipe()?;
    let (err_read, err) = pipe()?;
    let outputs = vec![(out_read, Stream::Stdout), (err_read, Stream::Stderr)];
    Ok(Plumbing { streams: vec![stdin_read, out, err], stdin, outputs })
}

pub(super) fn report_channel() -> Result<(OwnedFd, OwnedFd), Refusal> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).step("report channel")?;
    Ok((ours, theirs))
}
