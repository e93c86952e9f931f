//! cgroup v1, alone or with the unified mount beside it (hybrid).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::process::{Pid, Signal, kill_process};

use super::devices::{DeviceRule, merged};
use super::driver::{Controller, Dirs, Driver, Enforcement};
use super::plan::{self, Step};
use super::{CgroupError, files, v2};
use crate::contract::Usage;
use crate::spec::Resources;

/// v1 and hybrid hosts.
#[derive(Debug)]
pub struct V1;

/// Rounds of reading and killing before a fork bomb is given up on (only without a unified mount).
const KILL_ROUNDS: u32 = 100;

impl Driver for V1 {
    fn apply(&self, dirs: &Dirs, resources: &Resources, fresh: bool) -> Result<(), CgroupError> {
        for step in plan::v1(resources, fresh)? {
            match step {
                Step::Set { controller, file, value, optional } => {
                    let file = match controller {
                        Controller::Hugetlb if dirs.is_v1(controller) => file.replace(".max", ".limit_in_bytes"),
                        _ => file.into_owned(),
                    };
                    v2::write_setting(dirs, controller, &file, &value, optional, fresh)?;
                }
                Step::MemoryWithSwap { limit } => match dirs.of(Controller::Memory) {
                    Some(dir) => set_memory(dir, limit)?,
                    None if limit.is_none() => {}
                    None => return Err(CgroupError::ControllerMissing { controller: Controller::Memory }),
                },
            }
        }
        Ok(())
    }

    fn allow_devices(&self, dirs: &Dirs, rules: &[DeviceRule]) -> Result<Enforcement, CgroupError> {
        let Some(dir) = dirs.of(Controller::Devices) else {
            return dirs.unified().map_or(Ok(Enforcement::None), |dir| v2::device_program(dir, rules));
        };
        files::write(dir, "devices.deny", "a")?;
        for rule in merged(rules) {
            files::write(dir, "devices.allow", &rule.to_string())?;
        }
        Ok(Enforcement::Kernel)
    }

    /// v1 kills one process at a time.
    fn kill_whole(&self, _dirs: &Dirs) -> Result<(), CgroupError> {
        Ok(())
    }

    fn attach(&self, dirs: &Dirs, pid: u32) -> Result<(), CgroupError> {
        let pid = pid.to_string();
        dirs.all().try_for_each(|dir| files::write(dir, "cgroup.procs", &pid))
    }

    fn kill(&self, dirs: &Dirs) -> Result<(), CgroupError> {
        match dirs.unified() {
            Some(dir) => files::write(dir, "cgroup.kill", "1"),
            None => kill_loop(dirs),
        }
    }

    fn set_frozen(&self, dirs: &Dirs, frozen: bool) -> Result<(), CgroupError> {
        if let Some(dir) = dirs.unified() {
            return files::write(dir, "cgroup.freeze", if frozen { "1" } else { "0" });
        }
        let dir = dirs.needed(Controller::Freezer)?;
        files::write(dir, "freezer.state", if frozen { "FROZEN" } else { "THAWED" })
    }

    fn usage(&self, dirs: &Dirs) -> Result<Usage, CgroupError> {
        let mut usage = Usage::default();
        if let Some(dir) = dirs.of(Controller::Cpuacct) {
            usage.cpu_ns = files::read_number(dir, "cpuacct.usage")?;
        } else if let Some(dir) = dirs.unified() {
            usage.cpu_ns = v2::cpu_ns(dir)?;
        }
        if let Some(dir) = dirs.of(Controller::Memory) {
            usage.memory_bytes = files::read_number(dir, "memory.usage_in_bytes")?;
            let inactive = files::read_keyed(dir, "memory.stat", "total_inactive_file")?.unwrap_or(0);
            usage.memory_working_set_bytes = usage.memory_bytes.saturating_sub(inactive);
        }
        if let Some(dir) = dirs.of(Controller::Pids) {
            usage.pids = files::read_number(dir, "pids.current")?;
        }
        Ok(usage)
    }

    fn oom_kills(&self, dirs: &Dirs) -> Result<u64, CgroupError> {
        let Some(dir) = dirs.of(Controller::Memory) else { return Ok(0) };
        Ok(files::read_keyed(dir, "memory.oom_control", "oom_kill")?.unwrap_or(0))
    }
}

/// Sets both limits in the order that keeps memory <= memory and swap at each step.
fn set_memory(dir: BorrowedFd<'_>, limit: Option<u64>) -> Result<(), CgroupError> {
    const MEMORY: &str = "memory.limit_in_bytes";
    const MEMORY_AND_SWAP: &str = "memory.memsw.limit_in_bytes";
    let value = limit.map_or_else(|| "-1".to_owned(), |bytes| bytes.to_string());
    if limit.is_none() {
        unless_absent(files::write(dir, MEMORY_AND_SWAP, &value))?;
        return files::write(dir, MEMORY, &value);
    }
    match files::write(dir, MEMORY, &value) {
        // Above the present limit of memory and swap: that one first.
        Err(CgroupError::Write { ref source, .. }) if source.kind() == io::ErrorKind::InvalidInput => {
            files::write(dir, MEMORY_AND_SWAP, &value)?;
            files::write(dir, MEMORY, &value)
        }
        Err(other) => Err(other),
        Ok(()) => match files::write(dir, MEMORY_AND_SWAP, &value) {
            Err(CgroupError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                // No swap accounting: the nearest thing is to never swap this group.
                unless_absent(files::write(dir, "memory.swappiness", "0"))
            }
            other => other,
        },
    }
}

fn unless_absent(result: Result<(), CgroupError>) -> Result<(), CgroupError> {
    match result {
        Err(CgroupError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Without `cgroup.kill`: freeze (so that nothing forks away), signal, thaw, until nothing is left.
fn kill_loop(dirs: &Dirs) -> Result<(), CgroupError> {
    let Some(dir) = dirs.of_shim().next() else { return Ok(()) };
    let freezer = dirs.of(Controller::Freezer);
    for _ in 0..KILL_ROUNDS {
        if let Some(freezer) = freezer {
            files::write(freezer, "freezer.state", "FROZEN")?;
        }
        let pids = members(dir)?;
        let killed = pids.iter().try_for_each(|pid| match kill_process(*pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(CgroupError::Kill { pid: pid.as_raw_nonzero().get(), source: errno.into() }),
        });
        if let Some(freezer) = freezer {
            files::write(freezer, "freezer.state", "THAWED")?;
        }
        killed?;
        // Frozen processes cannot have forked: one round was enough.
        if pids.is_empty() || freezer.is_some() {
            return Ok(());
        }
    }
    Ok(())
}

/// Processes in a cgroup and below it.
pub(super) fn members(dir: BorrowedFd<'_>) -> Result<Vec<Pid>, CgroupError> {
    let mut pids: Vec<Pid> = files::read(dir, "cgroup.procs")?
        .lines()
        .filter_map(|line| line.trim().parse().ok().and_then(Pid::from_raw))
        .collect();
    for child in super::remove::subdirectories(dir)? {
        if let Some(child) = super::remove::open_child(dir, &child)? {
            pids.extend(members(child.as_fd())?);
        }
    }
    Ok(pids)
}
