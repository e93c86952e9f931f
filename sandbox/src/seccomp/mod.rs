//! The seccomp filter of a container.
//!
//! [`numbers`]: what system calls there are. [`table`]: what the default profile says of each. [`assemble`]: both as a
//! filter program, once for each set of capabilities that matters. [`profile`]: profiles of the operator's own.
//! [`core_limit`]: what stands before those, too. [`judge`]: what a program will answer. Installing is `sys::filter::install`.
//!
//! | call | answer |
//! | --- | --- |
//! | in the table, condition met | allowed |
//! | the limit of core files set | nothing done, as if it had been |
//! | known to us, not allowed | EPERM |
//! | `clone3`; numbers that we do not know | ENOSYS, so that C libraries fall back |
//! | another architecture's entry (int 0x80, arm32) | the process is killed; x32 numbers: ENOSYS |
//!
//! The rules are `seccompiler`'s to judge: a test compiles the same table with it, as two stacked filters, and compares
//! the answers for every number and many arguments. Its code is not what is installed (see [`assemble`] for why).

mod assemble;
mod core_limit;
pub(crate) mod judge;
mod numbers;
pub mod profile;
mod table;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::spec::Seccomp;
use crate::sys::filter::Instruction;
use assemble::Verdict;

/// A program ready for `sys::filter::install`.
pub type Program = Arc<[Instruction]>;

/// The filter that a container with `capabilities` (`CAP_…` names) gets; `None` for no filter at all. The first call for
/// a set of capabilities compiles (some 30 microseconds), later ones give the same program again.
pub fn program(profile: &Seccomp, capabilities: &[String]) -> Option<Program> {
    static COMPILED: Mutex<BTreeMap<u32, Program>> = Mutex::new(BTreeMap::new());
    match profile {
        Seccomp::Unconfined => None,
        Seccomp::Custom(numbers) => {
            let own = numbers.iter().map(|number| profile::unpack(*number));
            Some(core_limit::before().into_iter().chain(own).collect())
        }
        Seccomp::RuntimeDefault => {
            let relevant = relevant(capabilities);
            let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
            let program = compiled.entry(relevant).or_insert_with(|| assemble::assemble(&verdicts(relevant)).into());
            Some(Arc::clone(program))
        }
    }
}

/// The system calls that the default profile allows to everybody, whatever the arguments: what another runtime is given to
/// be compared with.
#[must_use]
pub fn allowed() -> &'static [&'static str] {
    table::ALLOWED
}

/// Those of the capabilities that the table asks for, as bits of its order.
fn relevant(capabilities: &[String]) -> u32 {
    let held = |name: &str| capabilities.iter().any(|capability| capability == name);
    table::WITH_CAPABILITY.iter().enumerate().filter(|(_, (name, _))| held(name)).fold(0, |bits, (i, _)| bits | 1 << i)
}

#[cfg(target_arch = "x86_64")]
fn number((_, x86_64, _): &(&str, i32, i32)) -> Option<u32> {
    u32::try_from(*x86_64).ok()
}

#[cfg(target_arch = "aarch64")]
fn number((_, _, aarch64): &(&str, i32, i32)) -> Option<u32> {
    u32::try_from(*aarch64).ok()
}

/// This architecture's number of a system call; `None` when it has none.
fn number_of(name: &str) -> Option<u32> {
    let at = numbers::SYSCALLS.binary_search_by_key(&name, |entry| entry.0).ok()?;
    number(&numbers::SYSCALLS[at])
}

fn verdicts(capabilities: u32) -> BTreeMap<u32, Verdict> {
    let mut verdicts: BTreeMap<u32, Verdict> =
        numbers::SYSCALLS.iter().filter_map(number).map(|number| (number, Verdict::Deny)).collect();
    let mut put = |names: &[&str], verdict| {
        verdicts.extend(names.iter().filter_map(|name| number_of(name)).map(|number| (number, verdict)));
    };
    put(table::ALLOWED, Verdict::Allow);
    put(table::ABSENT, Verdict::Absent);
    put(table::SOCKETS, Verdict::Family);
    put(&["personality"], Verdict::Personality);
    put(&["clone"], Verdict::Clone);
    put(&["setrlimit"], Verdict::SetLimit);
    put(&["prlimit64"], Verdict::SetAndGetLimit);
    for (i, (capability, names)) in table::WITH_CAPABILITY.iter().enumerate() {
        if capabilities & 1 << i != 0 {
            put(names, Verdict::Allow);
            if *capability == "CAP_SYS_ADMIN" {
                put(&["clone"], Verdict::Allow);
            }
        }
    }
    verdicts
}
