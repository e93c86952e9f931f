//! Stopping what runs in a cgroup, and knowing that it has stopped.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::driver::Controller;
use super::remove::timespec;
use super::{CgroupError, Group, files};

/// How often is looked where the kernel has no event for it (v1).
const LOOK: Duration = Duration::from_millis(1);

impl Group {
    /// Stops every process in it and below; whether all had stopped when `deadline` was over. If not, it stays on its way there.
    pub fn freeze_within(&self, deadline: Duration) -> Result<bool, CgroupError> {
        let started = Instant::now();
        self.freeze()?;
        loop {
            let events = match self.dirs().unified() {
                Some(dir) => Some(files::open(dir, "cgroup.events")?),
                None => None,
            };
            // Reading arms the event: a change from here on ends the poll below.
            if self.is_frozen(events.as_ref())? {
                return Ok(true);
            }
            let left = deadline.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            let waited = match &events {
                Some(events) => poll(&mut [PollFd::new(events, PollFlags::PRI)], Some(&timespec(left))),
                None => poll(&mut [], Some(&timespec(left.min(LOOK)))),
            };
            match waited {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    return Err(CgroupError::Read { file: "cgroup.events".to_owned(), source: errno.into() });
                }
            }
        }
    }

    fn is_frozen(&self, events: Option<&std::os::fd::OwnedFd>) -> Result<bool, CgroupError> {
        let failed =
            |errno: rustix::io::Errno| CgroupError::Read { file: "cgroup.events".into(), source: errno.into() };
        let Some(events) = events else {
            let dir = self.dirs().needed(Controller::Freezer)?;
            return Ok(files::read(dir, "freezer.state")?.trim() == "FROZEN");
        };
        let mut content = [0u8; 256];
        let got = rustix::io::pread(events, &mut content, 0).map_err(failed)?;
        Ok(files::keyed(&String::from_utf8_lossy(&content[..got]), "frozen") == Ok(Some(1)))
    }
}
