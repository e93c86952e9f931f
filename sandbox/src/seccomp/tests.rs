//! The table against libc's numbers, the program against seccompiler's, and both against the running kernel.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Instant;

use proptest::prelude::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::assemble::{ARCHITECTURE, Verdict};
use super::*;

fn default_program() -> Program {
    program(&Seccomp::RuntimeDefault, &[]).unwrap()
}

/// What the kernel would answer.
pub(super) fn run(program: &[Instruction], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    judge::answer(program, arch, number, arguments).unwrap()
}

/// The same table by seccompiler, as three stacked filters; the kernel takes the strictest answer, and of two errnos that of
/// the filter installed last: so each call is matched by at most one of them.
fn judged(capabilities: u32) -> [BpfProgram; 3] {
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let word = |op, value: u32| SeccompCondition::new(0, SeccompCmpArgLen::Dword, op, value.into()).unwrap();
    let none_of =
        |values: &[u32]| vec![SeccompRule::new(values.iter().map(|v| word(SeccompCmpOp::Ne, *v)).collect()).unwrap()];
    let mut denied: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut known: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut done: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let core = |argument| {
        let resource = libc::RLIMIT_CORE.into();
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, resource).unwrap()
    };
    let pointer = |argument, op| SeccompCondition::new(argument, SeccompCmpArgLen::Qword, op, 0).unwrap();
    let rule = |conditions| vec![SeccompRule::new(conditions).unwrap()];
    for (number, verdict) in verdicts(capabilities) {
        if verdict != Verdict::Absent {
            known.insert(number.into(), vec![]);
        }
        match verdict {
            Verdict::Deny => drop(denied.insert(number.into(), vec![])),
            Verdict::Family => drop(denied.insert(number.into(), none_of(table::FAMILIES))),
            Verdict::Personality => drop(denied.insert(number.into(), none_of(table::PERSONALITIES))),
            Verdict::Clone => {
                let bits = (0..32).map(|bit| 1u32 << bit).filter(|bit| table::NAMESPACE_FLAGS & bit != 0);
                let rules =
                    bits.map(|bit| SeccompRule::new(vec![word(SeccompCmpOp::MaskedEq(bit.into()), bit)]).unwrap());
                denied.insert(number.into(), rules.collect());
            }
            Verdict::SetLimit => drop(done.insert(number.into(), rule(vec![core(0)]))),
            Verdict::SetAndGetLimit => {
                let (new, old) = (pointer(2, SeccompCmpOp::Ne), SeccompCmpOp::Ne);
                done.insert(number.into(), rule(vec![core(1), new.clone(), pointer(3, SeccompCmpOp::Eq)]));
                denied.insert(number.into(), rule(vec![core(1), new, pointer(3, old)]));
            }
            Verdict::Allow | Verdict::Absent => {}
        }
    }
    let filter =
        |rules, mismatch, matched| SeccompFilter::new(rules, mismatch, matched, arch).unwrap().try_into().unwrap();
    let errno = |errno: i32| SeccompAction::Errno(errno as u32);
    [
        filter(denied, SeccompAction::Allow, errno(libc::EPERM)),
        filter(known, errno(libc::ENOSYS), SeccompAction::Allow),
        filter(done, SeccompAction::Allow, errno(0)),
    ]
}

/// The strictest of their answers, as the kernel orders them (actions as signed numbers; the lower wins).
fn strictest(judges: &[BpfProgram], answer: impl Fn(&[Instruction]) -> u32) -> u32 {
    let action = |answer: &u32| (answer & libc::SECCOMP_RET_ACTION_FULL) as i32;
    judges.iter().map(|judge| answer(judge)).min_by_key(action).unwrap()
}

