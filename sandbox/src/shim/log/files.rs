//! Names of log files and how they are opened.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Dir, FileType, Mode, OFlags, fstat, mkdirat, openat};
use rustix::io::Errno;

use super::LogError;

/// The file being written.
pub(super) fn current(attempt: u32) -> String {
    format!("{attempt}.log")
}

/// A full file.
pub(super) fn rotated(attempt: u32, number: u64) -> String {
    format!("{attempt}.log.{number}")
}

fn open_error(name: &str, errno: Errno) -> LogError {
    LogError::Open { name: name.to_owned(), source: errno.into() }
}

/// Makes (unless it is there) and opens a container's log directory.
pub(super) fn directory(log_dir: BorrowedFd<'_>, container: &str) -> Result<OwnedFd, LogError> {
    if container.is_empty() || container.starts_with('.') || container.contains(['/', '\0']) {
        return Err(LogError::BadName { name: container.to_owned() });
    }
    match mkdirat(log_dir, container, Mode::from_raw_mode(0o750)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(open_error(container, errno)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(log_dir, container, flags, Mode::empty()).map_err(|errno| open_error(container, errno))
}

/// Makes a file that must not be there yet.
pub(super) fn create(dir: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::from_raw_mode(0o640))
}

/// Opens the file that an earlier start of the same attempt left; it must be a regular file with this one name.
pub(super) fn reopen(dir: impl AsFd, name: &str) -> Result<OwnedFd, LogError> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::empty()).map_err(|errno| open_error(name, errno))?;
    let stat = fstat(&file).map_err(|errno| open_error(name, errno))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink != 1 {
        return Err(LogError::Foreign { name: name.to_owned() });
    }
    Ok(file)
}

/// Numbers of the full files of an attempt, ascending.
pub(super) fn numbers(dir: BorrowedFd<'_>, attempt: u32) -> Result<Vec<u64>, LogError> {
    let prefix = rotated(attempt, 0);
    let prefix = prefix.trim_end_matches('0');
    let failed = |errno: Errno| LogError::Read { name: prefix.to_owned(), source: errno.into() };
    let mut numbers = Vec::new();
    for entry in Dir::read_from(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Some(number) = entry.file_name().to_str().ok().and_then(|name| name.strip_prefix(prefix))
            && let Ok(number) = number.parse()
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}
