//! The root file system of the benchmarks of sandboxes: the smallest programs there are, made here.
//!
//! A container's program takes its own time, whatever started it: a static busybox needs 0.35 ms from its first instruction to
//! the end of `true` in a virtual machine, where the C library asks for the processor's features some thirty times and each
//! question goes to the hypervisor. What is measured is the runtimes, so the programs are a few instructions long, for
//! ours and for the peers alike.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Where a program's file is mapped.
const ADDRESS: u64 = 0x40_0000;
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
/// The file, and a stack that is not executable.
const PROGRAM_HEADERS: u64 = 2;

/// Machine code of the three programs, and the machine's number in ELF.
struct Code {
    machine: u16,
    /// Writes `x` and a line feed, ends with 0.
    echo: &'static [u8],
    /// Sleeps until it is killed.
    sleep: &'static [u8],
    /// Ends with 0.
    exit: &'static [u8],
}

#[cfg(target_arch = "x86_64")]
const CODE: Code = Code {
    machine: 62,
    // mov eax,1; mov edi,1; lea rsi,[rip+16]; mov edx,2; syscall; mov eax,60; xor edi,edi; syscall; "x\n"
    echo: b"\xb8\x01\0\0\0\xbf\x01\0\0\0\x48\x8d\x35\x10\0\0\0\xba\x02\0\0\0\x0f\x05\xb8\x3c\0\0\0\x31\xff\x0f\x05x\n",
    // mov eax,34; syscall; jmp to the beginning
    sleep: b"\xb8\x22\0\0\0\x0f\x05\xeb\xf7",
    // mov eax,60; xor edi,edi; syscall
    exit: b"\xb8\x3c\0\0\0\x31\xff\x0f\x05",
};

#[cfg(target_arch = "aarch64")]
const CODE: Code = Code {
    machine: 183,
    // mov x8,64; mov x0,1; adr x1,.+24; mov x2,2; svc 0; mov x8,93; mov x0,0; svc 0; "x\n"
    echo: b"\x08\x08\x80\xd2\x20\0\x80\xd2\xc1\0\0\x10\x42\0\x80\xd2\x01\0\0\xd4\xa8\x0b\x80\xd2\0\0\x80\xd2\x01\0\0\xd4x\n",
    // mov x8,73 (ppoll); mov x0..x4,0; svc 0; b to the beginning
    sleep: b"\x28\x09\x80\xd2\0\0\x80\xd2\x01\0\x80\xd2\x02\0\x80\xd2\x03\0\x80\xd2\x04\0\x80\xd2\x01\0\0\xd4\xf9\xff\xff\x17",
    // mov x8,93; mov x0,0; svc 0
    exit: b"\xa8\x0b\x80\xd2\0\0\x80\xd2\x01\0\0\xd4",
};

/// Makes the root file system in `root`: `/bin/echo`, `/bin/sleep`, `/bin/true`, and what a runtime expects of a root.
pub fn write(root: &Path) -> io::Result<()> {
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/true\n")?;
    for (name, code) in [("echo", CODE.echo), ("sleep", CODE.sleep), ("true", CODE.exit)] {
        let path = root.join("bin").join(name);
        fs::write(&path, program(code))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// A static program of this code (ELF-64, see elf(5)).
fn program(code: &[u8]) -> Vec<u8> {
    let begin = HEADER + PROGRAM_HEADER * PROGRAM_HEADERS;
    let length = begin + code.len() as u64;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let half = |values: &[u16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let word = |value: u32| value.to_le_bytes();
    let long = |values: &[u64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    // An executable file; its entry, the program headers' offset, no sections; sizes.
    file.extend(half(&[2, CODE.machine]));
    file.extend(word(1));
    file.extend(long(&[ADDRESS + begin, HEADER, 0]));
    file.extend(word(0));
    file.extend(half(&[64, 56, 2, 64, 0, 0]));
    // PT_LOAD, readable and executable: the whole file.
    file.extend(word(1));
    file.extend(word(5));
    file.extend(long(&[0, ADDRESS, ADDRESS, length, length, 0x1000]));
    // PT_GNU_STACK, readable and writable.
    file.extend(word(0x6474_e551));
    file.extend(word(6));
    file.extend(long(&[0, 0, 0, 0, 0, 16]));
    file.extend(code);
    file
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_programs_do_what_their_names_say() {
        let root = tempfile::tempdir().unwrap();
        write(root.path()).unwrap();
        let run = |name: &str| Command::new(root.path().join("bin").join(name)).output().unwrap();
        let echo = run("echo");
        assert!(echo.status.success() && echo.stdout == b"x\n", "{echo:?}");
        let exit = run("true");
        assert!(exit.status.success() && exit.stdout.is_empty(), "{exit:?}");
        let mut sleep = Command::new(root.path().join("bin/sleep")).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(sleep.try_wait().unwrap().is_none(), "it sleeps");
        sleep.kill().unwrap();
        sleep.wait().unwrap();
    }
}