#[test]
fn every_name_of_the_table_is_a_system_call_and_no_name_has_two_verdicts() {
    let mut seen = BTreeMap::new();
    let lists = [table::ALLOWED, table::ABSENT, table::SOCKETS, &["personality", "clone", "setrlimit", "prlimit64"]];
    for name in lists.into_iter().flatten() {
        assert!(numbers::SYSCALLS.iter().any(|entry| entry.0 == *name), "{name}");
        assert_eq!(seen.insert(*name, ()), None, "{name}");
    }
    for name in table::WITH_CAPABILITY.iter().flat_map(|(_, names)| *names) {
        assert!(numbers::SYSCALLS.iter().any(|entry| entry.0 == *name), "{name}");
        assert!(!seen.contains_key(name), "{name} is allowed without a capability too");
    }
    assert!(numbers::SYSCALLS.is_sorted_by(|a, b| a.0 < b.0));
    assert!(table::ALLOWED.is_sorted_by(|a, b| a < b));
}

#[test]
fn numbers_are_those_of_libc() {
    macro_rules! same {
        ($($name:ident),* $(,)?) => { vec![$((stringify!($name), libc::$name)),*] };
    }
    #[cfg(target_arch = "x86_64")]
    #[rustfmt::skip]
    let all = same![
        SYS__sysctl, SYS_accept, SYS_accept4, SYS_access, SYS_acct, SYS_add_key, SYS_adjtimex, SYS_afs_syscall,
        SYS_alarm, SYS_arch_prctl, SYS_bind, SYS_bpf, SYS_brk, SYS_capget, SYS_capset, SYS_chdir, SYS_chmod,
        SYS_chown, SYS_chroot, SYS_clock_adjtime, SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep,
        SYS_clock_settime, SYS_clone, SYS_clone3, SYS_close, SYS_close_range, SYS_connect, SYS_copy_file_range,
        SYS_creat, SYS_delete_module, SYS_dup, SYS_dup2, SYS_dup3, SYS_epoll_create, SYS_epoll_create1,
        SYS_epoll_ctl, SYS_epoll_ctl_old, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_epoll_wait, SYS_epoll_wait_old,
        SYS_eventfd, SYS_eventfd2, SYS_execve, SYS_execveat, SYS_exit, SYS_exit_group, SYS_faccessat,
        SYS_faccessat2, SYS_fadvise64, SYS_fallocate, SYS_fanotify_init, SYS_fanotify_mark, SYS_fchdir, SYS_fchmod,
        SYS_fchmodat, SYS_fchmodat2, SYS_fchown, SYS_fchownat, SYS_fcntl, SYS_fdatasync, SYS_fgetxattr,
        SYS_finit_module, SYS_flistxattr, SYS_flock, SYS_fork, SYS_fremovexattr, SYS_fsconfig, SYS_fsetxattr,
        SYS_fsmount, SYS_fsopen, SYS_fspick, SYS_fstat, SYS_fstatfs, SYS_fsync, SYS_ftruncate, SYS_futex,
        SYS_futex_waitv, SYS_futimesat, SYS_get_mempolicy, SYS_get_robust_list, SYS_get_thread_area, SYS_getcpu,
        SYS_getcwd, SYS_getdents, SYS_getdents64, SYS_getegid, SYS_geteuid, SYS_getgid, SYS_getgroups,
        SYS_getitimer, SYS_getpeername, SYS_getpgid, SYS_getpgrp, SYS_getpid, SYS_getpmsg, SYS_getppid,
        SYS_getpriority, SYS_getrandom, SYS_getresgid, SYS_getresuid, SYS_getrlimit, SYS_getrusage, SYS_getsid,
        SYS_getsockname, SYS_getsockopt, SYS_gettid, SYS_gettimeofday, SYS_getuid, SYS_getxattr, SYS_init_module,
        SYS_inotify_add_watch, SYS_inotify_init, SYS_inotify_init1, SYS_inotify_rm_watch, SYS_io_cancel,
        SYS_io_destroy, SYS_io_getevents, SYS_io_setup, SYS_io_submit, SYS_io_uring_enter, SYS_io_uring_register,
        SYS_io_uring_setup, SYS_ioctl, SYS_ioperm, SYS_iopl, SYS_ioprio_get, SYS_ioprio_set, SYS_kcmp,
        SYS_kexec_file_load, SYS_kexec_load, SYS_keyctl, SYS_kill, SYS_landlock_add_rule,
        SYS_landlock_create_ruleset, SYS_landlock_restrict_self, SYS_lchown, SYS_lgetxattr, SYS_link, SYS_linkat,
        SYS_listen, SYS_listxattr, SYS_llistxattr, SYS_lookup_dcookie, SYS_lremovexattr, SYS_lseek, SYS_lsetxattr,
        SYS_lstat, SYS_madvise, SYS_mbind, SYS_membarrier, SYS_memfd_create, SYS_memfd_secret, SYS_migrate_pages,
        SYS_mincore, SYS_mkdir, SYS_mkdirat, SYS_mknod, SYS_mknodat, SYS_mlock, SYS_mlock2, SYS_mlockall, SYS_mmap,
        SYS_modify_ldt, SYS_mount, SYS_mount_setattr, SYS_move_mount, SYS_move_pages, SYS_mprotect,
        SYS_mq_getsetattr, SYS_mq_notify, SYS_mq_open, SYS_mq_timedreceive, SYS_mq_timedsend, SYS_mq_unlink,
        SYS_mremap, SYS_mseal, SYS_msgctl, SYS_msgget, SYS_msgrcv, SYS_msgsnd, SYS_msync, SYS_munlock,
        SYS_munlockall, SYS_munmap, SYS_name_to_handle_at, SYS_nanosleep, SYS_newfstatat, SYS_nfsservctl, SYS_open,
        SYS_open_by_handle_at, SYS_open_tree, SYS_openat, SYS_openat2, SYS_pause, SYS_perf_event_open,
        SYS_personality, SYS_pidfd_getfd, SYS_pidfd_open, SYS_pidfd_send_signal, SYS_pipe, SYS_pipe2,
        SYS_pivot_root, SYS_pkey_alloc, SYS_pkey_free, SYS_pkey_mprotect, SYS_poll, SYS_ppoll, SYS_prctl,
        SYS_pread64, SYS_preadv, SYS_preadv2, SYS_prlimit64, SYS_process_madvise, SYS_process_mrelease,
        SYS_process_vm_readv, SYS_process_vm_writev, SYS_pselect6, SYS_ptrace, SYS_putpmsg, SYS_pwrite64,
        SYS_pwritev, SYS_pwritev2, SYS_quotactl, SYS_quotactl_fd, SYS_read, SYS_readahead, SYS_readlink,
        SYS_readlinkat, SYS_readv, SYS_reboot, SYS_recvfrom, SYS_recvmmsg, SYS_recvmsg, SYS_remap_file_pages,
        SYS_removexattr, SYS_rename, SYS_renameat, SYS_renameat2, SYS_request_key, SYS_restart_syscall, SYS_rmdir,
        SYS_rseq, SYS_rt_sigaction, SYS_rt_sigpending, SYS_rt_sigprocmask, SYS_rt_sigqueueinfo, SYS_rt_sigreturn,
        SYS_rt_sigsuspend, SYS_rt_sigtimedwait, SYS_rt_tgsigqueueinfo, SYS_sched_get_priority_max,
        SYS_sched_get_priority_min, SYS_sched_getaffinity, SYS_sched_getattr, SYS_sched_getparam,
        SYS_sched_getscheduler, SYS_sched_rr_get_interval, SYS_sched_setaffinity, SYS_sched_setattr,
        SYS_sched_setparam, SYS_sched_setscheduler, SYS_sched_yield, SYS_seccomp, SYS_security, SYS_select,
        SYS_semctl, SYS_semget, SYS_semop, SYS_semtimedop, SYS_sendfile, SYS_sendmmsg, SYS_sendmsg, SYS_sendto,
        SYS_set_mempolicy, SYS_set_mempolicy_home_node, SYS_set_robust_list, SYS_set_thread_area,
        SYS_set_tid_address, SYS_setdomainname, SYS_setfsgid, SYS_setfsuid, SYS_setgid, SYS_setgroups,
        SYS_sethostname, SYS_setitimer, SYS_setns, SYS_setpgid, SYS_setpriority, SYS_setregid, SYS_setresgid,
        SYS_setresuid, SYS_setreuid, SYS_setrlimit, SYS_setsid, SYS_setsockopt, SYS_settimeofday, SYS_setuid,
        SYS_setxattr, SYS_shmat, SYS_shmctl, SYS_shmdt, SYS_shmget, SYS_shutdown, SYS_sigaltstack, SYS_signalfd,
        SYS_signalfd4, SYS_socket, SYS_socketpair, SYS_splice, SYS_stat, SYS_statfs, SYS_statx, SYS_swapoff,
        SYS_swapon, SYS_symlink, SYS_symlinkat, SYS_sync, SYS_sync_file_range, SYS_syncfs, SYS_sysfs, SYS_sysinfo,
        SYS_syslog, SYS_tee, SYS_tgkill, SYS_time, SYS_timer_create, SYS_timer_delete, SYS_timer_getoverrun,
        SYS_timer_gettime, SYS_timer_settime, SYS_timerfd_create, SYS_timerfd_gettime, SYS_timerfd_settime,
        SYS_times, SYS_tkill, SYS_truncate, SYS_tuxcall, SYS_umask, SYS_umount2, SYS_uname, SYS_unlink,
        SYS_unlinkat, SYS_unshare, SYS_uselib, SYS_userfaultfd, SYS_ustat, SYS_utime, SYS_utimensat, SYS_utimes,
        SYS_vfork, SYS_vhangup, SYS_vmsplice, SYS_vserver, SYS_wait4, SYS_waitid, SYS_write, SYS_writev
    ];
    #[cfg(target_arch = "aarch64")]
    #[rustfmt::skip]
    let all = same![
        SYS_accept, SYS_accept4, SYS_acct, SYS_add_key, SYS_adjtimex, SYS_bind, SYS_bpf, SYS_brk, SYS_capget,
        SYS_capset, SYS_chdir, SYS_chroot, SYS_clock_adjtime, SYS_clock_getres, SYS_clock_gettime,
        SYS_clock_nanosleep, SYS_clock_settime, SYS_clone, SYS_clone3, SYS_close, SYS_close_range, SYS_connect,
        SYS_copy_file_range, SYS_delete_module, SYS_dup, SYS_dup3, SYS_epoll_create1, SYS_epoll_ctl,
        SYS_epoll_pwait, SYS_epoll_pwait2, SYS_eventfd2, SYS_execve, SYS_execveat, SYS_exit, SYS_exit_group,
        SYS_faccessat, SYS_faccessat2, SYS_fadvise64, SYS_fallocate, SYS_fanotify_init, SYS_fanotify_mark,
        SYS_fchdir, SYS_fchmod, SYS_fchmodat, SYS_fchown, SYS_fchownat, SYS_fcntl, SYS_fdatasync, SYS_fgetxattr,
        SYS_finit_module, SYS_flistxattr, SYS_flock, SYS_fremovexattr, SYS_fsconfig, SYS_fsetxattr, SYS_fsmount,
        SYS_fsopen, SYS_fspick, SYS_fstat, SYS_fstatfs, SYS_fsync, SYS_ftruncate, SYS_futex, SYS_futex_waitv,
        SYS_get_mempolicy, SYS_get_robust_list, SYS_getcpu, SYS_getcwd, SYS_getdents64, SYS_getegid, SYS_geteuid,
        SYS_getgid, SYS_getgroups, SYS_getitimer, SYS_getpeername, SYS_getpgid, SYS_getpid, SYS_getppid,
        SYS_getpriority, SYS_getrandom, SYS_getresgid, SYS_getresuid, SYS_getrusage, SYS_getsid, SYS_getsockname,
        SYS_getsockopt, SYS_gettid, SYS_gettimeofday, SYS_getuid, SYS_getxattr, SYS_init_module,
        SYS_inotify_add_watch, SYS_inotify_init1, SYS_inotify_rm_watch, SYS_io_cancel, SYS_io_destroy,
        SYS_io_getevents, SYS_io_setup, SYS_io_submit, SYS_io_uring_enter, SYS_io_uring_register,
        SYS_io_uring_setup, SYS_ioctl, SYS_ioprio_get, SYS_ioprio_set, SYS_kcmp, SYS_kexec_file_load,
        SYS_kexec_load, SYS_keyctl, SYS_kill, SYS_landlock_add_rule, SYS_landlock_create_ruleset,
        SYS_landlock_restrict_self, SYS_lgetxattr, SYS_linkat, SYS_listen, SYS_listxattr, SYS_llistxattr,
        SYS_lookup_dcookie, SYS_lremovexattr, SYS_lseek, SYS_lsetxattr, SYS_madvise, SYS_mbind, SYS_membarrier,
        SYS_memfd_create, SYS_memfd_secret, SYS_migrate_pages, SYS_mincore, SYS_mkdirat, SYS_mknodat, SYS_mlock,
        SYS_mlock2, SYS_mlockall, SYS_mmap, SYS_mount, SYS_mount_setattr, SYS_move_mount, SYS_move_pages,
        SYS_mprotect, SYS_mq_getsetattr, SYS_mq_notify, SYS_mq_open, SYS_mq_timedreceive, SYS_mq_timedsend,
        SYS_mq_unlink, SYS_mremap, SYS_mseal, SYS_msgctl, SYS_msgget, SYS_msgrcv, SYS_msgsnd, SYS_msync,
        SYS_munlock, SYS_munlockall, SYS_munmap, SYS_name_to_handle_at, SYS_nanosleep, SYS_newfstatat,
        SYS_nfsservctl, SYS_open_by_handle_at, SYS_open_tree, SYS_openat, SYS_openat2, SYS_perf_event_open,
        SYS_personality, SYS_pidfd_getfd, SYS_pidfd_open, SYS_pidfd_send_signal, SYS_pipe2, SYS_pivot_root,
        SYS_pkey_alloc, SYS_pkey_free, SYS_pkey_mprotect, SYS_ppoll, SYS_prctl, SYS_pread64, SYS_preadv,
        SYS_preadv2, SYS_prlimit64, SYS_process_madvise, SYS_process_mrelease, SYS_process_vm_readv,
        SYS_process_vm_writev, SYS_pselect6, SYS_ptrace, SYS_pwrite64, SYS_pwritev, SYS_pwritev2, SYS_quotactl,
        SYS_quotactl_fd, SYS_read, SYS_readahead, SYS_readlinkat, SYS_readv, SYS_reboot, SYS_recvfrom, SYS_recvmmsg,
        SYS_recvmsg, SYS_remap_file_pages, SYS_removexattr, SYS_renameat2, SYS_request_key, SYS_restart_syscall,
        SYS_rseq, SYS_rt_sigaction, SYS_rt_sigpending, SYS_rt_sigprocmask, SYS_rt_sigqueueinfo, SYS_rt_sigreturn,
        SYS_rt_sigsuspend, SYS_rt_sigtimedwait, SYS_rt_tgsigqueueinfo, SYS_sched_get_priority_max,
        SYS_sched_get_priority_min, SYS_sched_getaffinity, SYS_sched_getattr, SYS_sched_getparam,
        SYS_sched_getscheduler, SYS_sched_rr_get_interval, SYS_sched_setaffinity, SYS_sched_setattr,
        SYS_sched_setparam, SYS_sched_setscheduler, SYS_sched_yield, SYS_seccomp, SYS_semctl, SYS_semget, SYS_semop,
        SYS_semtimedop, SYS_sendfile, SYS_sendmmsg, SYS_sendmsg, SYS_sendto, SYS_set_mempolicy,
        SYS_set_mempolicy_home_node, SYS_set_robust_list, SYS_set_tid_address, SYS_setdomainname, SYS_setfsgid,
        SYS_setfsuid, SYS_setgid, SYS_setgroups, SYS_sethostname, SYS_setitimer, SYS_setns, SYS_setpgid,
        SYS_setpriority, SYS_setregid, SYS_setresgid, SYS_setresuid, SYS_setreuid, SYS_setsid, SYS_setsockopt,
        SYS_settimeofday, SYS_setuid, SYS_setxattr, SYS_shmat, SYS_shmctl, SYS_shmdt, SYS_shmget, SYS_shutdown,
        SYS_sigaltstack, SYS_signalfd4, SYS_socket, SYS_socketpair, SYS_splice, SYS_statfs, SYS_statx, SYS_swapoff,
        SYS_swapon, SYS_symlinkat, SYS_sync, SYS_syncfs, SYS_sysinfo, SYS_syslog, SYS_tee, SYS_tgkill,
        SYS_timer_create, SYS_timer_delete, SYS_timer_getoverrun, SYS_timer_gettime, SYS_timer_settime,
        SYS_timerfd_create, SYS_timerfd_gettime, SYS_timerfd_settime, SYS_times, SYS_tkill, SYS_truncate, SYS_umask,
        SYS_umount2, SYS_uname, SYS_unlinkat, SYS_unshare, SYS_userfaultfd, SYS_utimensat, SYS_vhangup,
        SYS_vmsplice, SYS_wait4, SYS_waitid, SYS_write, SYS_writev
    ];
    for (name, number) in all {
        assert_eq!(number_of(&name[4..]).map(i64::from), Some(number), "{name}");
    }
}

