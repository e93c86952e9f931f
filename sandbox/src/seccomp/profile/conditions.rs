//! Conditions on arguments as instructions. Arguments have 64 bits and the filter's machine 32: each is compared in halves,
//! the upper first.

use super::Rule;
use crate::seccomp::assemble::{self, AND, AT_LEAST, EQUAL, LOAD, MORE, branch, statement};
use crate::sys::filter::Instruction;

/// One condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Argument {
    /// 0 to 5.
    pub(super) index: u32,
    pub(super) operator: Operator,
    pub(super) value: u64,
}

/// How an argument is compared with the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Not,
    Less,
    AtMost,
    AtLeast,
    More,
    /// These bits of it are the value.
    Masked {
        mask: u64,
    },
}

/// Where a comparison leads: on to the next instruction, past the condition (it holds), or to the next rule (it does not).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    Holds,
    Fails,
}

/// An instruction whose jumps are not numbers yet.
enum Step {
    Plain(Instruction),
    Test { code: u16, k: u32, yes: To, no: To },
}

/// The rules in their order, then the default. Every path returns.
pub(super) fn body(rules: &[&Rule], default: u32) -> Vec<Instruction> {
    let mut body = Vec::new();
    for rule in rules {
        let conditions: Vec<Vec<Step>> = rule.arguments.iter().map(condition).collect();
        let mut left: usize = conditions.iter().map(Vec::len).sum();
        for steps in conditions {
            let length = steps.len();
            for (at, step) in steps.into_iter().enumerate() {
                // Behind this instruction: the rest of this condition, the other conditions, the rule's answer.
                let distance = |to: To| match to {
                    To::Next => 0,
                    To::Holds => length - at - 1,
                    To::Fails => left - at - 1 + 1,
                };
                body.push(match step {
                    Step::Plain(instruction) => instruction,
                    // Six conditions of six instructions at most.
                    Step::Test { code, k, yes, no } => branch(code, k, distance(yes) as u8, distance(no) as u8),
                });
            }
            left -= length;
        }
        body.push(assemble::answer(rule.action));
    }
    body.push(assemble::answer(default));
    body
}

fn condition(argument: &Argument) -> Vec<Step> {
    use To::{Fails, Holds, Next};
    let (high, low) = ((argument.value >> 32) as u32, argument.value as u32);
    let place = assemble::FIRST_ARGUMENT + 8 * argument.index;
    let load = |upper: bool| Step::Plain(statement(LOAD, if upper { place + 4 } else { place }));
    let test = |code, k, yes, no| Step::Test { code, k, yes, no };
    match argument.operator {
        Operator::Masked { mask } => {
            let (mask_high, mask_low) = ((mask >> 32) as u32, mask as u32);
            let and = |k| Step::Plain(statement(AND, k));
            vec![
                load(true),
                and(mask_high),
                test(EQUAL, high, Next, Fails),
                load(false),
                and(mask_low),
                test(EQUAL, low, Next, Fails),
            ]
        }
        Operator::Not => {
            vec![load(true), test(EQUAL, high, Next, Holds), load(false), test(EQUAL, low, Fails, Next)]
        }
        // With equal upper halves the lower ones decide.
        Operator::More | Operator::AtLeast => {
            let last = if argument.operator == Operator::More { MORE } else { AT_LEAST };
            vec![
                load(true),
                test(MORE, high, Holds, Next),
                test(EQUAL, high, Next, Fails),
                load(false),
                test(last, low, Next, Fails),
            ]
        }
        Operator::Less | Operator::AtMost => {
            let last = if argument.operator == Operator::AtMost { MORE } else { AT_LEAST };
            vec![
                load(true),
                test(MORE, high, Fails, Next),
                test(EQUAL, high, Next, Holds),
                load(false),
                test(last, low, Fails, Next),
            ]
        }
    }
}
