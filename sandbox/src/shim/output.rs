//! A container's output on its way to its log.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, mkdirat, openat};

/// Which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// An interim log.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
}

impl Log {
    pub(crate) fn open(directory: &OwnedFd, name: &str, attempt: u32) -> io::Result<Self> {
        match mkdirat(directory, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(directory, name, flags, Mode::empty())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(directory.as_fd(), format!("{attempt}.log"), flags, Mode::from_raw_mode(0o640))?;
        Ok(Self { file: file.into() })
    }

    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let name = if stream == Stream::Stdout { "stdout" } else { "stderr" };
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let tag = if line.ends_with(b"\n") { "F" } else { "P" };
            write!(self.file, "{} {name} {tag} ", crate::sys::clock::wall_ns())?;
            self.file.write_all(line)?;
            if tag == "P" {
                self.file.write_all(b"\n")?;
            }
        }
        Ok(())
    }

    pub(crate) fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}
