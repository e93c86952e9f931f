//! Verdicts to a filter program: a binary search over ranges of system call numbers.
//!
//! A chain of one comparison per call, as filter libraries emit it, has about 1,500 instructions, and the kernel runs it
//! once for every call number when it is installed (to learn which calls it may pass without asking). That alone takes
//! longer than all the namespaces of a container. A search tree over some hundred ranges does not.

use std::collections::BTreeMap;

use super::core_limit;
use super::table::{FAMILIES, NAMESPACE_FLAGS, PERSONALITIES};
use crate::sys::filter::Instruction;

/// What becomes of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    /// EPERM.
    Deny,
    /// ENOSYS.
    Absent,
    /// Allowed for some socket families.
    Family,
    /// Allowed for some personalities.
    Personality,
    /// Allowed without namespace flags.
    Clone,
    /// Allowed for all limits but that of core files ([`core_limit`]).
    SetLimit,
    /// The same of `prlimit64`.
    SetAndGetLimit,
}

/// What the kernel calls this build's architecture (`AUDIT_ARCH_*`).
#[cfg(target_arch = "x86_64")]
pub(super) const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub(super) const ARCHITECTURE: u32 = 0xc000_00b7;

pub(super) const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
pub(super) const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
pub(super) const MORE: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
pub(super) const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
pub(super) const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// `struct seccomp_data`: number, architecture, instruction pointer, six arguments; little-endian words.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCH: u32 = 4;
pub(super) const FIRST_ARGUMENT: u32 = 16;

pub(super) const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
pub(super) const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
pub(super) const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// The first number of the x32 calls, which share the architecture's name.
pub(super) const ABSENT_X32: u32 = 0x4000_0000;

/// Gives an answer.
pub(super) const fn answer(action: u32) -> Instruction {
    statement(RETURN, action)
}

/// Kills what speaks another architecture's language, and loads the call's number.
pub(super) fn prologue() -> Vec<Instruction> {
    vec![statement(LOAD, ARCH), branch(EQUAL, ARCHITECTURE, 1, 0), statement(RETURN, KILL), statement(LOAD, NUMBER)]
}

pub(super) const fn statement(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

pub(super) const fn branch(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// The program for these verdicts; numbers that are not named are absent.
pub(super) fn assemble(verdicts: &BTreeMap<u32, Verdict>) -> Vec<Instruction> {
    let mut program = prologue();
    tree(&ranges(verdicts), &leaf, &mut program);
    program
}

/// Neighbours of one verdict joined: `(first number, verdict)`, from 0, each up to the next.
fn ranges(verdicts: &BTreeMap<u32, Verdict>) -> Vec<(u32, Verdict)> {
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    let mut next = 0;
    let mut push = |from: u32, verdict: Verdict| {
        if ranges.last().is_none_or(|last| last.1 != verdict) {
            ranges.push((from, verdict));
        }
    };
    for (&number, &verdict) in verdicts {
        if number > next {
            push(next, Verdict::Absent);
        }
        push(number, verdict);
        next = number + 1;
    }
    push(next, Verdict::Absent);
    ranges
}

/// Emits the search over `ranges`, the call's number being loaded. Every path returns.
///
/// `leaf` emits the instructions of one range.
pub(super) fn tree<T: Copy>(
    ranges: &[(u32, T)],
    leaf: &impl Fn(T, &mut Vec<Instruction>),
    program: &mut Vec<Instruction>,
) {
    let (low, high) = ranges.split_at(ranges.len() / 2);
    match high {
        [] => {}
        [(_, verdict)] if low.is_empty() => leaf(*verdict, program),
        [(pivot, _), ..] => {
            let mut below = Vec::new();
            tree(low, leaf, &mut below);
            match u8::try_from(below.len()) {
                Ok(distance) => program.push(branch(AT_LEAST, *pivot, distance, 0)),
                // Too far for a branch: a jump can go anywhere.
                Err(_) => {
                    program.push(branch(AT_LEAST, *pivot, 0, 1));
                    program.push(statement(JUMP, below.len() as u32));
                }
            }
            program.append(&mut below);
            tree(high, leaf, program);
        }
    }
}

fn leaf(verdict: Verdict, program: &mut Vec<Instruction>) {
    match verdict {
        Verdict::Allow => program.push(statement(RETURN, ALLOW)),
        Verdict::Deny => program.push(statement(RETURN, EPERM)),
        Verdict::Absent => program.push(statement(RETURN, ENOSYS)),
        Verdict::Family => one_of(FAMILIES, program),
        Verdict::Personality => one_of(PERSONALITIES, program),
        Verdict::SetLimit => core_limit::set(program),
        Verdict::SetAndGetLimit => core_limit::set_and_get(program),
        Verdict::Clone => program.extend([
            statement(LOAD, FIRST_ARGUMENT),
            branch(ANY_BIT, NAMESPACE_FLAGS, 1, 0),
            statement(RETURN, ALLOW),
            statement(RETURN, EPERM),
        ]),
    }
}

/// Allows when the first argument (an int: its upper half is not looked at by the kernel either) is one of `values`.
fn one_of(values: &[u32], program: &mut Vec<Instruction>) {
    program.push(statement(LOAD, FIRST_ARGUMENT));
    for (i, value) in values.iter().enumerate() {
        let past_the_rest = u8::try_from(values.len() - i).unwrap_or(u8::MAX);
        program.push(branch(EQUAL, *value, past_the_rest, 0));
    }
    program.push(statement(RETURN, EPERM));
    program.push(statement(RETURN, ALLOW));
}
