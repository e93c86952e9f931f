//! The rule list as an eBPF program: pure.
//!
//! The kernel runs a program of type `BPF_PROG_TYPE_CGROUP_DEVICE` whenever a process of the cgroup opens a device or makes
//! its node, and lets it pass when the program returns 1. What it is given (`struct bpf_cgroup_dev_ctx`, by register 1):
//!
//! ```text
//! offset 0   u32  wanted access << 16 | kind (1 block, 2 character)
//! offset 4   u32  major
//! offset 8   u32  minor
//! ```
//!
//! The program loads these once (access r2, kind r3, major r4, minor r5) and then tries one rule after the other; a rule is
//! up to three comparisons that jump to the next rule, and `return 1`. After the last one comes `return 0`.

use super::devices::{Access, DeviceKind, DeviceRule, merged};
use crate::sys::device_filter::Instruction;

/// `dst = src` (32 bits), `dst &= imm`, `dst >>= imm`, `dst = *(u32 *)(src + off)`, `dst = imm`, `if dst != imm goto +off`
/// (32 bits), `exit`.
mod code {
    pub(super) const MOV_REGISTER: u8 = 0xbc;
    pub(super) const MOV: u8 = 0xb4;
    pub(super) const AND: u8 = 0x54;
    pub(super) const SHIFT_RIGHT: u8 = 0x74;
    pub(super) const LOAD: u8 = 0x61;
    /// 64-bit comparison: the registers hold zero-extended numbers, and it is as old as device programs are.
    pub(super) const JUMP_UNLESS_EQUAL: u8 = 0x55;
    pub(super) const EXIT: u8 = 0x95;
}

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const ACCESS: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn two(code: u8, target: u8, source: u8, offset: i16) -> Instruction {
    Instruction { code, registers: source << 4 | target, offset, immediate: 0 }
}

fn one(code: u8, target: u8, immediate: i32) -> Instruction {
    Instruction { code, registers: target, offset: 0, immediate }
}

/// The program for a list of rules: what no rule allows is denied. `None` when a number is none that a device can have
/// (the kernel knows majors of 12 bits and minors of 20).
pub(super) fn assemble(rules: &[DeviceRule]) -> Option<Vec<Instruction>> {
    let mut program = vec![
        two(code::LOAD, ACCESS, CONTEXT, 0),
        two(code::MOV_REGISTER, KIND, ACCESS, 0),
        one(code::AND, KIND, 0xffff),
        one(code::SHIFT_RIGHT, ACCESS, 16),
        two(code::LOAD, MAJOR, CONTEXT, 4),
        two(code::LOAD, MINOR, CONTEXT, 8),
    ];
    for rule in merged(rules) {
        program.extend(block(&rule)?);
    }
    program.extend([one(code::MOV, RESULT, 0), one(code::EXIT, 0, 0)]);
    Some(program)
}

fn block(rule: &DeviceRule) -> Option<Vec<Instruction>> {
    let number = |value: u32, bits: u32| i32::try_from(value).ok().filter(|value| value >> bits == 0);
    let kind = match rule.kind {
        DeviceKind::Block => 1,
        DeviceKind::Char => 2,
    };
    let mut block = vec![one(code::JUMP_UNLESS_EQUAL, KIND, kind)];
    if let Some(major) = rule.major {
        block.push(one(code::JUMP_UNLESS_EQUAL, MAJOR, number(major, 12)?));
    }
    if let Some(minor) = rule.minor {
        block.push(one(code::JUMP_UNLESS_EQUAL, MINOR, number(minor, 20)?));
    }
    if rule.access != Access::ALL {
        block.push(two(code::MOV_REGISTER, RESULT, ACCESS, 0));
        block.push(one(code::AND, RESULT, i32::from(Access::ALL.bits() & !rule.access.bits())));
        block.push(one(code::JUMP_UNLESS_EQUAL, RESULT, 0));
    }
    block.extend([one(code::MOV, RESULT, 1), one(code::EXIT, 0, 0)]);
    let length = block.len();
    for (at, instruction) in block.iter_mut().enumerate() {
        if instruction.code == code::JUMP_UNLESS_EQUAL {
            instruction.offset = i16::try_from(length - at - 1).ok()?;
        }
    }
    Some(block)
}

#[cfg(test)]
mod tests {
    use super::super::devices::{DEFAULT_DEVICES, EVERY_DEVICE};
    use super::*;
    use proptest::prelude::*;

