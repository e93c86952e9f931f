//! What `ps` shows of a process: its command line, written over.
#![allow(unsafe_code)] // the arguments are memory that Rust does not own

use std::io;

/// The memory of a process's arguments, in which others read its command line. A fork has its own copy of it.
///
/// prctl(PR_SET_MM_ARG_START) would take any memory, but needs CAP_SYS_RESOURCE, which some hosts' root lacks.
#[derive(Debug, Clone, Copy)]
pub struct Title {
    start: usize,
    length: usize,
}

impl Title {
    /// That of the calling process.
    pub fn own() -> io::Result<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let unreadable = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/self/stat says {stat:?}"));
        // proc_pid_stat(5): fields 48 and 49; the second ends with the last parenthesis.
        let mut fields = stat[stat.rfind(')').ok_or_else(unreadable)? + 1..].split_ascii_whitespace().skip(45);
        let mut address =
            || fields.next().and_then(|field| field.parse::<usize>().ok()).filter(|address| *address != 0);
        let (start, end) = address().zip(address()).ok_or_else(unreadable)?;
        Ok(Self { start, length: end.checked_sub(start).ok_or_else(unreadable)? })
    }

    /// Shows these words, as far as there is room. The process must have one thread.
    pub fn show(self, words: &[&str]) {
        let mut text: Vec<u8> = words.iter().flat_map(|word| word.bytes().chain([0])).collect();
        text.resize(self.length, 0);
        if let Some(last) = text.last_mut() {
            *last = 0;
        }
        // SAFETY: the kernel put the arguments there, in `length` bytes of the stack's mapping, writable and never unmapped, of
        // this process or the one that it is a fork of. Rust holds no reference to them: `std::env::args` reads them when it is
        // called, no other thread does so now, and what it would read then ends with a zero, as before.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), self.start as *mut u8, self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_the_arguments_is_found() {
        let title = Title::own().unwrap();
        assert_eq!(std::fs::read("/proc/self/cmdline").unwrap().len(), title.length);
    }
}
