//! The shim's program must need nothing of the host's files: keeper and shims live where no loader and no library is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::contract::SandboxError;

/// `PT_INTERP`: the program asks for a loader.
const INTERPRETER: u32 = 3;
/// Above what any linker writes.
const MOST_HEADERS: u16 = 128;

/// Refuses a program that is not an executable, or not a static one.
pub(super) fn check(path: &Path) -> Result<(), SandboxError> {
    let refused = |why: &str| SandboxError::Invalid { message: format!("{}: {why}", path.display()) };
    match needs_loader(path) {
        Ok(Some(false)) => Ok(()),
        Ok(Some(true)) => Err(refused(
            "is linked dynamically and could not run inside a pod's namespaces; build it with -C target-feature=+crt-static",
        )),
        Ok(None) => Err(refused("is not a 64-bit ELF program of this machine")),
        Err(error) => Err(refused(&format!("cannot be read: {error}"))),
    }
}

/// `None` when it is no ELF file that this machine could run.
fn needs_loader(path: &Path) -> io::Result<Option<bool>> {
    let file = File::open(path)?;
    let mut head = [0; 64];
    match file.read_exact_at(&mut head, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let half = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
    let [class, order] = [head[4], head[5]];
    let native = if cfg!(target_endian = "little") { 1 } else { 2 };
    let (size, count) = (half(54), half(56));
    if &head[..4] != b"\x7fELF" || class != 2 || order != native || size < 4 || count > MOST_HEADERS {
        return Ok(None);
    }
    let mut offset = [0; 8];
    offset.copy_from_slice(&head[32..40]);
    let table = u64::from_ne_bytes(offset);
    for number in 0..u64::from(count) {
        let mut kind = [0; 4];
        let Some(at) = table.checked_add(number * u64::from(size)) else { return Ok(None) };
        file.read_exact_at(&mut kind, at)?;
        if u32::from_ne_bytes(kind) == INTERPRETER {
            return Ok(Some(true));
        }
    }
    Ok(Some(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_static_program_is_taken() {
        // The test program itself is linked dynamically.
        let dynamic = check(&std::env::current_exe().unwrap()).unwrap_err().to_string();
        assert!(dynamic.contains("is linked dynamically"), "{dynamic}");
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        assert!(check(&script).unwrap_err().to_string().contains("is not a 64-bit ELF"));
        assert!(check(&dir.path().join("none")).unwrap_err().to_string().contains("cannot be read"));
        // A program without headers asks for nothing.
        let mut head = [0; 64];
        head[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, if cfg!(target_endian = "little") { 1 } else { 2 }]);
        head[54] = 56;
        std::fs::write(&script, head).unwrap();
        assert!(check(&script).is_ok());
    }
}
