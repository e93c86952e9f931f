//! What a host's operator lets pods have beyond what holds them apart. Nothing, by default.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::devices::Policy;
use crate::pod::spec::sysctls;

/// Something that a pod may ask for and a host gives only when its operator says so (`--allow`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Allow {
    /// `hostUsers: true`: no user namespace.
    HostUsers,
    /// `hostNetwork` (and with it no user namespace, and `hostPort`).
    HostNetwork,
    /// `hostPID` (and with it no user namespace).
    HostPid,
    /// `hostIPC` (and with it no user namespace).
    HostIpc,
    /// `privileged` containers.
    Privileged,
    /// Capabilities beyond what Pod Security *baseline* allows.
    Capabilities,
    /// `seccompProfile.type: Unconfined`.
    SeccompUnconfined,
    /// `appArmorProfile.type: Unconfined`, where the host has AppArmor.
    ApparmorUnconfined,
}

impl Allow {
    /// As the flag names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::HostUsers => "host-users",
            Self::HostNetwork => "host-network",
            Self::HostPid => "host-pid",
            Self::HostIpc => "host-ipc",
            Self::Privileged => "privileged",
            Self::Capabilities => "capabilities",
            Self::SeccompUnconfined => "seccomp-unconfined",
            Self::ApparmorUnconfined => "apparmor-unconfined",
        }
    }
}

/// How far a host trusts pods, and what it has to enforce it with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// What pods may have.
    pub allowed: BTreeSet<Allow>,
    /// Sysctls beyond the safe ones: names, or prefixes that end in `*`.
    pub unsafe_sysctls: Vec<String>,
    /// Below it lie the profiles that `localhostProfile` names.
    pub seccomp_profiles: PathBuf,
    /// The kernel enforces AppArmor.
    pub apparmor: bool,
    /// The AppArmor profile that `RuntimeDefault` means, which the operator has loaded.
    pub apparmor_default: Option<String>,
    /// Devices that pods may ask for by name.
    pub devices: Policy,
}

impl Trust {
    /// Whether pods may have it.
    pub fn allows(&self, what: Allow) -> bool {
        self.allowed.contains(&what)
    }

    /// Whether pods may set this sysctl.
    pub fn allows_sysctl(&self, name: &str) -> bool {
        sysctls::is_safe(name) || self.unsafe_sysctls.iter().any(|pattern| sysctls::matches(pattern, name))
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn each_is_named_as_its_flag_and_its_key() {
        for allow in Allow::value_variants() {
            assert_eq!(allow.to_possible_value().unwrap().get_name(), allow.name());
            let json = serde_json::Value::from(allow.name());
            assert_eq!(serde_json::from_value::<Allow>(json).unwrap(), *allow);
        }
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        let trust = Trust::default();
        assert!(!Allow::value_variants().iter().any(|allow| trust.allows(*allow)));
        assert!(trust.allows_sysctl("net.ipv4.tcp_syncookies") && !trust.allows_sysctl("net.core.somaxconn"));
        let wider = Trust { unsafe_sysctls: vec!["net.core.*".into(), "kernel.msgmax".into()], ..trust };
        assert!(wider.allows_sysctl("net.core.somaxconn") && wider.allows_sysctl("kernel.msgmax"));
        assert!(!wider.allows_sysctl("kernel.msgmnb") && !wider.allows_sysctl("net.corex"));
    }
}
