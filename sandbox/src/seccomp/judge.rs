//! What a filter program answers, worked out before it is installed.

use super::assemble::ARCHITECTURE;
use super::number_of;
use crate::sys::filter::Instruction;

/// A system call with the arguments that are known of it.
pub(crate) type Call = (&'static str, [u64; 6]);

/// Whether a program lets all of these calls through. Calls that this architecture has not are passed over.
pub(crate) fn lets_through(program: &[Instruction], calls: &[Call]) -> bool {
    let numbered = calls.iter().filter_map(|(name, arguments)| Some((number_of(name)?, *arguments)));
    numbered.into_iter().all(|(number, arguments)| {
        let action =
            answer(program, ARCHITECTURE, number, arguments).map(|answer| answer & libc::SECCOMP_RET_ACTION_FULL);
        matches!(action, Some(libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG))
    })
}

/// What the kernel would answer: an interpreter of classic BPF over one `struct seccomp_data`. `None` for a program that the
/// kernel would not take, or that has instructions which none of ours has.
pub(super) fn answer(program: &[Instruction], arch: u32, number: u32, arguments: [u64; 6]) -> Option<u32> {
    let mut data = vec![number, arch, 0, 0];
    data.extend(arguments.iter().flat_map(|a| [*a as u32, (*a >> 32) as u32]));
    let (mut pc, mut a) = (0usize, 0u32);
    // Jumps lead forward only: it ends.
    loop {
        let at = program.get(pc)?;
        pc += 1;
        let mut test = |taken: bool| pc += usize::from(if taken { at.jt } else { at.jf });
        match at.code {
            0x20 => a = *data.get(at.k as usize / 4)?,
            0x05 => pc = pc.checked_add(at.k as usize)?,
            0x15 => test(a == at.k),
            0x25 => test(a > at.k),
            0x35 => test(a >= at.k),
            0x45 => test(a & at.k != 0),
            0x54 => a &= at.k,
            0x06 => return Some(at.k),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::profile;
    use super::*;

    #[test]
    fn a_call_is_let_through_if_its_own_arguments_are() {
        let json = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["write"], "action": "SCMP_ACT_LOG"},
            {"names": ["prctl"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}
        ]}"#;
        let program: Vec<_> = profile::compile(json, &[], (6, 1)).unwrap().into_iter().map(profile::unpack).collect();
        let lets = |calls: &[Call]| lets_through(&program, calls);
        assert!(lets(&[("read", [0; 6]), ("write", [0; 6]), ("prctl", [1, 9, 0, 0, 0, 0])]));
        assert!(lets(&[("no such call", [0; 6])]));
        assert!(!lets(&[("prctl", [2, 9, 0, 0, 0, 0])]));
        assert!(!lets(&[("read", [0; 6]), ("clone", [0; 6])]));
        assert!(!lets_through(&[], &[("read", [0; 6])]));
    }
}
