//! Makes, refreshes and removes what a pod has on disk and on tmpfs. Blocking.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Volume;
use rustix::mount::{MountFlags, UnmountFlags};
use sandbox::sys::spread::Spread;

use super::super::spec::resources::{Policy, of_pod};
use super::super::spec::{Context, SpecError, hostname, scalars};
use super::atomic::{self, WriteError};
use super::dns::{self, Resolver};
use super::{Kind, PodDirs, content, etc_files, kind, removal, volumes};
use crate::quantity::whole;

/// Why a pod's files could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The pod's specification or what it refers to is at fault.
    #[error("could not set up volume {volume:?}")]
    Spec {
        /// Which volume.
        volume: String,
        /// Why.
        #[source]
        source: SpecError,
    },
    /// A content volume could not be written.
    #[error("could not set up volume {volume:?}")]
    Write {
        /// Which volume.
        volume: String,
        /// Why.
        #[source]
        source: WriteError,
    },
    /// The kernel refused a step.
    #[error("could not {operation} {path:?}")]
    Step {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn step(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Step { operation, path, source }
}

fn directory(path: &Path, mode: u32) -> Result<(), VolumeError> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(step("make directory", path))?;
    let found = fs::metadata(path).map_err(step("look at", path))?.permissions().mode() & 0o7777;
    if found == mode {
        // What is right is not written again: that would be a change of the directory each time.
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(step("set mode of", path))
}

/// The directories of a pod, without any content.
pub fn make_dirs(dirs: &PodDirs) -> Result<(), VolumeError> {
    if let (Some(pods), Some(uid)) = (dirs.disk.parent(), dirs.disk.file_name().and_then(OsStr::to_str)) {
        fs::create_dir_all(pods)
            .and_then(|()| Spread::of(pods).make(uid, 0o711))
            .map_err(step("make directory", &dirs.disk))?;
    }
    for path in [&dirs.disk, &dirs.tmpfs] {
        directory(path, 0o711)?;
    }
    for name in ["volumes", "etc", "containers", "writable"] {
        directory(&dirs.disk.join(name), 0o711)?;
    }
    directory(&dirs.logs(), 0o700)?;
    directory(&dirs.tmpfs.join("volumes"), 0o711)
}

/// Everything that a pod's containers mount, and the files of `/etc`. Repeating it brings content up to date.
pub fn prepare(context: Context<'_>, dirs: &PodDirs, host: &Resolver, wall_ns: u64) -> Result<(), VolumeError> {
    make_dirs(dirs)?;
    let group = content::fs_group(context);
    for volume in volumes(context) {
        let path = dirs.volume(volume);
        match kind(volume) {
            Some(Kind::Disk) => empty(&path, group)?,
            Some(Kind::Memory) => {
                memory(&path, memory_size(context, volume), group)?;
            }
            Some(Kind::HugePages) => {
                let (page, limit) = huge_page_size(context, volume)?;
                huge_pages(&path, page, limit, group)?;
            }
            Some(Kind::Open | Kind::Secret) => {
                let named = |source| VolumeError::Spec { volume: volume.name.clone(), source };
                if let Some(files) = content::of_volume(context, volume).map_err(named)? {
                    atomic::write(&path, &files, group, wall_ns)
                        .map_err(|source| VolumeError::Write { volume: volume.name.clone(), source })?;
                }
            }
            None => {}
        }
    }
    let etc = dirs.disk.join("etc");
    let (name, _) = hostname(context);
    let own = match context.has_host_network() {
        true => fs::read_to_string("/etc/hosts").unwrap_or_default(),
        false => String::new(),
    };
    let resolv = context
        .spec()
        .map(|spec| dns::resolv_conf(spec, context.namespace(), &context.resolved.dns, host))
        .unwrap_or_default();
    for (file, text) in [
        ("hosts", etc_files::hosts(context, context.ip, &own)),
        ("hostname", format!("{name}\n")),
        ("resolv.conf", resolv),
    ] {
        let path = etc.join(file);
        // Containers hold the file itself: what is unchanged stays the same inode.
        if fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
            continue;
        }
        atomic::write_file(&path, text.as_bytes(), 0o644)
            .map_err(|source| VolumeError::Write { volume: file.to_owned(), source })?;
    }
    Ok(())
}

