//! The AppArmor profile that a container's program begins in.
//!
//! The kernel is told through the process's own file in a /proc of this moment, which nobody else can see or mount over
//! (CVE-2025-52881, CVE-2019-19921), by number and through no link. It counts from the next `execve` on.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::report::Step;
use crate::protocol::Refusal;
use crate::sys::mount;

/// The kernel's file, and where it was before security modules had directories of their own.
const FILES: [&str; 2] = ["attr/apparmor/exec", "attr/exec"];

/// Names the profile of the next program of this process.
pub(crate) fn begin_in(profile: &str) -> Result<(), Refusal> {
    let strict = mount::NOSUID | mount::NODEV | mount::NOEXEC;
    let proc = mount::create("proc", &[], strict).step("mount of a private /proc")?;
    tell(&proc, rustix::process::getpid().as_raw_nonzero().get(), profile)
}

fn tell(proc: &OwnedFd, pid: i32, profile: &str) -> Result<(), Refusal> {
    let step = || format!("unable to apply apparmor profile {profile:?}");
    if profile.is_empty() || profile.contains(['\0', '\n']) {
        return Err(Refusal::Invalid { message: format!("{profile:?} cannot name an AppArmor profile") });
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let open = |file| openat2(proc, format!("{pid}/{file}"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve);
    let file = match open(FILES[0]) {
        Err(Errno::NOENT) => open(FILES[1]),
        other => other,
    }
    .step(step())?;
    // One write is one command.
    let command = format!("exec {profile}");
    match rustix::io::write(&file, command.as_bytes()).step(step())? {
        written if written == command.len() => Ok(()),
        _ => Err(Refusal::failed(step(), &std::io::ErrorKind::WriteZero.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_kernel_is_told_through_the_processs_own_file_and_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let proc: OwnedFd = fs::File::open(dir.path()).unwrap().into();
        let new = dir.path().join("7/attr/apparmor");
        fs::create_dir_all(&new).unwrap();
        fs::write(new.join("exec"), "").unwrap();
        tell(&proc, 7, "pods//child").unwrap();
        assert_eq!(fs::read_to_string(new.join("exec")).unwrap(), "exec pods//child");

        fs::create_dir_all(dir.path().join("8/attr")).unwrap();
        fs::write(dir.path().join("8/attr/exec"), "").unwrap();
        tell(&proc, 8, "pods").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("8/attr/exec")).unwrap(), "exec pods");

        // Led elsewhere, the command would go to a file of somebody's choice.
        let target = dir.path().join("target");
        fs::write(&target, "").unwrap();
        fs::create_dir_all(dir.path().join("9/attr/apparmor")).unwrap();
        symlink(&target, dir.path().join("9/attr/apparmor/exec")).unwrap();
        assert!(matches!(tell(&proc, 9, "pods"), Err(Refusal::Failed { .. })));
        assert_eq!(fs::read_to_string(&target).unwrap(), "");
        for name in ["", "a\nb", "a\0b"] {
            assert!(matches!(tell(&proc, 7, name), Err(Refusal::Invalid { .. })), "{name:?}");
        }
        assert!(matches!(tell(&proc, 10, "pods"), Err(Refusal::Failed { errno: Some(2), .. })));
    }
}
