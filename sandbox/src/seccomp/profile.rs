//! Profiles of the operator's own: the JSON of Docker's engine and of the OCI runtime specification, compiled. Pure.
//!
//! ```text
//! JSON ── parse ── rules that apply (capabilities, kernel, architecture) ── by system call ── program (packed numbers)
//! ```
//!
//! What a rule means is what runc and libseccomp make of it:
//! * a rule without arguments decides its call, whatever others say; otherwise the first whose arguments all match, and the
//!   profile's default action when none does;
//! * several conditions on one argument are alternatives, each a rule of its own;
//! * a rule that says what the default says is no rule; names that nobody knows are passed over;
//! * calls younger than every call that the profile names are answered ENOSYS unless the default lets calls through.
//!
//! Only this machine's own system calls are filtered; another architecture's kill the process, and x32's are ENOSYS, also where
//! a profile lists such architectures. A profile that hands calls to a listener is refused.

mod conditions;
mod parse;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use self::parse::{Profile, Rule};
use super::assemble::{self, ABSENT_X32};
use super::number_of;
use crate::sys::filter::Instruction;

/// Longest program that the kernel takes, less what stands before it ([`super::core_limit`]).
const LONGEST: usize = 4096 - super::core_limit::MOST;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It is not the JSON of a profile.
    #[error("decoding seccomp profile failed")]
    Json(#[source] serde_json::Error),
    /// An action that is none, or that this runtime does not have.
    #[error("seccomp action {action:?} is not supported")]
    Action {
        /// As written.
        action: String,
    },
    /// An operator that is none.
    #[error("seccomp operator {operator:?} is not supported")]
    Operator {
        /// As written.
        operator: String,
    },
    /// An argument that no system call has.
    #[error("seccomp argument {index} does not exist: a system call has six, from 0")]
    Argument {
        /// As written.
        index: u32,
    },
    /// A flag that this runtime does not have.
    #[error("seccomp flag {flag:?} is not supported")]
    Flag {
        /// As written.
        flag: String,
    },
    /// The kernel would not take it.
    #[error("the seccomp profile makes {length} instructions; the kernel takes {LONGEST}")]
    Long {
        /// Instructions.
        length: usize,
    },
}

/// Compiles a profile for a container with these capabilities (`CAP_…`) on a kernel of this version, into
/// [`crate::spec::Seccomp::Custom`]'s numbers.
///
/// # Errors
/// When it is malformed, asks for what this runtime does not have, or is too long.
pub fn compile(json: &str, capabilities: &[String], kernel: (u32, u32)) -> Result<Vec<u64>, ProfileError> {
    let profile = parse::profile(json, capabilities, kernel)?;
    let program = program(&profile);
    if program.len() > LONGEST {
        return Err(ProfileError::Long { length: program.len() });
    }
    Ok(program.iter().map(pack).collect())
}

/// Instructions of one call, by how they begin: the answer at once, or a place among `bodies`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Always(u32),
    Body(usize),
}

fn program(profile: &Profile) -> Vec<Instruction> {
    let mut calls: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
    for (number, rule) in
        profile.rules.iter().flat_map(|rule| rule.names.iter().map(move |name| (number_of(name), rule)))
    {
        if let (Some(number), true) = (number, rule.action != profile.default) {
            calls.entry(number).or_default().push(rule);
        }
    }
    let mut bodies: Vec<Vec<Instruction>> = Vec::new();
    let mut answers: BTreeMap<u32, Answer> = BTreeMap::new();
    for (number, rules) in &calls {
        let answer = match rules.iter().find(|rule| rule.arguments.is_empty()) {
            Some(rule) => Answer::Always(rule.action),
            None => {
                let body = conditions::body(rules, profile.default);
                bodies.push(body);
                Answer::Body(bodies.len() - 1)
            }
        };
        answers.insert(*number, answer);
    }
    let default = Answer::Always(profile.default);
    let beyond = if profile.lets_through() { default } else { Answer::Always(assemble::ENOSYS) };
    let ranges = ranges(&answers, default, beyond);
    let mut program = assemble::prologue();
    let emit = |answer: Answer, program: &mut Vec<Instruction>| match answer {
        Answer::Always(action) => program.push(assemble::answer(action)),
        Answer::Body(body) => program.extend_from_slice(&bodies[body]),
    };
    assemble::tree(&ranges, &emit, &mut program);
    program
}

/// `(first number, answer)`, from 0, each up to the next.
fn ranges(answers: &BTreeMap<u32, Answer>, default: Answer, beyond: Answer) -> Vec<(u32, Answer)> {
    let mut ranges: Vec<(u32, Answer)> = Vec::new();
    let mut push = |from: u32, answer: Answer| {
        if ranges.last().is_none_or(|last| last.1 != answer) {
            ranges.push((from, answer));
        }
    };
    let mut next = 0;
    for (&number, &answer) in answers {
        if number > next {
            push(next, default);
        }
        push(number, answer);
        next = number + 1;
    }
    // A profile that names nothing says nothing about what is young.
    push(next, if answers.is_empty() { default } else { beyond });
    push(ABSENT_X32, Answer::Always(assemble::ENOSYS));
    ranges
}

fn pack(at: &Instruction) -> u64 {
    u64::from(at.code) << 48 | u64::from(at.jt) << 40 | u64::from(at.jf) << 32 | u64::from(at.k)
}

/// An instruction of [`compile`]'s.
pub(super) fn unpack(number: u64) -> Instruction {
    Instruction {
        code: (number >> 48) as u16,
        jt: (number >> 40 & 0xff) as u8,
        jf: (number >> 32 & 0xff) as u8,
        k: number as u32,
    }
}