/// The file behind `terminationMessagePath` of one attempt, writable for whoever the container runs as.
pub fn message_file(path: &Path) -> Result<(), VolumeError> {
    if let Some(parent) = path.parent() {
        directory(parent, 0o711)?;
    }
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_NOFOLLOW)
        .mode(0o666)
        .open(path)
        .map_err(step("create", path))?;
    file.set_permissions(fs::Permissions::from_mode(0o666)).map_err(step("set mode of", path))
}

fn empty(path: &Path, group: Option<u32>) -> Result<(), VolumeError> {
    match fs::DirBuilder::new().mode(0o777).create(path) {
        // It is the pod's own by now.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other.map_err(step("make directory", path))?,
    }
    own(path, group)
}

fn own(path: &Path, group: Option<u32>) -> Result<(), VolumeError> {
    let mut mode = 0o777;
    if let Some(gid) = group {
        std::os::unix::fs::chown(path, None, Some(gid)).map_err(step("give group to", path))?;
        mode |= 0o2000;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(step("set mode of", path))
}

/// How much a volume in memory may hold, as a kubelet decides: what the volume says, but no more than the pod may have,
/// and without a word of either what the host has.
fn memory_size(context: Context<'_>, volume: &Volume) -> Option<u64> {
    let some = |bytes: u64| Some(bytes).filter(|bytes| *bytes > 0);
    let own =
        volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref()).and_then(|q| whole(&q.0).ok()).and_then(some);
    let pod = context.spec().and_then(|spec| of_pod(spec, &Policy::default()).ok()).and_then(|pod| pod.memory_limit);
    [own, pod, some(context.host.capacity.memory)].into_iter().flatten().min()
}

/// The page size of a volume in huge pages, and how much it may hold: what the volume says, but no more than the pod may have.
fn huge_page_size(context: Context<'_>, volume: &Volume) -> Result<(u64, u64), VolumeError> {
    let empty = volume.empty_dir.clone().unwrap_or_default();
    let found = match context.spec() {
        Some(spec) => scalars::medium(spec, &empty.medium.unwrap_or_default()),
        None => Err("the pod has no specification".to_owned()),
    };
    let (page, most) = found
        .map_err(|message| VolumeError::Spec { volume: volume.name.clone(), source: SpecError::Mount { message } })?;
    let own = empty.size_limit.and_then(|limit| whole(&limit.0).ok()).filter(|bytes| *bytes > 0);
    Ok((page, own.map_or(most, |own| own.min(most))))
}

/// A hugetlbfs of its own with pages of `page` bytes; `limit` in bytes.
fn huge_pages(path: &Path, page: u64, limit: u64, group: Option<u32>) -> Result<(), VolumeError> {
    mounted(path, "hugetlbfs", &format!("pagesize={page},size={limit}"), group)
}

/// A tmpfs of its own. `limit` in bytes; without one the kernel's own (half of the memory).
fn memory(path: &Path, limit: Option<u64>, group: Option<u32>) -> Result<(), VolumeError> {
    mounted(path, "tmpfs", &limit.map(|bytes| format!("size={bytes}")).unwrap_or_default(), group)
}

/// A file system in memory, mounted on a directory made for it, unless it is there already.
fn mounted(path: &Path, kind: &'static str, options: &str, group: Option<u32>) -> Result<(), VolumeError> {
    if let Some(parent) = path.parent() {
        directory(parent, 0o711)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(step("make directory", path)(error));
        }
        _ => {}
    }
    if is_mount(path).map_err(step("look at", path))? {
        return Ok(());
    }
    let options = std::ffi::CString::new(options).unwrap_or_default();
    rustix::mount::mount(
        "nodeless-memory",
        path,
        kind,
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(options.as_c_str()),
    )
    .map_err(|errno| step("mount a file system in memory on", path)(errno.into()))?;
    own(path, group)
}

