//! The shim's side: from a program's pipes to files.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, fstat, ftruncate, renameat, unlinkat};
use rustix::io::Errno;

use super::timestamp::Formatter;
use super::{Limits, LogError, Stream, entry, files};

/// Bytes read from a pipe at once. Of lines of one character, the log gets twenty times as many.
const CHUNK: usize = 16 << 10;

/// Room that all of a process's writers share, one at a time; none before the first output.
#[derive(Debug, Default)]
pub struct Buffers {
    input: Vec<u8>,
    filled: usize,
    output: Vec<u8>,
}

impl Buffers {
    /// Reads once from a non-blocking pipe or terminal.
    pub fn read(&mut self, source: impl AsFd) -> Result<Read, LogError> {
        self.filled = 0;
        self.input.resize(CHUNK, 0);
        match rustix::io::retry_on_intr(|| rustix::io::read(&source, &mut self.input[..])) {
            // A terminal's master answers EIO once its other side is closed.
            Ok(0) | Err(Errno::IO) => Ok(Read::Ended),
            Ok(got) => {
                self.filled = got;
                Ok(Read::Bytes)
            }
            Err(Errno::AGAIN) => Ok(Read::WouldBlock),
            Err(errno) => Err(LogError::Output { source: errno.into() }),
        }
    }

    /// What the last read brought.
    pub fn bytes(&self) -> &[u8] {
        &self.input[..self.filled]
    }
}

/// What one read of a program's output brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// Bytes; there may be more.
    Bytes,
    /// Nothing now.
    WouldBlock,
    /// The output has ended.
    Ended,
}

/// Writes one container attempt's log.
///
/// Memory held between calls: an unfinished line of each stream (at most one part), nothing else. When the disk refuses a
/// write, the file is cut back to its last whole entry, what cannot be written is dropped and counted, and the log says how
/// much was lost as soon as it can be written again: a full disk must not block the program.
#[derive(Debug)]
pub struct LogWriter {
    dir: OwnedFd,
    file: OwnedFd,
    attempt: u32,
    limits: Limits,
    written: u64,
    total: u64,
    /// Of the oldest full file that is there.
    first_number: u64,
    next_number: u64,
    unfinished: [Vec<u8>; 2],
    formatter: Formatter,
    lost_bytes: u64,
}

impl LogWriter {
    /// Opens `LOG_DIR/CONTAINER/ATTEMPT.log`. An attempt that was begun before is appended to.
    pub fn create(log_dir: BorrowedFd<'_>, container: &str, attempt: u32, limits: Limits) -> Result<Self, LogError> {
        let dir = files::directory(log_dir, container)?;
        let name = files::current(attempt);
        let (file, written, numbers) = match files::create(&dir, &name) {
            Ok(file) => (file, 0, Vec::new()),
            Err(Errno::EXIST) => {
                let file = files::reopen(&dir, &name)?;
                let size = fstat(&file).map_err(|errno| LogError::Open { name, source: errno.into() })?.st_size;
                (file, u64::try_from(size).unwrap_or(0), files::numbers(dir.as_fd(), attempt)?)
            }
            Err(errno) => return Err(LogError::Open { name, source: errno.into() }),
        };
        Ok(Self {
            dir,
            file,
            attempt,
            limits: Limits { files: limits.files.max(2), part_bytes: limits.part_bytes.max(1), ..limits },
            written,
            total: 0,
            first_number: numbers.first().copied().unwrap_or(1),
            next_number: numbers.last().map_or(1, |last| last + 1),
            unfinished: Default::default(),
            formatter: Formatter::default(),
            lost_bytes: 0,
        })
    }

    /// Logs what [`Buffers::read`] brought, at `wall_ns`. An error means dropped output; go on calling.
    pub fn write_read(&mut self, buffers: &mut Buffers, stream: Stream, wall_ns: u64) -> Result<(), LogError> {
        let Buffers { input, filled, output } = buffers;
        self.log(output, stream, &input[..*filled], wall_ns)
    }

    /// Logs bytes of a stream, cut anywhere.
    pub fn write(&mut self, buffers: &mut Buffers, stream: Stream, bytes: &[u8], wall_ns: u64) -> Result<(), LogError> {
        self.log(&mut buffers.output, stream, bytes, wall_ns)
    }

    /// Writes what is held of a stream's unfinished line. Call it when the stream ends.
    pub fn finish(&mut self, buffers: &mut Buffers, stream: Stream, wall_ns: u64) -> Result<(), LogError> {
        let held = std::mem::take(&mut self.unfinished[stream as usize]);
        if held.is_empty() {
            return Ok(());
        }
        let out = &mut buffers.output;
        out.clear();
        self.entry(out, stream, true, &held, b"", wall_ns).and_then(|()| self.flush(out))
    }

    /// Bytes written since it was opened, of whatever file.
    pub fn written_bytes(&self) -> u64 {
        self.total
    }

