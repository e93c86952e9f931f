//! The owner's side.

use std::{
    fs::File,
    io::{self, BufRead, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

use super::{Answer, Order, channel};
use crate::{
    Digest, ErrorKind, Limits,
    convert::{CANCELLED, ConvertError, Converted},
};

/// Silence after which a converter counts as stuck.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// A converter that has read its blob and waits for the layers below. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct ConfinedStaged {
    converter: Process,
    out: File,
}

#[derive(Debug)]
struct Process {
    child: Child,
    socket: OwnedFd,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is reaped here, and at once.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl ConfinedStaged {
    /// Starts a converter and feeds it the blob.
    pub(crate) fn stage(
        program: &Path,
        args: &[String],
        mut blob: impl BufRead,
        diff_id: &Digest,
        out: File,
        limits: &Limits,
    ) -> Result<Self, ConvertError> {
        let mut converter = Process::start(program, args)?;
        let (reader, mut writer) = io::pipe().map_err(failed("make a pipe for"))?;
        // A bigger pipe means fewer turns; the default works too.
        let _ = rustix::pipe::fcntl_setpipe_size(&writer, 1 << 20);
        let job = Order::Job { diff_id: diff_id.clone(), limits: limits.clone() };
        converter.tell(&job, &[reader.as_fd(), out.as_fd()])?;
        drop(reader);
        loop {
            let n = match blob.fill_buf() {
                Ok([]) => break,
                Ok(piece) => match writer.write_all(piece) {
                    Ok(()) => piece.len(),
                    // It has refused the layer, or died: its answer says which.
                    Err(e) if e.kind() == io::ErrorKind::BrokenPipe => break,
                    Err(e) => return Err(failed("feed")(e)),
                },
                Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
                Err(e) if e.kind() == CANCELLED => return Err(ConvertError::Cancelled),
                Err(e) => return Err(failed("read the blob for")(e)),
            };
            blob.consume(n);
        }
        drop(writer);
        match converter.answer()? {
            Answer::Staged => Ok(Self { converter, out }),
            Answer::Refused { kind, message } => Err(ConvertError::ConverterFailed { kind, message }),
            Answer::Converted(_) => Err(failed("understand")(io::Error::other("answer out of turn"))),
        }
    }

    /// Hands over the layers below and waits for the end.
    pub(crate) fn finish(mut self, below: &[Arc<File>]) -> Result<Converted, ConvertError> {
        let fds: Vec<_> = below.iter().map(|f| f.as_fd()).collect();
        self.converter.tell(&Order::Finish, &fds)?;
        match self.converter.answer()? {
            Answer::Converted(converted) => {
                let bytes = self.out.metadata().map_err(ConvertError::Write)?.len();
                if bytes != converted.bytes {
                    return Err(failed("believe")(io::Error::other("the file has another size than told")));
                }
                Ok(converted)
            }
            Answer::Refused { kind, message } => Err(ConvertError::ConverterFailed { kind, message }),
            Answer::Staged => Err(failed("understand")(io::Error::other("answer out of turn"))),
        }
    }
}

impl Process {
    fn start(program: &Path, args: &[String]) -> Result<Self, ConvertError> {
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (socket, theirs) = pair.map_err(|e| failed("make a socket for")(e.into()))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))
            .map_err(|e| failed("make a socket for")(e.into()))?;
        let child = Command::new(program)
            .args(args)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed("start"))?;
        Ok(Self { child, socket })
    }

    fn tell(&mut self, order: &Order, fds: &[BorrowedFd<'_>]) -> Result<(), ConvertError> {
        match channel::send(&self.socket, order, fds) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => match self.answer()? {
                Answer::Refused { kind, message } => Err(ConvertError::ConverterFailed { kind, message }),
                Answer::Staged | Answer::Converted(_) => Err(failed("talk to")(e)),
            },
            sent => sent.map_err(failed("talk to")),
        }
    }

    fn answer(&mut self) -> Result<Answer, ConvertError> {
        match channel::receive(&self.socket) {
            Ok(Some((answer, _))) => Ok(answer),
            Ok(None) => {
                let status = self.child.wait().map_err(failed("wait for"))?;
                Err(ConvertError::ConverterFailed { kind: ErrorKind::Store, message: format!("died: {status}") })
            }
            Err(e) => Err(failed("hear from")(e)),
        }
    }
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> ConvertError {
    move |source| ConvertError::Converter { what, source }
}
