//! A small real image: busybox from the host in an EROFS file, made by Debian's mkfs.erofs.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const APPLETS: [&str; 36] = [
    "sh", "cat", "echo", "ls", "id", "sleep", "true", "false", "mount", "umount", "touch", "mkdir", "ln", "rm", "ps",
    "kill", "stat", "hostname", "readlink", "pwd", "head", "tail", "dd", "grep", "wc", "env", "chown", "chmod", "tty",
    "stty", "unshare", "mknod", "nc", "ip", "cp", "cut",
];

/// Where layer files lie.
pub fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("layers-{}", std::process::id()))
}

/// The image file, made at first use; or why it cannot be made.
pub fn layer() -> Result<PathBuf, String> {
    static MADE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    MADE.get_or_init(make).clone()
}

fn make() -> Result<PathBuf, String> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().map(Path::new).find(|path| path.exists());
    let busybox = busybox.ok_or("no busybox here (Debian: busybox-static)")?;
    let failed = |error: std::io::Error| error.to_string();
    std::fs::create_dir_all(directory()).map_err(failed)?;
    let tree = tempfile::tempdir().map_err(failed)?;
    let root = tree.path();
    for directory in ["bin", "etc", "tmp", "root", "data", "var"] {
        std::fs::create_dir(root.join(directory)).map_err(failed)?;
    }
    std::fs::set_permissions(root, PermissionsExt::from_mode(0o755)).map_err(failed)?;
    std::fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).map_err(failed)?;
    std::fs::copy(busybox, root.join("bin/busybox")).map_err(failed)?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).map_err(failed)?;
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").map_err(failed)?;
    std::fs::write(root.join("etc/plain"), "not a program\n").map_err(failed)?;
    symlink("/data", root.join("var/link")).map_err(failed)?;
    pack(root, "busybox")
}

/// A layer of one's own, made of what `fill` puts into a directory: also what no honest image has. `name` must be the
/// test's own.
pub fn layer_of(name: &str, fill: impl FnOnce(&Path)) -> PathBuf {
    std::fs::create_dir_all(directory()).unwrap();
    let tree = tempfile::tempdir().unwrap();
    std::fs::set_permissions(tree.path(), PermissionsExt::from_mode(0o755)).unwrap();
    fill(tree.path());
    pack(tree.path(), name).unwrap()
}

/// A layer with the hostile program as /bin/attacker.
pub fn attacker() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let program = super::shim::attacker().unwrap();
        layer_of("attacker", |root| {
            std::fs::create_dir(root.join("bin")).unwrap();
            std::fs::copy(program, root.join("bin/attacker")).unwrap();
        })
    })
    .clone()
}

fn pack(root: &Path, name: &str) -> Result<PathBuf, String> {
    let image = directory().join(format!("{name}.erofs"));
    let made = Command::new("mkfs.erofs").args(["--all-root", "-T0"]).arg(&image).arg(root).output();
    let made = made.map_err(|error| format!("mkfs.erofs (Debian: erofs-utils): {error}"))?;
    if !made.status.success() {
        return Err(format!("mkfs.erofs: {}", String::from_utf8_lossy(&made.stderr)));
    }
    Ok(image)
}
