//! Control files by directory file descriptor, and the parsers for what they hold.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};

use super::CgroupError;

const TO_WRITE: OFlags = OFlags::WRONLY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// No control file that is read here is longer (memory.stat has about 2 KiB).
const LONGEST: usize = 64 * 1024;

/// Writes a whole value in one write, as the kernel wants.
pub(super) fn write(dir: BorrowedFd<'_>, file: &str, value: &str) -> Result<(), CgroupError> {
    write_raw(dir, file, value.as_bytes()).map_err(|source| CgroupError::Write {
        file: file.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// Opens a control file for writing.
pub(super) fn open_to_write(dir: BorrowedFd<'_>, file: &str) -> Result<OwnedFd, CgroupError> {
    let opened = openat(dir, file, TO_WRITE, Mode::empty());
    opened.map_err(|errno| CgroupError::Write { file: file.to_owned(), value: String::new(), source: errno.into() })
}

fn write_raw(dir: BorrowedFd<'_>, file: &str, value: &[u8]) -> io::Result<()> {
    let fd = openat(dir, file, TO_WRITE, Mode::empty())?;
    let written = rustix::io::retry_on_intr(|| rustix::io::write(&fd, value))?;
    if written == value.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Opens a control file for reading.
pub(super) fn open(dir: BorrowedFd<'_>, file: &str) -> Result<OwnedFd, CgroupError> {
    openat(dir, file, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
        .map_err(|errno| CgroupError::Read { file: file.to_owned(), source: errno.into() })
}

/// Reads a whole control file.
pub(super) fn read(dir: BorrowedFd<'_>, file: &str) -> Result<String, CgroupError> {
    let fd = open(dir, file)?;
    let failed = |source| CgroupError::Read { file: file.to_owned(), source };
    let mut content = Vec::with_capacity(4096);
    loop {
        let got = rustix::io::retry_on_intr(|| rustix::io::read(&fd, rustix::buffer::spare_capacity(&mut content)))
            .map_err(|errno| failed(errno.into()))?;
        if got == 0 {
            break;
        }
        if content.len() > LONGEST {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        content.reserve(4096);
    }
    String::from_utf8(content).map_err(|_| failed(io::ErrorKind::InvalidData.into()))
}

/// A file that holds one number.
pub(super) fn read_number(dir: BorrowedFd<'_>, file: &str) -> Result<u64, CgroupError> {
    let content = read(dir, file)?;
    content.trim().parse().map_err(|_| unreadable(file, &content))
}

/// One value of a file of `key value` lines; `None` when the kernel does not have that key.
pub(super) fn read_keyed(dir: BorrowedFd<'_>, file: &str, key: &str) -> Result<Option<u64>, CgroupError> {
    let content = read(dir, file)?;
    keyed(&content, key).map_err(|()| unreadable(file, &content))
}

/// Finds `key` among `key value` lines. `Err` when its value is no number.
pub(super) fn keyed(content: &str, key: &str) -> Result<Option<u64>, ()> {
    for line in content.lines() {
        if let Some((name, value)) = line.split_once(' ')
            && name == key
        {
            return value.trim().parse().map(Some).map_err(|_| ());
        }
    }
    Ok(None)
}

fn unreadable(file: &str, content: &str) -> CgroupError {
    CgroupError::Unreadable { file: file.to_owned(), content: content.chars().take(80).collect() }
}

#[cfg(test)]
mod tests {
    use super::keyed;
    use proptest::prelude::*;

    #[test]
    fn a_key_is_matched_whole_and_not_by_prefix() {
        let content = "oom 1\noom_kill 7\noom_group_kill 2\n";
        assert_eq!(keyed(content, "oom_kill"), Ok(Some(7)));
        assert_eq!(keyed(content, "oom"), Ok(Some(1)));
        assert_eq!(keyed(content, "max"), Ok(None));
        assert_eq!(keyed("oom_kill x\n", "oom_kill"), Err(()));
    }

    proptest! {
        #[test]
        fn any_content_is_survived(content in ".{0,200}", key in "[a-z_]{1,8}") {
            let _ = keyed(&content, &key);
        }

        #[test]
        fn what_was_written_is_found(pairs in proptest::collection::btree_map("[a-z_]{1,8}", any::<u64>(), 1..8)) {
            let content: String = pairs.iter().map(|(k, v)| format!("{k} {v}\n")).collect();
            for (key, value) in &pairs {
                prop_assert_eq!(keyed(&content, key), Ok(Some(*value)));
            }
        }
    }
}
