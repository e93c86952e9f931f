//! Everything that happened in the sandbox: in memory for those who ask, and written before anybody is told.
//!
//! `events.jsonl` in the sandbox's record directory: one JSON [`SandboxEvent`] a line, appended. After the shim's death it
//! is the only witness; after the host's none is needed, for nothing of a sandbox outlives its boot: so it is never
//! synced. A last line without its end was never told to anybody.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};

use crate::contract::SandboxEvent;

/// The file's name in the record directory.
pub(crate) const FILE: &str = "events.jsonl";

/// The sandbox's past.
#[derive(Debug)]
pub(crate) struct History {
    events: Vec<SandboxEvent>,
    file: File,
}

impl History {
    /// Begins (or, after a crash of a shim that had told nothing, goes on with) the record in `directory`.
    pub(crate) fn open(directory: &OwnedFd) -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(directory.as_fd(), FILE, flags, Mode::from_raw_mode(0o600))?;
        Ok(Self { events: Vec::new(), file: File::from(file) })
    }

    /// Records an event. A record that cannot be written (disk full) is told by the error; the event counts anyway.
    pub(crate) fn push(&mut self, event: SandboxEvent) -> io::Result<()> {
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        let written = self.file.write_all(&line);
        self.events.push(event);
        written
    }

    /// All of it.
    pub(crate) fn events(&self) -> &[SandboxEvent] {
        &self.events
    }
}

/// Reads a dead shim's record.
pub(crate) fn parse(text: &str) -> Vec<SandboxEvent> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_read_back_without_the_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let directory: OwnedFd = File::open(dir.path()).unwrap().into();
        let mut history = History::open(&directory).unwrap();
        history.push(SandboxEvent::FirstByte { container: "a".into(), attempt: 0, boottime_ns: 1 }).unwrap();
        history.push(SandboxEvent::Lost { boottime_ns: 2 }).unwrap();
        let path = dir.path().join(FILE);
        let mut text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(parse(&text), history.events());
        text.push_str("{\"FirstByte\":{\"conta");
        assert_eq!(parse(&text), history.events());
    }
}
