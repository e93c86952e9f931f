//! What a compiled profile answers, by an interpreter of the kernel's machine and by a judge that reads the rules one by one.

use proptest::prelude::*;
use serde_json::json;

use super::conditions::{Argument, Operator};
use super::parse::Profile;
use super::*;
use crate::seccomp::assemble::ARCHITECTURE;
use crate::seccomp::numbers;
use crate::seccomp::tests::run;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | 1;

fn errno(number: u32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number
}

fn compiled(json: &serde_json::Value, capabilities: &[&str]) -> Result<Vec<Instruction>, ProfileError> {
    let capabilities: Vec<String> = capabilities.iter().map(|name| (*name).to_owned()).collect();
    let numbers = compile(&json.to_string(), &capabilities, (6, 1))?;
    Ok(numbers.into_iter().map(unpack).collect())
}

fn ask(program: &[Instruction], call: &str, arguments: [u64; 6]) -> u32 {
    run(program, ARCHITECTURE, number_of(call).unwrap(), arguments)
}

#[test]
fn the_first_rule_that_matches_answers_and_the_default_otherwise() {
    let program = compiled(
        &json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
                {"names": ["read", "write", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
                {"name": "mkdir", "action": "SCMP_ACT_ERRNO"},
                {"names": ["rmdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 17},
                {"names": ["ptrace"], "action": "SCMP_ACT_KILL_PROCESS"},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
                {"names": ["personality"], "action": "SCMP_ACT_TRAP", "args": [{"index": 0, "value": 9, "op": "SCMP_CMP_LE"}]},
                {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [
                    {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
                {"names": ["kill"], "action": "SCMP_ACT_KILL_PROCESS", "args": [{"index": 1, "value": 9, "op": "SCMP_CMP_EQ"}]},
                {"names": ["kill"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]
        }),
        &[],
    )
    .unwrap();
    let none = [0; 6];
    let with = |value| [value, 0, 0, 0, 0, 0];
    for (call, arguments, answer) in [
        ("read", none, ALLOW),
        ("write", none, ALLOW),
        ("mkdir", none, EPERM),
        ("rmdir", none, errno(17)),
        ("ptrace", none, KILL),
        ("personality", with(8), ALLOW),
        ("personality", with(9), libc::SECCOMP_RET_TRAP),
        ("personality", with(10), errno(38)),
        // The upper half counts.
        ("personality", with(8 | 1 << 32), errno(38)),
        ("socket", with(1), ALLOW),
        ("socket", with(2), ALLOW),
        ("socket", with(3), errno(38)),
        // A rule without conditions decides.
        ("kill", [1, 9, 0, 0, 0, 0], ALLOW),
        ("getpid", none, errno(38)),
        ("openat", none, errno(38)),
    ] {
        assert_eq!(ask(&program, call, arguments), answer, "{call} {arguments:?}");
    }
    assert_eq!(run(&program, 0x4000_0003, 3, none), KILL, "32-bit entry");
    assert_eq!(run(&program, ARCHITECTURE, ABSENT_X32, none), errno(38));
    assert_eq!(run(&program, ARCHITECTURE, u32::MAX, none), errno(38));
}

#[test]
fn what_a_rule_depends_on_decides_whether_it_is_there() {
    let rules = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["unshare"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["setns"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["umount2"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.1"}},
            {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
            {"names": ["pivot_root"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["s390x"]}, "includes": {}}]
    });
    let answers = |capabilities: &[&str]| {
        let program = compiled(&rules, capabilities).unwrap();
        ["mount", "unshare", "setns", "umount2", "chroot", "pivot_root"]
            .map(|call| ask(&program, call, [0; 6]) == ALLOW)
    };
    assert_eq!(answers(&[]), [false, true, true, false, false, true]);
    assert_eq!(answers(&["CAP_SYS_ADMIN"]), [true, false, true, false, false, true]);
}

#[test]
fn calls_younger_than_the_profile_are_absent_unless_it_lets_calls_through() {
    let young = number_of("file_setattr").unwrap() + 1000;
    let named = json!([{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]);
    let strict = compiled(&json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": named}), &[]).unwrap();
    assert_eq!(run(&strict, ARCHITECTURE, young, [0; 6]), errno(38));
    let denied = json!([{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]);
    let open = compiled(&json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": denied}), &[]).unwrap();
    assert_eq!(run(&open, ARCHITECTURE, young, [0; 6]), ALLOW);
    assert_eq!((ask(&open, "mkdir", [0; 6]), ask(&open, "rmdir", [0; 6])), (EPERM, ALLOW));
    // Not by another entry, all the same.
    assert_eq!(run(&open, ARCHITECTURE, ABSENT_X32 + 83, [0; 6]), errno(38));
    let nothing = compiled(&json!({"defaultAction": "SCMP_ACT_LOG"}), &[]).unwrap();
    assert_eq!(ask(&nothing, "read", [0; 6]), libc::SECCOMP_RET_LOG);
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let rule = |rule: serde_json::Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    for (profile, word) in [
        (json!({"defaultAction": "SCMP_ACT_MAYBE"}), "SCMP_ACT_MAYBE"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}), "NEW_LISTENER"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x"}), "SCMP_ACT_NOTIFY"),
        (rule(json!({"names": ["read"], "action": "SCMP_ACT_NOTIFY"})), "SCMP_ACT_NOTIFY"),
        (
            rule(
                json!({"names": ["read"], "action": "SCMP_ACT_TRAP", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_X"}]}),
            ),
            "SCMP_CMP_X",
        ),
        (
            rule(
                json!({"names": ["read"], "action": "SCMP_ACT_TRAP", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}),
            ),
            "argument 6",
        ),
        (json!({"syscalls": []}), "decoding"),
    ] {
        let error = compiled(&profile, &[]).unwrap_err().to_string();
        assert!(error.contains(word), "{profile}: {error}");
    }
    let arguments = |value: u64| json!([{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]);
    let many: Vec<_> =
        (0..2000).map(|n| json!({"names": ["read"], "action": "SCMP_ACT_TRAP", "args": arguments(n)})).collect();
    let long = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": many});
    assert!(matches!(compiled(&long, &[]), Err(ProfileError::Long { .. })));
}

/// The rules read one by one.
fn judge(profile: &Profile, name: &str, arguments: [u64; 6]) -> u32 {
    let holds = |argument: &Argument| {
        let actual = arguments[argument.index as usize];
        match argument.operator {
            Operator::Not => actual != argument.value,
            Operator::Less => actual < argument.value,
            Operator::AtMost => actual <= argument.value,
            Operator::AtLeast => actual >= argument.value,
            Operator::More => actual > argument.value,
            Operator::Masked { mask } => actual & mask == argument.value,
        }
    };
    let about = || profile.rules.iter().filter(|r| r.action != profile.default && r.names.iter().any(|n| n == name));
    let decides = about().find(|rule| rule.arguments.is_empty());
    let found = decides.or_else(|| about().find(|rule| rule.arguments.iter().all(holds)));
    found.map_or(profile.default, |rule| rule.action)
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..4, Just(u64::MAX), Just(1 << 32), Just((1 << 32) + 1), Just(u64::from(u32::MAX)), any::<u64>()]
}

fn rule() -> impl Strategy<Value = Rule> {
    let operator = prop_oneof![
        Just(Operator::Not),
        Just(Operator::Less),
        Just(Operator::AtMost),
        Just(Operator::AtLeast),
        Just(Operator::More),
        Just(Operator::Masked { mask: u64::MAX }),
        value().prop_map(|mask| Operator::Masked { mask }),
    ];
    let argument =
        (0_u32..6, operator, value()).prop_map(|(index, operator, value)| Argument { index, operator, value });
    let names = prop::collection::vec(prop::sample::select(vec!["read", "openat", "clone", "socket", "bpf"]), 1..3);
    let action = prop::sample::select(vec![ALLOW, EPERM, KILL, errno(5)]);
    (names, action, prop::collection::vec(argument, 0..4)).prop_map(|(names, action, arguments)| Rule {
        names: names.into_iter().map(str::to_owned).collect(),
        action,
        arguments,
    })
}

proptest! {
    #[test]
    fn the_program_answers_as_the_rules_read_one_by_one(
        rules in prop::collection::vec(rule(), 0..12),
        default in prop::sample::select(vec![ALLOW, EPERM]),
        asked in prop::collection::vec(([value(), value(), value(), value(), value(), value()], 0_usize..6), 1..20),
    ) {
        let profile = Profile { default, rules };
        let compiled: Vec<Instruction> = program(&profile).iter().map(pack).map(unpack).collect();
        let highest = profile.rules.iter().filter(|r| r.action != default).flat_map(|r| &r.names).filter_map(|n| number_of(n)).max();
        for (arguments, call) in asked {
            let call = ["read", "openat", "clone", "socket", "bpf", "mkdir"][call];
            let young = !profile.lets_through() && highest.is_some_and(|highest| number_of(call).unwrap() > highest);
            let expected = if young { errno(38) } else { judge(&profile, call, arguments) };
            prop_assert_eq!(ask(&compiled, call, arguments), expected, "{}", call);
        }
    }
}

/// Every call with a condition of its own: far jumps.
#[test]
fn a_profile_of_every_call_is_searched_right() {
    let names: Vec<&str> =
        numbers::SYSCALLS.iter().map(|entry| entry.0).filter(|name| number_of(name).is_some()).collect();
    let rules: Vec<_> = names
        .iter()
        .map(|name| json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [{"index": 2, "value": 7, "op": "SCMP_CMP_EQ"}]}))
        .collect();
    let program = compiled(&json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}), &[]).unwrap();
    for name in names {
        assert_eq!(ask(&program, name, [0, 0, 7, 0, 0, 0]), ALLOW, "{name}");
        assert_eq!(ask(&program, name, [7, 0, 0, 0, 0, 0]), EPERM, "{name}");
    }
}
