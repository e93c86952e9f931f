//! The converter's side.

use std::{fs::File, io, os::fd::OwnedFd, process::ExitCode, sync::Arc};

use super::{Answer, Order, channel, confine};
use crate::convert::{ConvertError, open_below, stage_blob};

/// The whole life of a layer converter: a program whose `main` calls this, before it starts any thread, can stand in
/// [`Converter::Program`](crate::Converter::Program). Confines the process for good, converts one layer, and says how it went in the exit code
/// (the owner is told more through standard input, a socket).
pub fn run_converter() -> ExitCode {
    match confine::confine().and_then(|()| serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve() -> io::Result<()> {
    let socket = io::stdin();
    let gone = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let (order, fds) = channel::receive::<Order>(&socket)?.ok_or_else(gone)?;
    let (Order::Job { diff_id, limits }, Ok([blob, out])) = (order, <[OwnedFd; 2]>::try_from(fds)) else {
        return Err(io::Error::other("first message is no job"));
    };
    // Content, and once more as much for what surrounds it.
    confine::limit_output(limits.layer_bytes.saturating_mul(2))?;
    let staged = match stage_blob(File::from(blob), &diff_id, File::from(out), &limits) {
        Ok(staged) => staged,
        Err(error) => return refuse(&error),
    };
    channel::send(&socket, &Answer::Staged, &[])?;
    let Some((Order::Finish, layers)) = channel::receive::<Order>(&socket)? else {
        return Err(gone());
    };
    let below: Vec<Arc<File>> = layers.into_iter().map(|fd| Arc::new(File::from(fd))).collect();
    match open_below(&below).and_then(|below| staged.finish(&below)) {
        Ok(converted) => channel::send(&socket, &Answer::Converted(converted), &[]),
        Err(error) => refuse(&error),
    }
}

fn refuse(error: &ConvertError) -> io::Result<()> {
    let message = crate::error::chain(error).chars().take(2000).collect();
    channel::send(io::stdin(), &Answer::Refused { kind: error.kind(), message }, &[])
}