    /// What the kernel would answer: an interpreter of the few instructions that are used. `None` for a program that the
    /// verifier would refuse (an unset register read, a jump outside, an end that is not reached).
    fn run(program: &[Instruction], context: [u32; 3]) -> Option<u64> {
        let mut registers: [Option<u64>; 11] = [None; 11];
        let mut at = 0usize;
        for _ in 0..program.len() + 1 {
            let i = program.get(at)?;
            let (target, source) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            at += 1;
            let low = |value: u64| value & 0xffff_ffff;
            match i.code {
                code::LOAD if source == 1 => registers[target] = Some(u64::from(context[i.offset as usize / 4])),
                code::MOV_REGISTER => registers[target] = Some(low(registers[source]?)),
                code::MOV => registers[target] = Some(low(i.immediate as u64)),
                code::AND => registers[target] = Some(low(registers[target]? & i.immediate as u64)),
                code::SHIFT_RIGHT => registers[target] = Some(low(registers[target]?) >> i.immediate),
                code::JUMP_UNLESS_EQUAL => {
                    if registers[target]? != i64::from(i.immediate) as u64 {
                        at = at.checked_add_signed(i.offset.into())?;
                    }
                }
                code::EXIT => return registers[0],
                _ => return None,
            }
        }
        None
    }

    fn asked(kind: DeviceKind, major: u32, minor: u32, access: Access) -> [u32; 3] {
        let kind = if kind == DeviceKind::Block { 1 } else { 2 };
        [u32::from(access.bits()) << 16 | kind, major, minor]
    }

    #[test]
    fn the_default_list_allows_null_and_terminals_and_neither_disks_nor_making_nodes() {
        let program = assemble(&DEFAULT_DEVICES).unwrap();
        let allowed = |kind, major, minor, access| run(&program, asked(kind, major, minor, access)) == Some(1);
        assert!(allowed(DeviceKind::Char, 1, 3, Access::READ_WRITE));
        assert!(allowed(DeviceKind::Char, 136, 77, Access::WRITE));
        assert!(!allowed(DeviceKind::Char, 1, 3, Access::MKNOD));
        assert!(!allowed(DeviceKind::Char, 1, 1, Access::READ));
        assert!(!allowed(DeviceKind::Block, 1, 3, Access::READ));
        assert!(!allowed(DeviceKind::Block, 8, 0, Access::READ));
    }

    #[test]
    fn nothing_is_allowed_by_no_rule_and_everything_by_every_device() {
        let all = |rules: &[DeviceRule]| {
            let program = assemble(rules).unwrap();
            [DeviceKind::Char, DeviceKind::Block].map(|kind| run(&program, asked(kind, 4095, 0xf_ffff, Access::ALL)))
        };
        assert_eq!(all(&[]), [Some(0); 2]);
        assert_eq!(all(&EVERY_DEVICE), [Some(1); 2]);
    }

    #[test]
    fn numbers_that_no_device_has_are_refused() {
        let rule = |major, minor| DeviceRule { major: Some(major), minor: Some(minor), ..DEFAULT_DEVICES[0] };
        assert!(assemble(&[rule(4095, 0xf_ffff)]).is_some());
        assert!(assemble(&[rule(4096, 0)]).is_none());
        assert!(assemble(&[rule(0, 0x10_0000)]).is_none());
        assert!(assemble(&[rule(0, u32::MAX)]).is_none());
    }

    fn kinds() -> impl Strategy<Value = DeviceKind> {
        prop_oneof![Just(DeviceKind::Char), Just(DeviceKind::Block)]
    }

    fn accesses() -> impl Strategy<Value = Access> {
        proptest::sample::subsequence(vec!['r', 'w', 'm'], 1..=3)
            .prop_map(|letters| Access::parse(&letters.into_iter().collect::<String>()).unwrap())
    }

    fn rules() -> impl Strategy<Value = DeviceRule> {
        (kinds(), proptest::option::of(0u32..4), proptest::option::of(0u32..4), accesses())
            .prop_map(|(kind, major, minor, access)| DeviceRule { kind, major, minor, access })
    }

    proptest! {
        #[test]
        fn the_program_says_what_the_list_says(
            list in proptest::collection::vec(rules(), 0..8),
            kind in kinds(), major in 0u32..5, minor in 0u32..5, access in accesses(),
        ) {
            let expected = merged(&list).iter().any(|rule| rule.allows(kind, major, minor, access));
            let program = assemble(&list).unwrap();
            prop_assert_eq!(run(&program, asked(kind, major, minor, access)), Some(u64::from(expected)));
        }
    }
}
