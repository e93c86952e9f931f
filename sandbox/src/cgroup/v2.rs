//! Pure cgroup v2.

use std::io;
use std::os::fd::BorrowedFd;

use super::devices::DeviceRule;
use super::driver::{Controller, Dirs, Driver, Enforcement};
use super::loaded_program::DeviceProgram;
use super::plan::{self, Step};
use super::{CgroupError, files};
use crate::contract::Usage;
use crate::spec::Resources;

/// Hosts with the unified hierarchy only.
#[derive(Debug)]
pub struct V2;

impl Driver for V2 {
    fn apply(&self, dirs: &Dirs, resources: &Resources, fresh: bool) -> Result<(), CgroupError> {
        for step in plan::v2(resources, fresh)? {
            if let Step::Set { controller, file, value, optional } = step {
                if dirs.containers.is_some() && ["memory.min", "memory.low"].contains(&&*file) {
                    // What a group is not granted, none in it has.
                    protect(dirs, &file, &value)?;
                }
                write_setting(dirs, controller, &file, &value, optional, fresh)?;
            }
        }
        Ok(())
    }

    fn allow_devices(&self, dirs: &Dirs, rules: &[DeviceRule]) -> Result<Enforcement, CgroupError> {
        device_program(unified(dirs)?, rules)
    }

    fn kill_whole(&self, dirs: &Dirs) -> Result<(), CgroupError> {
        let Some(dir) = dirs.of(Controller::Memory) else { return Ok(()) };
        files::write(dir, "memory.oom.group", "1")
    }

    fn attach(&self, dirs: &Dirs, pid: u32) -> Result<(), CgroupError> {
        files::write(unified(dirs)?, "cgroup.procs", &pid.to_string())
    }

    fn kill(&self, dirs: &Dirs) -> Result<(), CgroupError> {
        files::write(unified(dirs)?, "cgroup.kill", "1")
    }

    fn set_frozen(&self, dirs: &Dirs, frozen: bool) -> Result<(), CgroupError> {
        files::write(unified(dirs)?, "cgroup.freeze", if frozen { "1" } else { "0" })
    }

    fn usage(&self, dirs: &Dirs) -> Result<Usage, CgroupError> {
        let mut usage = Usage { cpu_ns: cpu_ns(unified(dirs)?)?, ..Usage::default() };
        if let Some(dir) = dirs.of(Controller::Memory) {
            usage.memory_bytes = files::read_number(dir, "memory.current")?;
            let inactive = files::read_keyed(dir, "memory.stat", "inactive_file")?.unwrap_or(0);
            usage.memory_working_set_bytes = usage.memory_bytes.saturating_sub(inactive);
        }
        if let Some(dir) = dirs.of(Controller::Pids) {
            usage.pids = files::read_number(dir, "pids.current")?;
        }
        Ok(usage)
    }

    fn oom_kills(&self, dirs: &Dirs) -> Result<u64, CgroupError> {
        let Some(dir) = dirs.of(Controller::Memory) else { return Ok(0) };
        Ok(files::read_keyed(dir, "memory.events", "oom_kill")?.unwrap_or(0))
    }
}

/// Writes a protection of a pod's memory to its own group; a kernel without the file protects nothing.
fn protect(dirs: &Dirs, file: &str, value: &str) -> Result<(), CgroupError> {
    if dirs.of(Controller::Memory).is_none() {
        return Ok(());
    }
    match files::write(unified(dirs)?, file, value) {
        Err(CgroupError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn unified(dirs: &Dirs) -> Result<BorrowedFd<'_>, CgroupError> {
    dirs.unified().ok_or_else(|| CgroupError::NotFound { name: "unified".to_owned() })
}

/// Puts an eBPF program in charge of a cgroup's devices. A kernel without such programs enforces nothing; any other failure
/// is one.
pub(super) fn device_program(dir: BorrowedFd<'_>, rules: &[DeviceRule]) -> Result<Enforcement, CgroupError> {
    match DeviceProgram::load(rules)? {
        Some(program) => program.put(dir).map(|()| Enforcement::Kernel),
        None => Ok(Enforcement::None),
    }
}

/// CPU time in nanoseconds from `cpu.stat`, which the unified hierarchy has with or without the cpu controller.
pub(super) fn cpu_ns(dir: BorrowedFd<'_>) -> Result<u64, CgroupError> {
    Ok(files::read_keyed(dir, "cpu.stat", "usage_usec")?.unwrap_or(0).saturating_mul(1_000))
}

/// Writes one setting. A missing controller fails for a limit and is passed over for the reset of one; `optional`
/// files may be absent.
pub(super) fn write_setting(
    dirs: &Dirs,
    controller: Controller,
    file: &str,
    value: &str,
    optional: bool,
    fresh: bool,
) -> Result<(), CgroupError> {
    let resets = !fresh && matches!(value.split(' ').next(), Some("max" | "-1"));
    let Some(dir) = dirs.of(controller) else {
        if resets || optional || file == "cpu.shares" || file == "cpu.weight" {
            // A weight is a preference among neighbours, not a limit.
            return Ok(());
        }
        return Err(CgroupError::ControllerMissing { controller });
    };
    match files::write(dir, file, value) {
        Err(CgroupError::Write { source, .. }) if optional && source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