/// Something is mounted on it: it is on another device than its parent.
fn is_mount(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let parent = path.parent().unwrap_or(path);
    Ok(fs::symlink_metadata(path)?.dev() != fs::symlink_metadata(parent)?.dev())
}

/// Removes all but the logs. Repeating it succeeds. No link in it is followed.
pub fn remove(dirs: &PodDirs) -> Result<(), VolumeError> {
    let memory = dirs.tmpfs.join("memory");
    match fs::read_dir(&memory) {
        Ok(entries) => {
            for entry in entries.flatten() {
                let path = entry.path();
                if is_mount(&path).unwrap_or(false) {
                    rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                        .map_err(|errno| step("unmount", &path)(errno.into()))?;
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(step("list", &memory)(error)),
    }
    remove_tree(&dirs.tmpfs)?;
    for name in ["volumes", "etc", "containers", "writable"] {
        remove_tree(&dirs.disk.join(name))?;
    }
    Ok(())
}

/// Removes the logs too: the pod is forgotten.
pub fn forget(dirs: &PodDirs) -> Result<(), VolumeError> {
    remove(dirs)?;
    remove_tree(&dirs.disk)
}

fn remove_tree(path: &Path) -> Result<(), VolumeError> {
    removal::remove_tree(path).map_err(step("remove", path))
}

/// Makes sure that secret material cannot reach a disk: `RUN/secrets` is on a tmpfs (or ramfs), mounted here if its
/// directory is not on one already. True: a mount was made.
pub fn secure_secrets(run_dir: &Path) -> Result<bool, VolumeError> {
    let path = run_dir.join("secrets");
    directory(&path, 0o711)?;
    if in_memory(&path)? {
        return Ok(false);
    }
    rustix::mount::mount(
        "nodeless-secrets",
        &path,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        Some(c"mode=0711"),
    )
    .map_err(|errno| step("mount a tmpfs on", &path)(errno.into()))?;
    Ok(true)
}

/// Takes the mount of [`secure_secrets`] away when no pod has anything there any more.
pub fn release_secrets(run_dir: &Path) -> Result<(), VolumeError> {
    let path = run_dir.join("secrets");
    let mut entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(step("list", &path)(error)),
    };
    if entries.next().is_some() {
        return Ok(());
    }
    if is_mount(&path).map_err(step("look at", &path))? {
        rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(|errno| step("unmount", &path)(errno.into()))?;
    }
    fs::remove_dir(&path).map_err(step("remove", &path))
}

fn in_memory(path: &Path) -> Result<bool, VolumeError> {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    let found = rustix::fs::statfs(path).map_err(|errno| step("look at", path)(errno.into()))?;
    #[allow(clippy::useless_conversion)]
    let kind = i64::from(found.f_type);
    Ok(kind == TMPFS || kind == RAMFS)
}

#[cfg(test)]
mod tests {
    use super::super::super::spec::HostFacts;
    use super::*;
    use crate::resolved::Resolved;
    use k8s_openapi::api::core::v1::Pod;

    #[test]
    fn a_pods_files_are_made_once_and_removed_without_its_logs() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = PodDirs::new(&dir.path().join("state"), &dir.path().join("run"), "u");
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c"}], "volumes": [{"name": "e", "emptyDir": {}}, {"name": "d",
                "downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}
        }))
        .unwrap();
        let (resolved, host) = (Resolved::default(), HostFacts::default());
        let context = Context { pod: &pod, resolved: &resolved, host: &host, ip: Some([10, 0, 0, 2].into()) };
        for _ in 0..2 {
            prepare(context, &dirs, &Resolver::default(), 1_700_000_000_000_000_000).unwrap();
            fs::write(dirs.disk.join("volumes/e/own"), "x").unwrap();
        }
        assert_eq!(fs::read_to_string(dirs.disk.join("volumes/d/name")).unwrap(), "p");
        assert!(fs::read_to_string(dirs.disk.join("etc/hosts")).unwrap().ends_with("10.0.0.2\tp\n"));
        let mode = |p: &str| fs::metadata(dirs.disk.join(p)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(""), mode("volumes"), mode("volumes/e"), mode("logs")), (0o711, 0o711, 0o777, 0o700));
        let message = dirs.message("c", 0);
        message_file(&message).unwrap();
        message_file(&message).unwrap();
        fs::write(dirs.logs().join("x"), "x").unwrap();
        remove(&dirs).unwrap();
        remove(&dirs).unwrap();
        assert!(dirs.logs().join("x").exists() && !dirs.disk.join("volumes").exists());
        assert!(!dirs.tmpfs.exists());
        forget(&dirs).unwrap();
        assert!(!dirs.disk.exists());
    }

    #[test]
    fn privileged_every_kind_of_volume_belongs_to_the_fs_group_as_a_kubelet_gives_it() {
        use std::os::unix::fs::MetadataExt as _;
        if !rustix::process::geteuid().is_root() {
            eprintln!(
                "SKIPPED privileged_every_kind_of_volume_belongs_to_the_fs_group_as_a_kubelet_gives_it: needs root"
            );
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let dirs = PodDirs::new(&dir.path().join("state"), &dir.path().join("run"), "u");
        let item = serde_json::json!([{"path": "name", "mode": 0o400, "fieldRef": {"fieldPath": "metadata.name"}}]);
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": {"fsGroup": 2000}, "containers": [{"name": "c"}], "volumes": [
                {"name": "e", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                {"name": "d", "downwardAPI": {"items": item}},
                {"name": "p", "projected": {"sources": [{"downwardAPI": {"items": item}}]}}]}
        }))
        .unwrap();
        let (resolved, host) = (Resolved::default(), HostFacts::default());
        let context = Context { pod: &pod, resolved: &resolved, host: &host, ip: None };
        prepare(context, &dirs, &Resolver::default(), 1_700_000_000_000_000_000).unwrap();
        for (path, mode) in [
            (dirs.disk.join("volumes/e"), 0o2777),
            (dirs.tmpfs.join("memory/m"), 0o2777),
            (dirs.disk.join("volumes/d/name"), 0o440),
            (dirs.tmpfs.join("volumes/p/name"), 0o440),
        ] {
            let found = fs::metadata(&path).unwrap();
            assert_eq!((found.gid(), found.mode() & 0o7777), (2000, mode), "{path:?}");
        }
        remove(&dirs).unwrap();
    }

    #[test]
    fn a_volume_in_memory_holds_no_more_than_it_the_pod_or_the_host_may() {
        let size = |volume: serde_json::Value, limit: Option<&str>| {
            let resources =
                limit.map_or(serde_json::json!({}), |limit| serde_json::json!({"limits": {"memory": limit}}));
            let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
                "containers": [{"name": "c", "resources": resources}], "volumes": [{"name": "m", "emptyDir": volume}]}}))
            .unwrap();
            let resolved = Resolved::default();
            let mut host = HostFacts::default();
            host.capacity.memory = 1 << 30;
            let context = Context { pod: &pod, resolved: &resolved, host: &host, ip: None };
            memory_size(context, volumes(context).next().unwrap()).unwrap() >> 20
        };
        let own = |limit: &str| serde_json::json!({"medium": "Memory", "sizeLimit": limit});
        assert_eq!(size(serde_json::json!({"medium": "Memory"}), None), 1024);
        assert_eq!(size(serde_json::json!({"medium": "Memory"}), Some("64Mi")), 64);
        assert_eq!(size(own("16Mi"), Some("64Mi")), 16);
        assert_eq!(size(own("128Mi"), Some("64Mi")), 64);
        assert_eq!(size(own("0"), None), 1024);
        assert_eq!(size(own("4Gi"), None), 1024);
    }

    #[test]
    fn removal_does_not_follow_links_out_of_a_volume() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir_all(outside.join("keep")).unwrap();
        let dirs = PodDirs::new(&dir.path().join("state"), &dir.path().join("run"), "u");
        make_dirs(&dirs).unwrap();
        std::os::unix::fs::symlink(&outside, dirs.disk.join("volumes/link")).unwrap();
        remove(&dirs).unwrap();
        assert!(outside.join("keep").exists());
    }

    #[test]
    fn privileged_a_memory_volume_is_a_tmpfs_of_its_size_and_leaves_no_mount() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED privileged_a_memory_volume_is_a_tmpfs_of_its_size_and_leaves_no_mount: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let dirs = PodDirs::new(&dir.path().join("state"), &dir.path().join("run"), "u");
        make_dirs(&dirs).unwrap();
        let path = dirs.tmpfs.join("memory/m");
        for _ in 0..2 {
            memory(&path, Some(1 << 20), Some(2000)).unwrap();
        }
        let stat = rustix::fs::statvfs(&path).unwrap();
        assert_eq!(stat.f_blocks * stat.f_frsize, 1 << 20);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o2777);
        assert!(fs::write(path.join("big"), vec![0; 2 << 20]).is_err(), "the size holds");
        remove(&dirs).unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(dir.path().to_str().unwrap()), "a mount is left");
    }

    #[test]
    fn a_volume_in_huge_pages_holds_no_more_than_it_or_the_pod_may() {
        let size = |volume: serde_json::Value| {
            let limits = serde_json::json!({"cpu": "1", "hugepages-2Mi": "8Mi"});
            let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
                "containers": [{"name": "c", "resources": {"limits": limits}}],
                "volumes": [{"name": "h", "emptyDir": volume}]}}))
            .unwrap();
            let (resolved, host) = (Resolved::default(), HostFacts::default());
            let context = Context { pod: &pod, resolved: &resolved, host: &host, ip: None };
            huge_page_size(context, volumes(context).next().unwrap()).map_err(|error| crate::errors::chain(&error))
        };
        assert_eq!(size(serde_json::json!({"medium": "HugePages"})), Ok((2 << 20, 8 << 20)));
        assert_eq!(size(serde_json::json!({"medium": "HugePages-2Mi", "sizeLimit": "4Mi"})), Ok((2 << 20, 4 << 20)));
        assert_eq!(size(serde_json::json!({"medium": "HugePages-2Mi", "sizeLimit": "1Gi"})), Ok((2 << 20, 8 << 20)));
        let error = size(serde_json::json!({"medium": "HugePages-1Gi"})).unwrap_err();
        assert!(error.starts_with("could not set up volume \"h\": medium HugePages-1Gi: hugePages storage"), "{error}");
    }

    #[test]
    fn privileged_a_volume_in_huge_pages_is_a_hugetlbfs_of_its_page_size_and_leaves_no_mount() {
        const NAME: &str = "privileged_a_volume_in_huge_pages_is_a_hugetlbfs_of_its_page_size_and_leaves_no_mount";
        use std::os::unix::fs::MetadataExt as _;
        if !rustix::process::geteuid().is_root() {
            return eprintln!("SKIPPED {NAME}: needs root");
        }
        let known = crate::host::huge_pages::read(Path::new(crate::host::huge_pages::ROOT)).unwrap();
        let Some(pool) = known.first() else { return eprintln!("SKIPPED {NAME}: the kernel has no huge pages") };
        let dir = tempfile::tempdir().unwrap();
        let dirs = PodDirs::new(&dir.path().join("state"), &dir.path().join("run"), "u");
        make_dirs(&dirs).unwrap();
        let path = dirs.tmpfs.join("memory/h");
        for _ in 0..2 {
            huge_pages(&path, pool.size, pool.size * 4, Some(2000)).unwrap();
        }
        let stat = rustix::fs::statfs(&path).unwrap();
        assert_eq!((stat.f_type as u64, stat.f_bsize as u64), (0x9584_58f6, pool.size), "a hugetlbfs of the page size");
        assert_eq!(stat.f_blocks, 4, "the size holds");
        let owner = fs::metadata(&path).unwrap();
        assert_eq!((owner.gid(), owner.mode() & 0o7777), (2000, 0o2777));
        remove(&dirs).unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(dir.path().to_str().unwrap()), "a mount is left");
    }
}
