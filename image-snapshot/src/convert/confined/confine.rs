//! What the converter gives up before it looks at anything: user, paths, most system calls, and boundless growth.

use std::{collections::BTreeMap, io};

use landlock::{ABI, Access as _, AccessFs, Ruleset, RulesetAttr as _};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

const NOBODY: u32 = 65_534;
/// Address space: buffers, a zstd window, the names of a million entries, stacks.
const ADDRESS_SPACE: u64 = 4 << 30;

/// Confines this process, which must have one thread only. Every step that fails ends it: half a cage is none.
pub(super) fn confine() -> io::Result<()> {
    for (resource, limit) in
        [(Resource::As, ADDRESS_SPACE), (Resource::Core, 0), (Resource::Nofile, 400), (Resource::Cpu, 3600)]
    {
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })?;
    }
    if Uid::effective().is_root() {
        setgroups(&[])?;
        setresgid(Gid::from_raw(NOBODY), Gid::from_raw(NOBODY), Gid::from_raw(NOBODY))?;
        setresuid(Uid::from_raw(NOBODY), Uid::from_raw(NOBODY), Uid::from_raw(NOBODY))?;
    }
    rustix::thread::set_no_new_privs(true)?;
    no_paths()?;
    seccompiler::apply_filter(&filter()?).map_err(io::Error::other)
}

/// The largest file that may be written.
pub(super) fn limit_output(bytes: u64) -> io::Result<()> {
    setrlimit(Resource::Fsize, Rlimit { current: Some(bytes), maximum: Some(bytes) })?;
    Ok(())
}

/// No path can be opened. Kernels without Landlock have the system call filter alone, which says the same.
fn no_paths() -> io::Result<()> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V3))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .map(|_| ())
        .map_err(io::Error::other)
}

/// Reading, writing, memory, threads, time; and `prlimit` on itself for [`limit_output`]. All else does not exist (ENOSYS, so that the C
/// library falls back from clone3 to clone, whose flags can be looked at).
fn filter() -> io::Result<BpfProgram> {
    let plain = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_close,
        libc::SYS_fcntl,
        libc::SYS_lseek,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_restart_syscall,
        libc::SYS_prlimit64,
    ];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = plain.into_iter().map(|call| (call, Vec::new())).collect();
    let when = |argument, length, operator, value| -> io::Result<Vec<SeccompRule>> {
        let condition = SeccompCondition::new(argument, length, operator, value).map_err(io::Error::other)?;
        Ok(vec![SeccompRule::new(vec![condition]).map_err(io::Error::other)?])
    };
    let executable = libc::PROT_EXEC as u64;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, when(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(executable), 0)?);
    }
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, when(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), thread)?);
    let name = libc::PR_SET_NAME as u64;
    rules.insert(libc::SYS_prctl, when(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, name)?);
    let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let filter = SeccompFilter::new(rules, absent, SeccompAction::Allow, arch).map_err(io::Error::other)?;
    filter.try_into().map_err(io::Error::other)
}