#[test]
fn the_program_answers_as_seccompiler_s_for_every_number() {
    for capabilities in [0, 1, 1 << 10, u32::MAX >> 8] {
        let ours = assemble::assemble(&verdicts(capabilities));
        let judges = judged(capabilities);
        let arguments = [0, 1, 2, 8, 10, 11, 38, 40, 0x11, 0x1200011, 0x1000_0000, 0x2_0000, 0x2_0008, 0xffff_ffff];
        for number in (0..600).chain([0x4000_0000, 0x4000_0027, u32::MAX - 1, u32::MAX]) {
            for argument in arguments {
                let answer = |p: &[Instruction]| run(p, ARCHITECTURE, number, [argument, 0, 0, 0, 0, 0]);
                assert_eq!(answer(&ours), strictest(&judges, answer), "call {number} argument {argument:#x}");
            }
        }
    }
}

proptest! {
    #[test]
    fn any_call_gets_the_judge_s_answer(number in 0u32..500, argument: u64, capabilities in 0u32..1 << 14) {
        let judges = judged(capabilities);
        let ours = assemble::assemble(&verdicts(capabilities));
        let answer = |p: &[Instruction]| run(p, ARCHITECTURE, number, [argument, 0, 0, 0, 0, 0]);
        prop_assert_eq!(answer(&ours), strictest(&judges, answer));
    }

    #[test]
    fn any_change_of_a_limit_gets_the_judge_s_answer(
        name in prop::sample::select(vec!["setrlimit", "getrlimit", "prlimit64"]),
        arguments in prop::array::uniform6(prop_oneof![
            Just(0), Just(4), Just(1 << 32), Just(1 << 32 | 4), Just(7), any::<u64>()
        ]),
    ) {
        let judges = judged(0);
        let answer = |p: &[Instruction]| run(p, ARCHITECTURE, number_of(name).unwrap(), arguments);
        prop_assert_eq!(answer(&default_program()), strictest(&judges, answer));
    }

    #[test]
    fn a_foreign_architecture_is_killed(number: u32, arch: u32) {
        prop_assume!(arch != ARCHITECTURE);
        prop_assert_eq!(run(&default_program(), arch, number, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
    }
}

#[test]
fn what_must_never_be_allowed_by_default_is_not() {
    let program = default_program();
    let names = [
        "add_key",
        "bpf",
        "fsconfig",
        "fsmount",
        "fsopen",
        "init_module",
        "io_uring_enter",
        "io_uring_register",
        "io_uring_setup",
        "kexec_load",
        "keyctl",
        "mount",
        "move_mount",
        "open_by_handle_at",
        "open_tree",
        "perf_event_open",
        "pivot_root",
        "process_vm_readv",
        "process_vm_writev",
        "reboot",
        "request_key",
        "setns",
        "swapon",
        "umount2",
        "unshare",
        "userfaultfd",
    ];
    for name in names {
        let answer = run(&program, ARCHITECTURE, number_of(name).unwrap(), [0; 6]);
        assert_eq!(answer, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, "{name}");
    }
    for (family, name) in [(38, "AF_ALG"), (40, "AF_VSOCK"), (21, "AF_RDS"), (30, "AF_TIPC")] {
        let answer = run(&program, ARCHITECTURE, number_of("socket").unwrap(), [family, 0, 0, 0, 0, 0]);
        assert_eq!(answer, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, "{name}");
    }
}

#[test]
fn the_program_is_small() {
    let instructions = default_program().len();
    assert!(instructions < 350, "{instructions} instructions");
}

/// Set for the copy of this test program that installs the filter.
const INSIDE: &str = "NODELESS_TEST_SECCOMP_INSIDE";

/// Runs one test of this program again, in a process of its own that the filter cannot harm this one from.
fn again(test: &str) -> Option<std::process::Output> {
    if std::env::var_os(INSIDE).is_some() {
        return None;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Some(output)
}

#[test]
fn the_running_kernel_refuses_what_the_table_refuses() {
    if let Some(output) = again("seccomp::tests::the_running_kernel_refuses_what_the_table_refuses") {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    rustix::thread::set_no_new_privs(true).unwrap();
    crate::sys::filter::install(&default_program()).unwrap();
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketType, socket};
    assert_eq!(socket(AddressFamily::from_raw(38), SocketType::SEQPACKET, None).unwrap_err(), Errno::PERM);
    assert_eq!(socket(AddressFamily::from_raw(40), SocketType::STREAM, None).unwrap_err(), Errno::PERM);
    socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let unshared = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER);
    assert_eq!(unshared.unwrap_err(), nix::errno::Errno::EPERM);
    let opened = rustix::mount::fsopen("tmpfs", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC);
    assert_eq!(opened.unwrap_err(), Errno::PERM);
    // Threads and processes start all the same: clone3 is answered ENOSYS, and the C library falls back.
    std::thread::spawn(|| ()).join().unwrap();
    assert!(Command::new("true").status().unwrap().success());
}

#[test]
fn installing_costs_microseconds() {
    if let Some(output) = again("seccomp::tests::installing_costs_microseconds") {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    rustix::thread::set_no_new_privs(true).unwrap();
    let start = Instant::now();
    assemble::assemble(&verdicts(0));
    eprintln!("compiled in {:?}", start.elapsed());
    let program = default_program();
    let mut times: Vec<_> = (0..9)
        .map(|_| {
            let start = Instant::now();
            crate::sys::filter::install(&program).unwrap();
            start.elapsed()
        })
        .collect();
    times.sort();
    eprintln!("{} instructions installed in {:?}", program.len(), times[4]);
    let judges = judged(0);
    let start = Instant::now();
    for judge in &judges {
        crate::sys::filter::install(judge).unwrap();
    }
    eprintln!(
        "seccompiler's {} + {} + {} instructions installed in {:?}",
        judges[0].len(),
        judges[1].len(),
        judges[2].len(),
        start.elapsed()
    );
    // A figure that no loaded machine exceeds, and a chain of comparisons would.
    assert!(times[4].as_millis() < 5, "{:?}", times[4]);
}
