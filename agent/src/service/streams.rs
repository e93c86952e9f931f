//! The streams of an exec or an attachment: pipes on one side, messages on the other.

use std::os::fd::OwnedFd;

use agent_api::proto::{self, exec_output::Output};
use bytes::Bytes;
use rustix::pipe::{PipeFlags, pipe_with};
use sandbox::contract::Stdio;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// What is read from a process at once.
const CHUNK: usize = 32 << 10;
/// How long a child of a process that has ended may go on writing to its output.
const LAST: std::time::Duration = std::time::Duration::from_secs(10);
/// What a pipe holds at most.
const LAST_BYTES: usize = 1 << 20;

pub(super) type Out = mpsc::Sender<Result<proto::ExecOutput, Status>>;

pub(super) fn output(output: Output) -> Result<proto::ExecOutput, Status> {
    Ok(proto::ExecOutput { output: Some(output) })
}

pub(super) fn short(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

/// Our sides.
pub(super) struct Ours {
    pub(super) stdin: Option<pipe::Sender>,
    pub(super) stdout: Option<pipe::Receiver>,
    pub(super) stderr: Option<pipe::Receiver>,
}

/// Pipes for the streams that are wanted.
pub(super) fn streams(stdin: bool, stdout: bool, stderr: bool) -> std::io::Result<(Stdio, Ours)> {
    let pair = || pipe_with(PipeFlags::CLOEXEC);
    let mut theirs = Stdio::default();
    let mut ours = Ours { stdin: None, stdout: None, stderr: None };
    if stdin {
        let (read, write) = pair()?;
        theirs.stdin = Some(read);
        ours.stdin = Some(pipe::Sender::from_owned_fd(nonblocking(write)?)?);
    }
    if stdout {
        let (read, write) = pair()?;
        theirs.stdout = Some(write);
        ours.stdout = Some(pipe::Receiver::from_owned_fd(nonblocking(read)?)?);
    }
    if stderr {
        let (read, write) = pair()?;
        theirs.stderr = Some(write);
        ours.stderr = Some(pipe::Receiver::from_owned_fd(nonblocking(read)?)?);
    }
    Ok((theirs, ours))
}

/// Our end only: the two ends of a pipe are separate descriptions.
fn nonblocking(fd: OwnedFd) -> std::io::Result<OwnedFd> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(fd)
}

/// What comes from a pipe goes out as messages, to its end, however long the caller takes. Of a process that has ended
/// (`ended`) a child may hold the pipe open: then [`LAST`] later what is in it is the end.
pub(super) async fn relay(
    source: Option<pipe::Receiver>,
    out: Out,
    wrap: fn(Bytes) -> Output,
    ended: CancellationToken,
) {
    let Some(mut source) = source else { return };
    let late = async {
        ended.cancelled().await;
        tokio::time::sleep(LAST).await;
    };
    tokio::pin!(late);
    let (mut is_late, mut left) = (false, LAST_BYTES);
    let mut buffer = bytes::BytesMut::with_capacity(CHUNK);
    loop {
        buffer.reserve(CHUNK);
        let read = if is_late {
            source.try_read_buf(&mut buffer)
        } else {
            tokio::select! {
                read = source.read_buf(&mut buffer) => read,
                () = &mut late => {
                    is_late = true;
                    continue;
                }
            }
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                if is_late {
                    match left.checked_sub(length) {
                        Some(less) => left = less,
                        None => return,
                    }
                }
                if out.send(output(wrap(buffer.split().freeze()))).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// What comes as messages goes into a pipe.
pub(super) async fn write(sink: Option<pipe::Sender>, mut bytes: mpsc::Receiver<Bytes>) {
    let Some(mut sink) = sink else { return };
    while let Some(bytes) = bytes.recv().await {
        if sink.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
