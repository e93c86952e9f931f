//! Reads an attempt's log and, when asked to follow, waits for more by inotify.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::inotify;
use sandbox::shim::log::{LogError, LogReader};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::select::{Selection, Selector};

/// What goes out in one message at most.
const CHUNK: usize = 64 << 10;

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The files.
    #[error("could not read the log in {path:?}")]
    Read {
        /// Of which directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: LogError,
    },
    /// Waiting for more.
    #[error("could not watch the log in {path:?}")]
    Watch {
        /// Of which directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Sends a log's bytes to `out` until its end; with `follow`, until `ended` is cancelled and everything before that has been
/// sent. Ends early when nobody reads `out`.
pub async fn send(
    directory: PathBuf,
    attempt: u32,
    selection: Selection,
    follow: bool,
    ended: CancellationToken,
    out: mpsc::Sender<Bytes>,
) -> Result<(), FollowError> {
    // The last lines are known only at the end of what exists; anything else goes out as it is read.
    let holds = selection.tail.is_some();
    let mut selector = Selector::new(selection);
    let watch = if follow { Some(Watch::of(&directory)?) } else { None };
    let opened = LogReader::open(&directory, attempt);
    let mut reader = match opened {
        Ok(reader) => reader,
        // It has never written anything.
        Err(LogError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(FollowError::Read { path: directory, source }),
    };
    let mut first = true;
    loop {
        // Asked before the reading: what was written until then is read below.
        let over = !follow || ended.is_cancelled();
        loop {
            let step = tokio::task::spawn_blocking(move || {
                let mut budget = CHUNK;
                let end = reader.read(&mut |entry| {
                    budget = budget.saturating_sub(entry.content.len() + 1);
                    selector.take(entry) && ((first && holds) || budget > 0)
                });
                let at_end = end.as_ref().is_ok_and(|end| *end);
                let bytes = if first && at_end { selector.finish_tail() } else { selector.drain() };
                (reader, selector, end, bytes)
            });
            let (back, again, end, bytes) = step
                .await
                .map_err(|error| FollowError::Watch { path: directory.clone(), source: io::Error::other(error) })?;
            (reader, selector) = (back, again);
            let end = end.map_err(|source| FollowError::Read { path: directory.clone(), source })?;
            first &= !end;
            let mut bytes = Bytes::from(bytes);
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(CHUNK));
                if out.send(piece).await.is_err() {
                    return Ok(());
                }
            }
            if selector.is_full() {
                return Ok(());
            }
            if end {
                break;
            }
        }
        let Some(watch) = watch.as_ref().filter(|_| !over) else { return Ok(()) };
        tokio::select! {
            result = watch.changed() => result.map_err(|source| FollowError::Watch { path: directory.clone(), source })?,
            () = ended.cancelled() => {}
            () = out.closed() => return Ok(()),
        }
    }
}

/// Waits for changes in a directory.
struct Watch {
    fd: AsyncFd<OwnedFd>,
}

impl Watch {
    fn of(directory: &Path) -> Result<Self, FollowError> {
        let failed = |source| FollowError::Watch { path: directory.to_owned(), source };
        // A container that has not started yet has no directory: it is the shim that makes it, but it may be there before.
        match std::fs::create_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
        let fd = inotify::init(flags).map_err(|errno| failed(errno.into()))?;
        let events = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::ONLYDIR;
        inotify::add_watch(&fd, directory, events).map_err(|errno| failed(errno.into()))?;
        // The deprecation is about descriptors that are not owned; this one is.
        #[allow(deprecated)]
        let fd = AsyncFd::new(fd).map_err(failed)?;
        Ok(Self { fd })
    }

    async fn changed(&self) -> io::Result<()> {
        loop {
            let mut guard = self.fd.readable().await?;
            let mut drained = false;
            let result = guard.try_io(|fd| {
                let mut buffer = [0_u8; 4096];
                loop {
                    match rustix::io::read(fd.get_ref(), &mut buffer) {
                        Ok(_) => drained = true,
                        Err(rustix::io::Errno::INTR) => {}
                        Err(errno) => return Err(io::Error::from(errno)),
                    }
                }
            });
            match result {
                _ if drained => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Ok(Ok(())) | Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> String {
        format!("2026-11-21T04:00:00.000000000Z stdout F {text}\n")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_follower_sees_what_is_written_over_a_rotation_and_ends_with_its_container() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("c");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("0.log"), line("old")).unwrap();
        let ended = CancellationToken::new();
        let (out, mut read) = mpsc::channel(4);
        let task = tokio::spawn(send(directory.clone(), 0, Selection::default(), true, ended.clone(), out));
        assert_eq!(read.recv().await.unwrap(), "old\n");
        std::fs::rename(directory.join("0.log"), directory.join("0.log.1")).unwrap();
        std::fs::write(directory.join("0.log"), line("new")).unwrap();
        assert_eq!(read.recv().await.unwrap(), "new\n");
        std::fs::write(directory.join("0.log"), line("new") + &line("last")).unwrap();
        ended.cancel();
        let mut rest = Vec::new();
        while let Some(bytes) = read.recv().await {
            rest.extend_from_slice(&bytes);
        }
        assert_eq!(rest, b"last\n");
        task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_log_that_is_not_there_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let (out, mut read) = mpsc::channel(4);
        let none = dir.path().join("none");
        send(none, 0, Selection::default(), false, CancellationToken::new(), out).await.unwrap();
        assert!(read.recv().await.is_none());
    }
}
