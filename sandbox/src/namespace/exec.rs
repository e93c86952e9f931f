//! An exec'd process as its caller sees it; with a terminal, the bytes between it and the caller's streams.

use std::os::fd::{AsFd, OwnedFd};

use async_trait::async_trait;
use rustix::io::Errno;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::client::Client;
use super::slots::io_failed;
use super::wire::ShimWire;
use crate::contract::{ExecProcess, Exit, SandboxError, Stdio};
use crate::protocol::shim::Request;
use crate::sys::watch;

/// A running exec.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) client: Client<ShimWire>,
    pub(crate) number: u64,
    pub(crate) exit: Option<oneshot::Receiver<Exit>>,
    pub(crate) ended: Option<Exit>,
    pub(crate) terminal: Option<Terminal>,
}

/// The master side and the tasks that move its bytes.
#[derive(Debug)]
pub(crate) struct Terminal {
    master: OwnedFd,
    input: Option<JoinHandle<()>>,
    output: Option<JoinHandle<()>>,
}

impl Drop for Exec {
    fn drop(&mut self) {
        // The master's last copy goes with the tasks: the process's session gets SIGHUP, as when a terminal is closed.
        if let Some(terminal) = &self.terminal {
            for task in [&terminal.input, &terminal.output].into_iter().flatten() {
                task.abort();
            }
        }
    }
}

#[async_trait]
impl ExecProcess for Exec {
    async fn wait(&mut self) -> Result<Exit, SandboxError> {
        if let Some(exit) = &self.ended {
            return Ok(exit.clone());
        }
        let lost = || SandboxError::Unavailable {
            operation: "wait for a process".to_owned(),
            source: std::io::Error::new(std::io::ErrorKind::ConnectionReset, "the shim has gone"),
        };
        let exit = match &mut self.exit {
            Some(exit) => exit.await.map_err(|_| lost())?,
            None => return Err(lost()),
        };
        self.ended = Some(exit.clone());
        if let Some(terminal) = &mut self.terminal {
            // What it wrote last is still on its way; its end is the master's end.
            if let Some(output) = terminal.output.take() {
                let _ = output.await;
            }
        }
        Ok(exit)
    }

    async fn signal(&mut self, signal: i32) -> Result<(), SandboxError> {
        if self.ended.is_some() {
            return Ok(());
        }
        let request = Request::ExecSignal { exec: self.number, signal };
        match self.client.call("signal to a process", request, vec![]).await {
            Ok(_) | Err(SandboxError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn resize(&mut self, columns: u16, rows: u16) -> Result<(), SandboxError> {
        let Some(terminal) = &self.terminal else {
            return Err(SandboxError::Invalid { message: "the process has no terminal".to_owned() });
        };
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal.master, size).map_err(|errno| io_failed("resize of a terminal", errno.into()))
    }
}

/// Connects a terminal's master with the caller's streams.
pub(crate) fn connect(master: OwnedFd, stdio: Stdio) -> Result<Terminal, SandboxError> {
    let failed = |error: std::io::Error| io_failed("terminal of a process", error);
    let copy = |fd: &OwnedFd| fd.try_clone().map_err(failed);
    let input = match stdio.stdin {
        Some(stdin) => Some(tokio::spawn(relay(stdin, copy(&master)?, End::Hangup))),
        None => None,
    };
    let output = match stdio.stdout {
        Some(stdout) => Some(tokio::spawn(relay(copy(&master)?, stdout, End::Close))),
        None => None,
    };
    Ok(Terminal { master, input, output })
}

/// What the end of the source means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The destination is closed with it.
    Close,
    /// The terminal is told: end of transmission.
    Hangup,
}

/// Moves bytes until either side ends.
pub(super) async fn relay(from: OwnedFd, to: OwnedFd, end: End) {
    let Some((from, to)) = both(from, to) else { return };
    let mut buffer = vec![0u8; 16 << 10];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    if end == End::Hangup {
        let _ = to.write_all(&[4]).await;
    }
}

fn both(from: OwnedFd, to: OwnedFd) -> Option<(Stream, Stream)> {
    Some((Stream::new(from, Interest::READABLE)?, Stream::new(to, Interest::WRITABLE)?))
}

/// A descriptor of any kind: waited for where the kernel can wait, otherwise read and written at once.
enum Stream {
    Waited(AsyncFd<OwnedFd>),
    Plain(OwnedFd),
}

impl Stream {
    fn new(fd: OwnedFd, interest: Interest) -> Option<Self> {
        rustix::io::ioctl_fionbio(&fd, true).ok()?;
        match watch::descriptor(fd, interest) {
            Ok(fd) => Some(Self::Waited(fd)),
            // A regular file.
            Err(error) => Some(Self::Plain(error.into_parts().0)),
        }
    }

    async fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(fd) => Ok(rustix::io::read(fd, buffer)?),
            Self::Waited(fd) => loop {
                let mut guard = fd.readable().await?;
                match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref().as_fd(), &mut *buffer)?)) {
                    Ok(Err(error)) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => {}
                    Ok(result) => return result,
                    Err(_would_block) => {}
                }
            },
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let count = match self {
                Self::Plain(fd) => rustix::io::write(fd, bytes)?,
                Self::Waited(fd) => {
                    let mut guard = fd.writable().await?;
                    match guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref().as_fd(), bytes)?)) {
                        Ok(Err(error)) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => 0,
                        Ok(result) => result?,
                        Err(_would_block) => 0,
                    }
                }
            };
            bytes = &bytes[count..];
        }
        Ok(())
    }
}
