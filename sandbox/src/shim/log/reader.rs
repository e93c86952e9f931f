//! The agent's side: from files to entries, over rotations, while they are being written.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;

use super::{Entry, LogError, entry, files};

const CHUNK: usize = 64 << 10;
/// An entry longer than this is no entry of ours: it is passed over.
const LONGEST_ENTRY: usize = 1 << 20;

/// Reads one attempt's log from its oldest file on, then whatever is added. Call [`LogReader::read`] again after the
/// directory or the file changed (inotify), or from time to time.
#[derive(Debug)]
pub struct LogReader {
    directory: PathBuf,
    dir: OwnedFd,
    attempt: u32,
    file: Option<Source>,
    pending: Vec<u8>,
    missed_files: u64,
}

/// The file being read.
#[derive(Debug)]
struct Source {
    fd: OwnedFd,
    /// Its number, once it is a full file.
    number: Option<u64>,
    inode: u64,
}

impl LogReader {
    /// Opens the log of an attempt in `LOG_DIR/CONTAINER`; the log itself need not be there yet.
    pub fn open(directory: &Path, attempt: u32) -> Result<Self, LogError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(CWD, directory, flags, Mode::empty())
            .map_err(|errno| LogError::Open { name: directory.display().to_string(), source: errno.into() })?;
        Ok(Self { directory: directory.to_owned(), dir, attempt, file: None, pending: Vec::new(), missed_files: 0 })
    }

    /// Where it reads.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Files that were deleted by rotation before they could be read.
    pub fn missed_files(&self) -> u64 {
        self.missed_files
    }

    /// Gives every whole entry up to the present end to `sink`, in order, until `sink` answers false. True when the
    /// present end was reached.
    pub fn read(&mut self, sink: &mut dyn FnMut(Entry<'_>) -> bool) -> Result<bool, LogError> {
        loop {
            if self.file.is_none() && !self.open_first()? {
                return Ok(true);
            }
            // Looked up before the reading: what is full now has nothing more to come after its end.
            let next = self.successor()?;
            if !self.read_file(sink)? {
                return Ok(false);
            }
            match next {
                Some(next) => {
                    // An entry is never split over files.
                    self.pending.clear();
                    self.file = Some(next);
                }
                None => return Ok(true),
            }
        }
    }

    fn open_named(&self, name: &str, number: Option<u64>) -> Result<Option<Source>, LogError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let failed = |errno: Errno| LogError::Open { name: name.to_owned(), source: errno.into() };
        match openat(&self.dir, name, flags, Mode::empty()) {
            Ok(fd) => {
                let stat = fstat(&fd).map_err(failed)?;
                // A file that has another name too was made by somebody else; one that was deleted since has none.
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink > 1 {
                    return Err(LogError::Foreign { name: name.to_owned() });
                }
                Ok(Some(Source { fd, number, inode: stat.st_ino }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed(errno)),
        }
    }

    fn open_first(&mut self) -> Result<bool, LogError> {
        self.file = self.open_after(0)?;
        Ok(self.file.is_some())
    }

    /// The oldest file with a number above `number`, else the one being written.
    fn open_after(&mut self, number: u64) -> Result<Option<Source>, LogError> {
        loop {
            let numbers = files::numbers(self.dir.as_fd(), self.attempt)?;
            let Some(next) = numbers.into_iter().find(|n| *n > number) else {
                return self.open_named(&files::current(self.attempt), None);
            };
            if let Some(source) = self.open_named(&files::rotated(self.attempt, next), Some(next))? {
                if number > 0 {
                    self.missed_files += next - number - 1;
                }
                return Ok(Some(source));
            }
            // Deleted between the listing and the opening: look again.
        }
    }

    /// The file after the present one; `None` while the present one is the one being written.
    fn successor(&mut self) -> Result<Option<Source>, LogError> {
        let Some(file) = &self.file else { return Ok(None) };
        let inode = file.inode;
        let number = match file.number {
            Some(number) => number,
            None => match self.number_of(inode)? {
                Place::Current => return Ok(None),
                Place::Full(number) => number,
                // Rotated away and deleted while it was held: the oldest that is left is next.
                Place::Gone => {
                    self.missed_files += 1;
                    0
                }
            },
        };
        // Between the two renames of a rotation no file has the current name: wait for it.
        self.open_after(number)
    }

    fn number_of(&self, inode: u64) -> Result<Place, LogError> {
        // Listed from the newest: a file that is renamed meanwhile is met under its new name, not missed.
        let stat = |name: &str| match statat(&self.dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat.st_ino)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(LogError::Read { name: name.to_owned(), source: errno.into() }),
        };
        if stat(&files::current(self.attempt))? == Some(inode) {
            return Ok(Place::Current);
        }
        for number in files::numbers(self.dir.as_fd(), self.attempt)?.into_iter().rev() {
            if stat(&files::rotated(self.attempt, number))? == Some(inode) {
                return Ok(Place::Full(number));
            }
        }
        Ok(Place::Gone)
    }

    /// Reads the present file to its end. False when `sink` has had enough.
    fn read_file(&mut self, sink: &mut dyn FnMut(Entry<'_>) -> bool) -> Result<bool, LogError> {
        let Some(file) = &self.file else { return Ok(true) };
        let mut eof = false;
        loop {
            let mut done = 0;
            while let Some(length) = self.pending[done..].iter().position(|byte| *byte == b'\n') {
                let line = &self.pending[done..done + length];
                done += length + 1;
                if let Some(entry) = entry::parse(line)
                    && !sink(entry)
                {
                    self.pending.drain(..done);
                    return Ok(false);
                }
            }
            self.pending.drain(..done);
            if self.pending.len() > LONGEST_ENTRY {
                self.pending.clear();
            }
            if eof {
                return Ok(true);
            }
            self.pending.reserve(CHUNK);
            let got = rustix::io::retry_on_intr(|| {
                rustix::io::read(&file.fd, rustix::buffer::spare_capacity(&mut self.pending))
            })
            .map_err(|errno| LogError::Read { name: files::current(self.attempt), source: errno.into() })?;
            eof = got == 0;
        }
    }
}

/// Where a held file is now.
enum Place {
    Current,
    Full(u64),
    Gone,
}
