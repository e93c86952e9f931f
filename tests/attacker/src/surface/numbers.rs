//! Every system call number with arguments that no call can take: what the filter and the kernel say of it.
#![allow(unsafe_code)] // raw system calls, with arguments that no crate lets through

use std::arch::asm;

use super::isolate::{answer, isolated};

/// Asks for each number below `end`; a line for each: the number and what became of it. Not `sync`, which everybody may
/// call, and which would wait for all that the host has to write.
pub(crate) fn run(end: i64) {
    for number in (0..end).filter(|number| *number != libc::SYS_sync) {
        // Those that wait for ever are allowed; the timer ends them.
        println!("{number} {}", isolated(300, || one(number)));
    }
}

fn one(number: i64) -> Result<(), i32> {
    match number {
        // With these the child would go on as this program does.
        libc::SYS_fork | libc::SYS_vfork => child_that_ends(number),
        // Flags that make no namespace, and an address that cannot be a stack's (so nothing is made).
        libc::SYS_clone => raw(number, [0x0001_0000, -1, -1, -1, -1, -1]),
        // Would end this process with a number that looks like an errno.
        libc::SYS_exit | libc::SYS_exit_group => raw(number, [0; 6]),
        _ => raw(number, [-1; 6]),
    }
}

fn raw(number: i64, arguments: [i64; 6]) -> Result<(), i32> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: no argument is the address of anything.
    answer(unsafe { libc::syscall(number, a, b, c, d, e, f) })
}

fn child_that_ends(number: i64) -> Result<(), i32> {
    let mut result = number;
    // SAFETY: the child does nothing but end: it touches no memory, which after vfork is this process's own.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor edi, edi",
            "mov eax, 60",
            "syscall",
            "2:",
            inout("rax") result,
            out("rdi") _, out("rcx") _, out("r11") _,
        );
    }
    if result < 0 { Err(-result as i32) } else { Ok(()) }
}
