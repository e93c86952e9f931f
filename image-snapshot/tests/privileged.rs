//! The kernel and GNU tar as judges: what an overlay of our layers shows must be what `tar -x` of the stack of archives gives.
//! Needs root. Everything is mounted in private directories and taken down again.
#![allow(clippy::unwrap_used)] // A test program throughout.

#[path = "privileged/differential.rs"]
mod differential;
#[path = "privileged/mounts.rs"]
mod mounts;
#[path = "privileged/realistic.rs"]
mod realistic;
#[path = "privileged/tree.rs"]
mod tree;

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use image_snapshot::{
    Limits,
    convert::{ConvertError, convert},
};
use mounts::Overlay;

/// Why these tests cannot run here, if so.
fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root to mount".to_owned());
    }
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    ["erofs", "overlay"].iter().find(|f| !filesystems.contains(**f)).map(|f| format!("the kernel has no {f}"))
}

/// Converts archives, lowest first, into files of `dir`.
fn layers(dir: &Path, archives: &[PathBuf]) -> Result<Vec<PathBuf>, ConvertError> {
    let mut below = Vec::new();
    let mut paths = Vec::new();
    for (i, archive) in archives.iter().enumerate() {
        let path = dir.join(format!("{i}.erofs"));
        let out = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let input = BufReader::new(File::open(archive).unwrap());
        convert(input, &below, out.try_clone().unwrap(), &Limits::default())?;
        below.push(Arc::new(out));
        paths.push(path);
    }
    Ok(paths)
}

#[test]
fn privileged_a_real_tree_comes_out_as_gnu_tar_has_it() {
    if let Some(reason) = obstacle() {
        eprintln!("SKIPPED privileged_a_real_tree_comes_out_as_gnu_tar_has_it: {reason}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    tree::make_one_of_everything(&source);
    let lower = dir.path().join("lower.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(&source)
        .args(["--xattrs", "--xattrs-include=*", "--acls", "-cf"])
        .arg(&lower)
        .arg("."));
    // A second layer that is a part of this machine: thousands of files, links and owners.
    let upper = dir.path().join("upper.tar");
    run(Command::new("tar").args(["-C", "/", "--format=pax", "-cf"]).arg(&upper).args(
        ["etc/alternatives", "usr/share/perl", "usr/share/zoneinfo", "usr/lib/python3"]
            .iter()
            .filter(|p| Path::new("/").join(p).exists()),
    ));
    let want = dir.path().join("want");
    std::fs::create_dir(&want).unwrap();
    for archive in [&lower, &upper] {
        run(Command::new("tar")
            .arg("-C")
            .arg(&want)
            .args(["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-xpf"])
            .arg(archive));
    }
    let one = dir.path().join("one");
    std::fs::create_dir(&one).unwrap();
    let overlay = Overlay::mount(&one, &layers(&one, std::slice::from_ref(&lower)).unwrap());
    tree::compare(&tree::facts(overlay.path()), &tree::facts(&source), tree::DirTimes::Compared);
    drop(overlay);
    let overlay = Overlay::mount(dir.path(), &layers(dir.path(), &[lower, upper]).unwrap());
    let (have, want) = (tree::facts(overlay.path()), tree::facts(&want));
    assert!(have.len() > 1000, "too small a sample: {}", have.len());
    tree::compare(&have, &want, tree::DirTimes::Ignored);
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
