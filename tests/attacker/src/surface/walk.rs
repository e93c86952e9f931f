//! The whole tree: what could be written, and which device nodes there are. Nothing is written.
#![allow(unsafe_code)] // raw system calls, with arguments that no crate lets through

use std::ffi::{CString, OsStr};
use std::fs::{self, FileType};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Walks from `/`; a line for each thing found: `writable PATH`, `device PATH TYPE MAJOR:MINOR [opens]`, `socket PATH`.
/// Below `skipped` paths nothing is looked at. Numbers of processes and descriptors are printed as `N`, each path once.
pub(crate) fn run(skipped: &[&str]) {
    let mut found = std::collections::BTreeSet::new();
    below(Path::new("/"), skipped, &mut found);
    for line in found {
        println!("{line}");
    }
}

fn below(directory: &Path, skipped: &[&str], found: &mut std::collections::BTreeSet<String>) {
    // Nothing can be made in a directory of /proc, whatever its mode says.
    if !directory.starts_with("/proc") && allowed(directory, libc::W_OK) {
        found.insert(format!("writable {}/", plain(directory).trim_end_matches('/')));
    }
    // Directories may vanish while we look, or be closed to us.
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        // Not the entry's own word: something else may be mounted on it.
        let Ok(kind) = fs::symlink_metadata(&path).map(|metadata| metadata.file_type()) else { continue };
        if skipped.iter().any(|skip| path.starts_with(skip)) || strangers(&path) {
            continue;
        }
        if kind.is_dir() {
            below(&path, skipped, found);
        } else {
            look(&path, kind, found);
        }
    }
}

fn look(path: &Path, kind: FileType, found: &mut std::collections::BTreeSet<String>) {
    if kind.is_symlink() {
        return;
    }
    if kind.is_socket() {
        found.insert(format!("socket {}", plain(path)));
    } else if kind.is_char_device() || kind.is_block_device() {
        let Ok(metadata) = fs::symlink_metadata(path) else { return };
        let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
        let letter = if kind.is_char_device() { 'c' } else { 'b' };
        let opens = if opens(path, libc::O_RDWR) { " opens" } else { "" };
        found.insert(format!("device {} {letter} {major}:{minor}{opens}", plain(path)));
    } else if path.starts_with("/proc/self") || path.starts_with("/proc/thread-self") {
        // The same again under a name of its own.
    } else if made_for_writing(path) && opens(path, libc::O_WRONLY) {
        found.insert(format!("writable {}", plain(path)));
    }
}

/// Root opens any file; what nobody may write has nothing that takes what is written.
fn made_for_writing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.mode() & 0o222 != 0)
}

/// Another process's directory in /proc: this process's own stands for all.
fn strangers(path: &Path) -> bool {
    let Ok(rest) = path.strip_prefix("/proc") else { return false };
    let mut parts = rest.iter();
    let first = parts.next().and_then(OsStr::to_str).unwrap_or_default();
    first.parse::<u32>().is_ok_and(|pid| pid != std::process::id())
}

fn plain(path: &Path) -> String {
    let number = |part: &OsStr| part.to_str().is_some_and(|part| part.parse::<u32>().is_ok());
    let in_proc = path.starts_with("/proc");
    let part = |part: &OsStr| {
        if in_proc && number(part) { "N".to_owned() } else { part.to_string_lossy().into_owned() }
    };
    path.iter().map(part).collect::<Vec<_>>().join("/").replace("//", "/")
}

fn text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path holds no zero")
}

fn allowed(path: &Path, mode: i32) -> bool {
    let path = text(path);
    // SAFETY: the path lives during the call.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), mode, libc::AT_EACCESS) == 0 }
}

fn opens(path: &Path, flags: i32) -> bool {
    let path = text(path);
    // SAFETY: the path lives during the call; the descriptor is nobody else's.
    unsafe {
        let fd =
            libc::open(path.as_ptr(), flags | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::close(fd);
        }
        fd >= 0
    }
}
