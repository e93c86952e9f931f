//! Images made of Debian's packages by other programs (`hack/lib/stacks.sh`): seen through the overlay they are what GNU tar
//! makes of the stack.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{layers, mounts::Overlay, obstacle, run, tree};

/// Where the stacks are, `NAME/{0,1,…}.tar`; `hack/test images` makes them and says.
const STACKS: &str = "NODELESS_STACKS";

#[test]
fn privileged_realistic_images_come_out_as_gnu_tar_has_them() {
    let dir = std::env::var_os(STACKS);
    let reason = obstacle().or_else(|| dir.is_none().then(|| format!("{STACKS} names no images (hack/test images)")));
    let (None, Some(dir)) = (&reason, dir) else {
        eprintln!("SKIPPED privileged_realistic_images_come_out_as_gnu_tar_has_them: {}", reason.unwrap_or_default());
        return;
    };
    let mut compared = 0;
    for stack in sorted(Path::new(&dir)) {
        if stack.is_dir() && !is_hidden(&stack) {
            let entries = one(&sorted(&stack));
            eprintln!("{}: {entries} entries", stack.display());
            assert!(entries > 5000, "{}: too small a sample", stack.display());
            compared += 1;
        }
    }
    assert!(compared >= 3, "{compared} images");
}

/// How many entries were the same.
fn one(archives: &[PathBuf]) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let want = dir.path().join("want");
    std::fs::create_dir(&want).unwrap();
    for archive in archives {
        remove_hidden(&want, archive);
        run(Command::new("tar")
            .arg("-C")
            .arg(&want)
            .args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "--exclude=.wh.*", "-xpf"])
            .arg(archive));
    }
    let overlay = Overlay::mount(dir.path(), &layers(dir.path(), archives).unwrap());
    let (mut have, mut want) = (tree::facts(overlay.path()), tree::facts(&want));
    // The root's own time is that of the test's last removal.
    for map in [&mut have, &mut want] {
        map.remove(Path::new(""));
    }
    tree::compare(&have, &want, tree::DirTimes::Ignored);
    want.len()
}

/// What the archive's whiteouts hide of the layers below.
fn remove_hidden(root: &Path, archive: &Path) {
    let file = std::io::BufReader::new(std::fs::File::open(archive).unwrap());
    for entry in tar::Archive::new(file).entries().unwrap() {
        let path = entry.unwrap().path().unwrap().into_owned();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(hidden) = name.strip_prefix(".wh.") else { continue };
        assert_ne!(hidden, ".wh..opq", "umoci writes none");
        let place = root.join(path.with_file_name(hidden));
        match place.symlink_metadata() {
            Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(place).unwrap(),
            Ok(_) => std::fs::remove_file(place).unwrap(),
            Err(error) => panic!("{}: hides what is not there: {error}", path.display()),
        }
    }
}

fn sorted(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}
