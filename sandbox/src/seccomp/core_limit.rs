//! The limit of core files, kept as it is.
//!
//! Where the host's `core_pattern` is a pipe, a crash runs that program, as the host's root, on whatever the container
//! lets it read; a limit of 0 does not keep it from that, only a soft limit of exactly 1 does (core(5), and `limit == 1` in
//! the kernel's fs/coredump.c), which no file fits into either. So a container starts with 1, hard and soft, and setting it
//! is answered as done. Programs that will have no core files (`ssh-agent`, `gpg-agent` …) end when told that they may not.
//! Who asks to be told the old limit in the same call is refused, for nobody would write it.

use super::assemble::{
    ALLOW, ARCH, ARCHITECTURE, EPERM, EQUAL, FIRST_ARGUMENT, LOAD, NUMBER, answer, branch, statement,
};
use super::number_of;
use crate::sys::filter::Instruction;

/// `SECCOMP_RET_ERRNO` with 0: the call is not made, and says that it was.
pub(super) const AS_IF: u32 = libc::SECCOMP_RET_ERRNO;

/// Instructions of [`before`] at most.
pub(super) const MOST: usize = 32;

const RESOURCE: u32 = libc::RLIMIT_CORE;

/// `setrlimit(resource, limit)`; every path returns.
pub(super) fn set(program: &mut Vec<Instruction>) {
    program.extend(SET);
    program.push(answer(ALLOW));
}

/// `prlimit64(process, resource, new limit, old limit)`; every path returns.
pub(super) fn set_and_get(program: &mut Vec<Instruction>) {
    program.extend(SET_AND_GET);
    program.push(answer(ALLOW));
}

/// What stands before a program of the operator's own: the two calls' other uses, and all other calls, go on to it.
pub(super) fn before() -> Vec<Instruction> {
    let mut calls = Vec::new();
    for (name, body) in [("setrlimit", &SET[..]), ("prlimit64", &SET_AND_GET)] {
        if let Some(number) = number_of(name) {
            calls.extend([statement(LOAD, NUMBER), branch(EQUAL, number, 0, body.len() as u8)]);
            calls.extend_from_slice(body);
        }
    }
    // Another architecture's calls are the program's to answer.
    let mut program = vec![statement(LOAD, ARCH), branch(EQUAL, ARCHITECTURE, 0, calls.len() as u8)];
    program.append(&mut calls);
    program
}

/// The lower and the upper half of an argument.
const fn low(argument: u32) -> Instruction {
    statement(LOAD, FIRST_ARGUMENT + 8 * argument)
}

const fn high(argument: u32) -> Instruction {
    statement(LOAD, FIRST_ARGUMENT + 8 * argument + 4)
}

/// Goes on behind itself when it is something else.
const SET: [Instruction; 3] = [low(0), branch(EQUAL, RESOURCE, 0, 1), answer(AS_IF)];

const SET_AND_GET: [Instruction; 12] = [
    low(1),
    branch(EQUAL, RESOURCE, 0, 10),
    // Without a new limit it only asks.
    low(2),
    branch(EQUAL, 0, 0, 2),
    high(2),
    branch(EQUAL, 0, 6, 0),
    low(3),
    branch(EQUAL, 0, 0, 3),
    high(3),
    branch(EQUAL, 0, 0, 1),
    answer(AS_IF),
    answer(EPERM),
];

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    const ON: u32 = libc::SECCOMP_RET_TRACE;

    fn answers(arch: u32, name: &str, arguments: [u64; 6]) -> u32 {
        let mut program = before();
        program.push(answer(ON));
        run(&program, arch, number_of(name).unwrap(), arguments)
    }

    #[test]
    fn only_setting_the_limit_of_core_files_is_not_the_profiles_to_decide() {
        assert!(before().len() <= MOST);
        let (core, other) = (u64::from(RESOURCE), u64::from(libc::RLIMIT_NOFILE));
        // A pointer whose lower half is 0 is one, too; of a resource the kernel looks at the lower half only.
        for there in [1, 1 << 32, u64::MAX] {
            for core in [core, core | 1 << 32] {
                assert_eq!(answers(ARCHITECTURE, "setrlimit", [core, there, 0, 0, 0, 0]), AS_IF);
                assert_eq!(answers(ARCHITECTURE, "prlimit64", [7, core, there, 0, 0, 0]), AS_IF);
                assert_eq!(answers(ARCHITECTURE, "prlimit64", [7, core, there, there, 0, 0]), EPERM);
                assert_eq!(answers(ARCHITECTURE, "prlimit64", [7, core, 0, there, 0, 0]), ON);
            }
            assert_eq!(answers(ARCHITECTURE, "setrlimit", [other, there, 0, 0, 0, 0]), ON);
            assert_eq!(answers(ARCHITECTURE, "prlimit64", [core, other, there, there, 0, 0]), ON);
        }
        assert_eq!(answers(ARCHITECTURE, "getrlimit", [core, 1, 0, 0, 0, 0]), ON);
        assert_eq!(answers(ARCHITECTURE + 1, "setrlimit", [core, 1, 0, 0, 0, 0]), ON);
    }
}