    /// Bytes of output that could not be written and are not yet told in the log.
    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    fn log(&mut self, out: &mut Vec<u8>, stream: Stream, bytes: &[u8], wall_ns: u64) -> Result<(), LogError> {
        out.clear();
        self.tell_of_loss(out, wall_ns)?;
        let mut held = std::mem::take(&mut self.unfinished[stream as usize]);
        let mut rest = bytes;
        while !rest.is_empty() {
            // Never more than what is left of a part, so `held` stays below one.
            let window = &rest[..rest.len().min(self.limits.part_bytes - held.len())];
            let (partial, used, content) = match window.iter().position(|byte| *byte == b'\n') {
                Some(at) => (false, at + 1, &window[..at]),
                None if held.len() + window.len() < self.limits.part_bytes => {
                    held.extend_from_slice(window);
                    break;
                }
                // A line of exactly one part is whole, not a part and an empty rest.
                None if rest.get(window.len()) == Some(&b'\n') => (false, window.len() + 1, window),
                None => (true, window.len(), window),
            };
            let result = self.entry(out, stream, partial, &held, content, wall_ns);
            held.clear();
            rest = &rest[used..];
            if let Err(error) = result {
                self.lost_bytes += rest.len() as u64;
                return Err(error);
            }
        }
        if held.is_empty() {
            held = Vec::new();
        }
        self.unfinished[stream as usize] = held;
        self.flush(out)
    }

    fn tell_of_loss(&mut self, out: &mut Vec<u8>, wall_ns: u64) -> Result<(), LogError> {
        if self.lost_bytes == 0 {
            return Ok(());
        }
        let lost = self.lost_bytes;
        let message = format!("[about {lost} bytes of output were lost here: the log could not be written]");
        self.entry(out, Stream::Stderr, false, message.as_bytes(), b"", wall_ns)?;
        self.flush(out)?;
        // What failed just now was the notice, not output.
        self.lost_bytes = 0;
        Ok(())
    }

    /// Adds an entry to `out`, rotating first when it would not fit in the file.
    fn entry(
        &mut self,
        out: &mut Vec<u8>,
        stream: Stream,
        partial: bool,
        head: &[u8],
        tail: &[u8],
        wall_ns: u64,
    ) -> Result<(), LogError> {
        let length = (entry::OVERHEAD + head.len() + tail.len()) as u64;
        let in_file = self.written + out.len() as u64;
        let room = if in_file > 0 && in_file + length > self.limits.file_bytes {
            self.flush(out).and_then(|()| self.rotate())
        } else if out.len() >= CHUNK {
            self.flush(out)
        } else {
            Ok(())
        };
        if let Err(error) = room {
            self.lost_bytes += length;
            return Err(error);
        }
        entry::append(out, self.formatter.format(wall_ns), stream, partial, head, tail);
        Ok(())
    }

    /// Writes `out`, or as many whole entries of it as there is room for.
    fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), LogError> {
        let mut sent = 0;
        while sent < out.len() {
            match rustix::io::write(&self.file, &out[sent..]) {
                Ok(0) => return Err(self.dropped(out, sent, Errno::IO)),
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.dropped(out, sent, errno)),
            }
        }
        self.written += out.len() as u64;
        self.total += out.len() as u64;
        out.clear();
        Ok(())
    }

    /// Keeps the whole entries among what was `sent`, and counts the rest as lost.
    fn dropped(&mut self, out: &mut Vec<u8>, sent: usize, errno: Errno) -> LogError {
        let whole = out[..sent].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.written += whole as u64;
        self.total += whole as u64;
        self.lost_bytes += (out.len() - whole) as u64;
        out.clear();
        // Best effort: a torn entry is the lesser evil beside the error that is being told.
        let _ = ftruncate(&self.file, self.written);
        LogError::Write { name: files::current(self.attempt), source: errno.into() }
    }

    /// Gives the present file a number and goes on with an empty one. The oldest goes first: what is kept is never more
    /// than the limit, and a full disk has room again.
    fn rotate(&mut self) -> Result<(), LogError> {
        let name = files::current(self.attempt);
        let fresh_name = format!("{name}.next");
        let failed = |errno: Errno| LogError::Rotate { name: name.clone(), source: errno.into() };
        let number = self.next_number;
        let kept = u64::from(self.limits.files) - 2;
        while self.first_number + kept < number {
            match unlinkat(&self.dir, files::rotated(self.attempt, self.first_number), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => self.first_number += 1,
                Err(errno) => return Err(failed(errno)),
            }
        }
        let fresh = match files::create(&self.dir, &fresh_name) {
            // Left by a shim that died here.
            Err(Errno::EXIST) => {
                unlinkat(&self.dir, &fresh_name, AtFlags::empty()).map_err(failed)?;
                files::create(&self.dir, &fresh_name).map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
        renameat(&self.dir, &name, &self.dir, files::rotated(self.attempt, number)).map_err(failed)?;
        self.next_number += 1;
        renameat(&self.dir, &fresh_name, &self.dir, &name).map_err(failed)?;
        self.file = fresh;
        self.written = 0;
        Ok(())
    }
}
