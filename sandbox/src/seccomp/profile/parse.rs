//! From JSON to the rules that apply here.

use serde::Deserialize;

use super::ProfileError;
use super::conditions::{Argument, Operator};

/// This architecture as profiles name it.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [&str; 2] = ["amd64", "SCMP_ARCH_X86_64"];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [&str; 2] = ["arm64", "SCMP_ARCH_AARCH64"];

/// Flags that change nothing here: what is logged, how threads are met (there is one), and a mitigation that stays on.
const FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

/// A profile, as far as it applies.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Profile {
    /// What becomes of a call that no rule names.
    pub(super) default: u32,
    pub(super) rules: Vec<Rule>,
}

impl Profile {
    /// Calls that it does not name happen.
    pub(super) fn lets_through(&self) -> bool {
        [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_LOG].contains(&self.default)
            || self.default & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_TRACE
    }
}

/// What becomes of some calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) names: Vec<String>,
    /// The filter's return value.
    pub(super) action: u32,
    /// All must hold; none: always.
    pub(super) arguments: Vec<Argument>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    listener_path: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    /// The oldest form: one name.
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Condition>>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Filter {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

pub(super) fn profile(json: &str, capabilities: &[String], kernel: (u32, u32)) -> Result<Profile, ProfileError> {
    let document: Document = serde_json::from_str(json).map_err(ProfileError::Json)?;
    if let Some(flag) = document.flags.iter().flatten().find(|flag| !FLAGS.contains(&flag.as_str())) {
        return Err(ProfileError::Flag { flag: flag.clone() });
    }
    if document.listener_path.is_some_and(|path| !path.is_empty()) {
        return Err(ProfileError::Action { action: "SCMP_ACT_NOTIFY".to_owned() });
    }
    let default = action(&document.default_action, document.default_errno_ret)?;
    let mut rules = Vec::new();
    for entry in document.syscalls.unwrap_or_default() {
        let action = action(&entry.action, entry.errno_ret)?;
        let arguments = arguments(entry.args.as_deref().unwrap_or_default())?;
        let here = Here { capabilities, kernel };
        if !entry.includes.is_none_or(|filter| here.has_all(&filter))
            || entry.excludes.is_some_and(|filter| here.has_any(&filter))
        {
            continue;
        }
        let names: Vec<String> = entry.names.unwrap_or_default().into_iter().chain(entry.name).collect();
        for arguments in alternatives(arguments) {
            rules.push(Rule { names: names.clone(), action, arguments });
        }
    }
    Ok(Profile { default, rules })
}

/// What a rule may depend on.
struct Here<'a> {
    capabilities: &'a [String],
    kernel: (u32, u32),
}

impl Here<'_> {
    fn has_capability(&self, name: &str) -> bool {
        self.capabilities.iter().any(|held| held == name)
    }

    fn is_kernel(&self, least: &str) -> bool {
        let mut numbers = least.split('.').map(|number| number.parse::<u32>().unwrap_or(u32::MAX));
        self.kernel >= (numbers.next().unwrap_or(u32::MAX), numbers.next().unwrap_or(0))
    }

    fn has_all(&self, filter: &Filter) -> bool {
        filter.caps.iter().flatten().all(|name| self.has_capability(name))
            && filter
                .arches
                .as_ref()
                .is_none_or(|list| list.is_empty() || list.iter().any(|name| is_architecture(name)))
            && filter.min_kernel.as_deref().is_none_or(|least| self.is_kernel(least))
    }

    fn has_any(&self, filter: &Filter) -> bool {
        filter.caps.iter().flatten().any(|name| self.has_capability(name))
            || filter.arches.iter().flatten().any(|name| is_architecture(name))
            || filter.min_kernel.as_deref().is_some_and(|least| self.is_kernel(least))
    }
}

fn is_architecture(name: &str) -> bool {
    ARCHITECTURES.contains(&name)
}

fn action(name: &str, errno: Option<u32>) -> Result<u32, ProfileError> {
    let data = errno.unwrap_or(libc::EPERM.unsigned_abs()) & libc::SECCOMP_RET_DATA;
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => libc::SECCOMP_RET_KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => libc::SECCOMP_RET_KILL_PROCESS,
        "SCMP_ACT_TRAP" => libc::SECCOMP_RET_TRAP,
        "SCMP_ACT_ERRNO" => libc::SECCOMP_RET_ERRNO | data,
        "SCMP_ACT_TRACE" => libc::SECCOMP_RET_TRACE | data,
        "SCMP_ACT_LOG" => libc::SECCOMP_RET_LOG,
        "SCMP_ACT_ALLOW" => libc::SECCOMP_RET_ALLOW,
        other => return Err(ProfileError::Action { action: other.to_owned() }),
    })
}

fn arguments(conditions: &[Condition]) -> Result<Vec<Argument>, ProfileError> {
    let one = |condition: &Condition| {
        if condition.index > 5 {
            return Err(ProfileError::Argument { index: condition.index });
        }
        let operator = match condition.op.as_str() {
            "SCMP_CMP_NE" => Operator::Not,
            "SCMP_CMP_LT" => Operator::Less,
            "SCMP_CMP_LE" => Operator::AtMost,
            "SCMP_CMP_EQ" => Operator::Masked { mask: u64::MAX },
            "SCMP_CMP_GE" => Operator::AtLeast,
            "SCMP_CMP_GT" => Operator::More,
            "SCMP_CMP_MASKED_EQ" => Operator::Masked { mask: condition.value },
            other => return Err(ProfileError::Operator { operator: other.to_owned() }),
        };
        let value = if condition.op == "SCMP_CMP_MASKED_EQ" { condition.value_two } else { condition.value };
        Ok(Argument { index: condition.index, operator, value })
    };
    conditions.iter().map(one).collect()
}

/// Several conditions on one argument: each alone.
fn alternatives(arguments: Vec<Argument>) -> Vec<Vec<Argument>> {
    let twice = arguments.iter().any(|one| arguments.iter().filter(|other| other.index == one.index).count() > 1);
    if twice { arguments.into_iter().map(|one| vec![one]).collect() } else { vec![arguments] }
}
