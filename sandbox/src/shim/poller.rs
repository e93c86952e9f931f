//! Waiting: epoll, with a key for each source.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{Timespec, epoll};

/// Names a source to its owner.
pub(crate) type Key = u64;

/// What can be waited for.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    pub(crate) fn new() -> rustix::io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Waits for `fd` to be readable.
    pub(crate) fn add(&self, fd: impl AsFd, key: Key) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(key), epoll::EventFlags::IN)
    }

    /// Waits for the other side of `fd` to close. What it sends before waits unread, and wakes nobody.
    pub(crate) fn add_end(&self, fd: impl AsFd, key: Key) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(key), epoll::EventFlags::empty())
    }

    /// Waits for `fd` to be readable and, if asked, writable.
    pub(crate) fn modify(&self, fd: impl AsFd, key: Key, read: bool, write: bool) -> rustix::io::Result<()> {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, read);
        flags.set(epoll::EventFlags::OUT, write);
        epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(key), flags)
    }

    /// Waits for `fd` to be writable.
    pub(crate) fn add_writable(&self, fd: impl AsFd, key: Key) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(key), epoll::EventFlags::OUT)
    }

    /// Forgets `fd`. Needed before it is closed: a child may hold a copy, for which epoll would go on reporting.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Keys of the sources that are ready.
    pub(crate) fn wait(&self, timeout: Option<&Timespec>) -> rustix::io::Result<Vec<Key>> {
        let mut events = Vec::with_capacity(64);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout) {
            Err(rustix::io::Errno::INTR) => Ok(Vec::new()),
            Err(errno) => Err(errno),
            Ok(_) => Ok(events.iter().map(|event: &epoll::Event| { event.data }.u64()).collect()),
        }
    }
}
