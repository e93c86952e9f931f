//! From the agent's configuration to that of its parts.

use sandbox::namespace::Config as SandboxConfig;

use super::blocking;
use super::error::RunError;
use crate::config::Config;
use crate::cpus::Cpus;
use crate::devices::Policy;
use crate::host::admission::Room;
use crate::host::facts::{self, Facts};
use crate::host::huge_pages;
use crate::meter::MeterConfig;
use crate::network::NetworkConfig;
use crate::pod::spec::resources::Amounts;
use crate::trust::Trust;

/// Where the kernel tells of its CPUs.
const CPUS: &str = "/sys/devices/system/cpu";

/// What the operator lets the host give out, read before anything is opened.
pub(super) struct Given {
    pub(super) devices: Policy,
    pub(super) cpus: Option<Cpus>,
}

impl Given {
    pub(super) async fn read(config: &Config) -> Result<Self, RunError> {
        let devices = match config.device_policy.clone() {
            Some(path) => blocking(move || Policy::load(&path)).await?.map_err(RunError::Devices)?,
            None => Policy::default(),
        };
        let cpus = match config.reserved_cpus.clone() {
            Some(reserved) => {
                let read = move || Cpus::read(std::path::Path::new(CPUS), reserved);
                Some(blocking(read).await?.map_err(RunError::Cpus)?)
            }
            None => None,
        };
        Ok(Self { devices, cpus })
    }
}

pub(super) fn trust(config: &Config, devices: Policy) -> Trust {
    Trust {
        allowed: config.allow.clone(),
        unsafe_sysctls: config.unsafe_sysctls.clone(),
        seccomp_profiles: config.seccomp_profiles.clone(),
        apparmor: crate::host::kernel::enforces_apparmor(),
        apparmor_default: config.apparmor_default.clone(),
        devices,
    }
}

pub(crate) fn network_config(config: &Config) -> NetworkConfig {
    NetworkConfig {
        state_dir: config.state_dir.join("network"),
        data_plane: config.data_plane.clone(),
        cidr: config.pod_cidr,
        bridge: config.bridge.clone(),
    }
}

/// Below the state directory, on the disk that the pods' own directories are on.
pub(crate) const AHEAD: &str = "ahead";

pub(crate) fn sandbox_config(config: &Config) -> SandboxConfig {
    SandboxConfig {
        run_dir: config.run_dir.clone(),
        shim_program: config.shim.clone(),
        cgroup_parent: config.cgroup_parent.clone(),
        layer_dirs: vec![config.state_dir.join("images")],
        pool_size: config.pool_size,
        ahead_dir: Some(config.state_dir.join(AHEAD)),
        limit_writable: config.limit_roots,
    }
}

pub(crate) fn meter_config(config: &Config, host_id: &str) -> MeterConfig {
    MeterConfig::new(config.state_dir.join("spool"), host_id.to_owned())
}

pub(super) fn room(config: &Config, given: &Given, facts: &Facts) -> Room {
    let disk = facts::disk(&config.state_dir).map_or(0, |(_, all)| all);
    let set_aside = huge_pages::set_aside(&facts.huge_pages);
    Room {
        amounts: Amounts {
            milli_cpu: match given.cpus.as_ref().map(|cpus| cpus.count() as u64 * 1000) {
                Some(most) => config.capacity_milli_cpu.map_or(most, |wanted| wanted.min(most)),
                None => config.capacity_milli_cpu.unwrap_or(facts.cpus * 1000),
            },
            memory: config.capacity_memory.unwrap_or(facts.memory.saturating_sub(set_aside)),
            ephemeral: disk,
        },
        set_aside,
        scalars: huge_pages::capacity(&facts.huge_pages).into_iter().chain(given.devices.capacity()).collect(),
        pods: config.max_pods,
    }
}
