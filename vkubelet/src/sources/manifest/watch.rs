//! Tells the owner when the directory changes: inotify, and a rescan from time to time in case it tells nothing (network file
//! systems) or the directory was not there.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::net::unix::pipe::Receiver;
use tokio_util::sync::CancellationToken;

/// As the kubelet's `fileCheckFrequency`.
const RESCAN_EVERY: Duration = Duration::from_secs(20);
/// A directory that is away is looked for this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Calls `rescan` after each change, until `stop`.
pub(super) async fn run(directory: &Path, rescan: impl Fn() + Send, stop: CancellationToken) {
    let follow = async {
        loop {
            if let Err(error) = follow(directory, &rescan).await {
                tracing::debug!(path = %directory.display(), error = &error as &dyn std::error::Error, "directory cannot be watched");
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            rescan();
        }
    };
    tokio::select! {
        () = follow => {}
        () = stop.cancelled() => {}
    }
}

/// Returns when the directory cannot be watched.
async fn follow(directory: &Path, rescan: &impl Fn()) -> io::Result<()> {
    let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    // The receiver only waits and reads bytes, which an inotify descriptor does as a pipe does.
    let events = Receiver::from_owned_fd_unchecked(fd)?;
    let flags = WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::DELETE
        | WatchFlags::ATTRIB
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    loop {
        // Watching the same inode again changes nothing; another one at this path is watched from now on.
        inotify::add_watch(&events, directory, flags)?;
        rescan();
        if let Ok(ready) = tokio::time::timeout(RESCAN_EVERY, events.readable()).await {
            ready?;
            drain(&events)?;
        }
    }
}

/// What changed does not matter: a rescan sees it.
fn drain(events: &Receiver) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match events.try_read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
