//! From the host's root to the container's user.
//!
//! The order matters:
//! 1. into the user namespace: every capability there, none on the host any more;
//! 2. bounding set, groups, gid, uid (capabilities kept over the change);
//! 3. the seccomp filter: without `no_new_privs` it needs CAP_SYS_ADMIN of the namespace, so it comes before
//! 4. the final capability sets: permitted and effective as asked for uid 0 and none for others, inheritable and ambient
//!    empty (CVE-2022-24769).

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Gid, Resource, Rlimit, Uid, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, capabilities, clear_ambient_capability_set,
    move_into_link_name_space, remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::report::Step;
use crate::protocol::Refusal;
use crate::spec::{Security, User};
use crate::sys::filter::{Instruction, install};

/// Soft limit of open files; the hard one stays as it is.
const OPEN_FILES: u64 = 1024;

/// The capabilities that `names` (`CAP_CHOWN` …) are.
pub(crate) fn capability_set(names: &[String]) -> Result<CapabilitySet, Refusal> {
    names.iter().try_fold(CapabilitySet::empty(), |set, name| {
        let found = name.strip_prefix("CAP_").and_then(CapabilitySet::from_name);
        let found = found.ok_or_else(|| Refusal::Invalid { message: format!("unknown capability {name}") })?;
        Ok(set | found)
    })
}

/// Limits that every container has.
pub(crate) fn limit_resources() -> Result<(), Refusal> {
    let hard = getrlimit(Resource::Nofile).maximum;
    let soft = hard.map_or(OPEN_FILES, |hard| hard.min(OPEN_FILES));
    setrlimit(Resource::Nofile, Rlimit { current: Some(soft), maximum: hard }).step("limit of open files")?;
    // Not 0, which a host's program for core files is run in spite of (see `seccomp::core_limit`).
    setrlimit(Resource::Core, Rlimit { current: Some(1), maximum: Some(1) }).step("limit of core files")
}

/// Becomes root of the user namespace: no power over the host from here on. Without one the host's root goes on, until
/// [`assume`] and [`confine`] take from it what the container is not to have.
pub(crate) fn enter_user_namespace(user: Option<&OwnedFd>) -> Result<(), Refusal> {
    if let Some(user) = user {
        move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User)).step("entering the user namespace")?;
    }
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).step("becoming group 0 of the sandbox")?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).step("becoming root of the sandbox")
}

/// Becomes `user`, with nothing left to gain by `execve`; what of `security`'s capabilities there is to have.
pub(crate) fn assume(user: &User, security: &Security) -> Result<CapabilitySet, Refusal> {
    let held = capabilities(None).step("reading of capabilities")?.permitted;
    // What this host's root itself has not cannot be given.
    let wanted = capability_set(&security.capabilities)? & held;
    drop_bounding(wanted)?;
    clear_ambient_capability_set().step("emptying of the ambient capabilities")?;
    let groups: Vec<Gid> = user.additional_gids.iter().copied().map(Gid::from_raw).collect();
    set_thread_groups(&groups).step("setgroups")?;
    set_keep_capabilities(true).step("keeping of capabilities")?;
    let gid = Gid::from_raw(user.gid);
    set_thread_res_gid(gid, gid, gid).step(format!("setgid {}", user.gid))?;
    let uid = Uid::from_raw(user.uid);
    set_thread_res_uid(uid, uid, uid).step(format!("setuid {}", user.uid))?;
    set_keep_capabilities(false).step("keeping of capabilities")?;
    Ok(wanted)
}

/// Installs the filter and gives up what the container is not to have. `wanted` comes from [`assume`].
pub(crate) fn confine(
    user: &User,
    security: &Security,
    wanted: CapabilitySet,
    filter: Option<&[Instruction]>,
) -> Result<(), Refusal> {
    if security.no_new_privileges {
        set_no_new_privs(true).step("no_new_privs")?;
    } else if filter.is_some() {
        // The change of uid emptied the effective set; what is permitted may be taken up again.
        let admin = CapabilitySet::SYS_ADMIN | wanted;
        apply(CapabilitySets { effective: admin, permitted: admin, inheritable: CapabilitySet::empty() })?;
    }
    if let Some(program) = filter {
        install(program).step("seccomp filter")?;
    }
    let kept = if user.uid == 0 { wanted } else { CapabilitySet::empty() };
    apply(CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
}

/// Gives up what [`confine`] will not need, where it comes later. `wanted` comes from [`assume`].
pub(crate) fn reduce(security: &Security, wanted: CapabilitySet) -> Result<(), Refusal> {
    let needed = if security.no_new_privileges { wanted } else { wanted | CapabilitySet::SYS_ADMIN };
    apply(CapabilitySets { effective: needed, permitted: needed, inheritable: CapabilitySet::empty() })
}

fn apply(sets: CapabilitySets) -> Result<(), Refusal> {
    set_capabilities(None, sets).step("setting of capabilities")
}

fn drop_bounding(wanted: CapabilitySet) -> Result<(), Refusal> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if wanted.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The first number that the kernel does not know.
            Err(rustix::io::Errno::INVAL) => break,
            other => other.step("bounding set")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_known_by_their_full_names_only() {
        let set = capability_set(&["CAP_CHOWN".into(), "CAP_NET_BIND_SERVICE".into()]).unwrap();
        assert_eq!(set, CapabilitySet::CHOWN | CapabilitySet::NET_BIND_SERVICE);
        assert!(capability_set(&["CHOWN".into()]).is_err());
        assert!(capability_set(&["CAP_EVERYTHING".into()]).is_err());
    }

    #[test]
    fn every_default_capability_is_known() {
        assert_eq!(capability_set(&Security::default().capabilities).unwrap().bits().count_ones(), 9);
    }
}
