//! Writes to the file, around the page cache where that can be.

use std::{fs::File, io, os::unix::fs::FileExt};

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
};

use super::buffer::ALIGNMENT;

/// The file, in one mode or the other.
#[derive(Debug)]
pub(super) struct Output<'a> {
    file: &'a File,
    /// The mode it is in.
    direct: bool,
    /// The file system can; false once it was found not to.
    can: bool,
}

impl<'a> Output<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        Self { file, direct: false, can: true }
    }

    /// Writes a chunk.
    pub(super) fn chunk(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let fits = bytes.len().is_multiple_of(ALIGNMENT) && at.is_multiple_of(ALIGNMENT as u64);
        if self.can && fits {
            match self.switch(true).and_then(|()| self.file.write_all_at(bytes, at)) {
                // Some say so when they are asked to, some only when they are to do it.
                Err(e) if is_refusal(&e) => self.can = false,
                other => return other,
            }
        }
        self.patch(bytes, at)
    }

    /// Writes any number of bytes, anywhere.
    pub(super) fn patch(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.plain()?;
        self.file.write_all_at(bytes, at)
    }

    /// From here on the file is one as any other.
    pub(super) fn plain(&mut self) -> io::Result<()> {
        self.switch(false)
    }

    fn switch(&mut self, direct: bool) -> io::Result<()> {
        if direct != self.direct {
            let flags = fcntl_getfl(self.file)?;
            let flags = if direct { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT };
            fcntl_setfl(self.file, flags)?;
            self.direct = direct;
        }
        Ok(())
    }
}

fn is_refusal(error: &io::Error) -> bool {
    [Errno::INVAL, Errno::OPNOTSUPP].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::super::buffer::Buffer;
    use super::*;

    /// Also where the file system cannot (/dev/shm before Linux 6.6).
    #[test]
    fn chunks_and_patches_in_any_order_leave_what_was_written_last() {
        for dir in [std::env::temp_dir(), "/dev/shm".into()] {
            let file = tempfile::tempfile_in(dir).unwrap();
            let mut buffer = Buffer::new();
            let len = buffer.len() as u64;
            let mut want = vec![0; 3 * buffer.len()];
            let mut output = Output::new(&file);
            for (at, byte) in [(0, 1), (len, 2), (2 * len, 3)] {
                buffer.fill(byte);
                output.chunk(&buffer, at).unwrap();
                want[at as usize..][..buffer.len()].fill(byte);
                output.patch(b"patch", at + 5).unwrap();
                want[at as usize + 5..][..5].copy_from_slice(b"patch");
            }
            // What is no whole page goes the other way.
            output.chunk(&buffer[..100], 4096).unwrap();
            want[4096..4196].fill(3);
            output.plain().unwrap();
            assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT));
            let mut have = vec![0; want.len()];
            file.read_exact_at(&mut have, 0).unwrap();
            assert!(have == want);
        }
    }
}
