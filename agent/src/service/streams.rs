//! The streams of an exec or an attachment: pipes on one side, messages on the other.

use std::os::fd::OwnedFd;

use agent_api::proto::{self, exec_output::Output};
use bytes::Bytes;
use rustix::pipe::{PipeFlags, pipe_with};
use sandbox::contract::Stdio;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
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

/// What goes to and fro between a process and its caller.
pub(super) struct Carried {
    stdin: Option<mpsc::Sender<Bytes>>,
    writer: JoinHandle<()>,
    relays: [JoinHandle<()>; 2],
    ended: CancellationToken,
}

impl Carried {
    /// Begins to carry. Input is written by a task of its own: a process that does not read must not keep a resize waiting.
    pub(super) fn begin(ours: Ours, out: &Out) -> Self {
        let ended = CancellationToken::new();
        let relays = [
            tokio::spawn(relay(ours.stdout, out.clone(), Output::Stdout, ended.clone())),
            tokio::spawn(relay(ours.stderr, out.clone(), Output::Stderr, ended.clone())),
        ];
        let (stdin, to_write) = mpsc::channel::<Bytes>(4);
        Self { stdin: Some(stdin), writer: tokio::spawn(write(ours.stdin, to_write)), relays, ended }
    }

    /// Passes input on; waits for a process that is slow to read.
    pub(super) async fn take(&mut self, bytes: Bytes) {
        if let Some(stdin) = &self.stdin
            && stdin.send(bytes).await.is_err()
        {
            self.stdin = None;
        }
    }

    /// There is no more input.
    pub(super) fn end_input(&mut self) {
        self.stdin = None;
    }

    /// The process has ended: everything that it wrote goes out.
    pub(super) async fn finish(self) {
        self.writer.abort();
        self.ended.cancel();
        for relay in self.relays {
            let _ = relay.await;
        }
    }

    /// The caller has gone.
    pub(super) fn give_up(self) {
        self.writer.abort();
        for relay in self.relays {
            relay.abort();
        }
    }
}

/// Our end only: the two ends of a pipe are separate descriptions.
fn nonblocking(fd: OwnedFd) -> std::io::Result<OwnedFd> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(fd)
}

/// What comes from a pipe goes out as messages, to its end, however long the caller takes. Of a process that has ended
/// (`ended`) a child may hold the pipe open: then [`LAST`] later what is in it is the end.
async fn relay(source: Option<pipe::Receiver>, out: Out, wrap: fn(Bytes) -> Output, ended: CancellationToken) {
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
            // Asked of the pipe itself: what came just now may not be known to the runtime yet.
            let mut piece = vec![0; CHUNK];
            let read = rustix::io::retry_on_intr(|| rustix::io::read(&source, &mut piece[..]));
            read.inspect(|length| buffer.extend_from_slice(&piece[..*length])).map_err(std::io::Error::from)
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
async fn write(sink: Option<pipe::Sender>, mut bytes: mpsc::Receiver<Bytes>) {
    let Some(mut sink) = sink else { return };
    while let Some(bytes) = bytes.recv().await {
        if sink.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio_stream::StreamExt as _;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    /// What a caller gets who takes one message in `pause`, of a process that has ended and left `bytes` in its output, before
    /// its end is told.
    async fn taken(mut theirs: std::fs::File, ours: Ours, bytes: &[u8], pause: std::time::Duration) -> usize {
        rustix::pipe::fcntl_setpipe_size(&theirs, LAST_BYTES).unwrap();
        theirs.write_all(bytes).unwrap();
        drop(theirs);
        let (out, messages) = mpsc::channel(1);
        let carried = Carried::begin(ours, &out);
        let finishing = tokio::spawn(async move {
            carried.finish().await;
            out.send(output(Output::Exit(proto::ExecExit::default()))).await.unwrap();
        });
        let mut messages = ReceiverStream::new(messages);
        let (mut size, mut ended) = (0, false);
        while let Some(message) = messages.next().await {
            assert!(!ended, "the end is the last");
            match message.unwrap().output {
                Some(Output::Stdout(bytes)) => size += bytes.len(),
                Some(Output::Exit(_)) => ended = true,
                other => panic!("{other:?}"),
            }
            tokio::time::sleep(pause).await;
        }
        assert!(ended, "the end is told");
        finishing.await.unwrap();
        size
    }

    fn output_of_a_process() -> (std::fs::File, Ours) {
        let (theirs, ours) = streams(false, true, false).unwrap();
        (theirs.stdout.unwrap().into(), ours)
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_gets_all_that_a_process_wrote_before_its_end() {
        let (theirs, ours) = output_of_a_process();
        let all = vec![7; 10 * CHUNK];
        assert_eq!(taken(theirs, ours, &all, 2 * LAST).await, all.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_that_holds_the_output_open_holds_up_nobody_and_what_was_in_it_goes_out() {
        let (theirs, ours) = output_of_a_process();
        let child = theirs.try_clone().unwrap();
        let all = vec![7; 10 * CHUNK];
        let size = tokio::time::timeout(100 * LAST, taken(theirs, ours, &all, 2 * LAST)).await.expect("it ends");
        assert_eq!(size, all.len());
        drop(child);
    }
}
