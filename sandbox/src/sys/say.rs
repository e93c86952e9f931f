//! Words on standard error that can neither fail nor wait.
//!
//! Keeper and shims have the standard error of whoever started the keeper, and outlive them: it may be a pipe that nobody
//! reads any more, or that is full. `eprintln!` panics on the one and waits for ever on the other, and a shim that does
//! either takes its containers along. What cannot be said is lost.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What a pipe that is ready for writing takes at once, whole (PIPE_BUF).
const LONGEST: usize = 4096;

/// An error and what caused it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Says one line.
pub(crate) fn line(words: fmt::Arguments<'_>) {
    let mut text = words.to_string().into_bytes();
    text.truncate(LONGEST - 1);
    text.push(b'\n');
    say_to(rustix::stdio::stderr(), &text);
}

/// `say!("{what} stays: {error}")`: one line on standard error, if it takes it now.
macro_rules! say {
    ($($words:tt)*) => { $crate::sys::say::line(format_args!($($words)*)) };
}
pub(crate) use say;

/// Standard error for a log: every write succeeds, whether or not it was heard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unfailing;

impl io::Write for Unfailing {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        say_to(rustix::stdio::stderr(), &text[..text.len().min(LONGEST)]);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn say_to(whom: BorrowedFd<'_>, text: &[u8]) {
    let mut ready = [PollFd::from_borrowed_fd(whom, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut ready, Some(&now)).is_ok() && ready[0].revents().contains(PollFlags::OUT) {
        let _ = rustix::io::write(whom, text);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_nobody_takes_is_lost_and_not_waited_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        // More than any pipe holds.
        for _ in 0..1000 {
            say_to(writer.as_fd(), &[b'x'; LONGEST]);
        }
        let mut first = [0];
        reader.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"x");
        drop(reader);
        say_to(writer.as_fd(), b"nobody is there");
    }
}
