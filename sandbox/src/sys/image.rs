//! `execve` by a process that may allocate nothing.
#![allow(unsafe_code)] // execve of arrays that were made before

use std::ffi::{CStr, CString, c_char};

use rustix::io::Errno;

/// Whether this process's working directory is below its root. The kernel begins the path of one that is not otherwise than
/// with a slash (getcwd(2)); one that is longer than any path, or gone, is not either.
pub fn is_in_root() -> bool {
    let mut path = [0u8; 4096];
    // SAFETY: the kernel writes at most as many bytes as it is told that there are.
    let length = unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) };
    length > 0 && path[0] == b'/'
}

/// A program's arguments and environment as the kernel takes them.
#[derive(Debug)]
pub struct Image {
    arguments: Array,
    environment: Array,
}

/// Texts, and pointers to them with a null pointer at the end.
#[derive(Debug)]
struct Array {
    #[expect(dead_code, reason = "what the pointers lead to")]
    texts: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Array {
    fn of(texts: Vec<CString>) -> Self {
        let pointers = texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        Self { texts, pointers }
    }
}

impl Image {
    /// Of `args` and `NAME=VALUE` texts.
    pub fn new(arguments: Vec<CString>, environment: Vec<CString>) -> Self {
        Self { arguments: Array::of(arguments), environment: Array::of(environment) }
    }

    /// Replaces this process's program by the one at `path`. Returns only when that failed; allocates nothing.
    pub fn execute(&self, path: &CStr) -> Errno {
        // SAFETY: the path is terminated; both arrays end with a null pointer and lead to terminated texts, which `self` owns
        // and nobody changes.
        unsafe { libc::execve(path.as_ptr(), self.arguments.pointers.as_ptr(), self.environment.pointers.as_ptr()) };
        Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
    }
}
