//! Ways by name: magic links, links that are traps.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::raw;
use crate::report::Report;

/// Names that somebody else may look up here.
const NAMES: [&str; 14] = [
    "log",
    "work",
    "upper",
    "data",
    "link",
    "etc",
    "proc",
    "dev",
    "sys",
    "index",
    "volumes",
    "slot.json",
    "0.log",
    "..data",
];

/// Reaches for the host's file `decoy`, which holds `mark`, by way of everything that is a magic link, and by handle.
pub(crate) fn reach(decoy: &str, mark: &str) -> Report {
    let mut report = Report::default();
    let holds = |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.contains(mark));
    let decoy = decoy.trim_start_matches('/');
    let mut starts = vec![PathBuf::from("/"), PathBuf::from("/..")];
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let base = entry.path();
        starts.extend(["root", "cwd", "exe"].map(|name| base.join(name)));
        for list in ["fd", "map_files", "ns", "task"] {
            let entries = fs::read_dir(base.join(list)).into_iter().flatten().flatten();
            starts
                .extend(entries.flat_map(|entry| [entry.path(), entry.path().join("root"), entry.path().join("cwd")]));
        }
    }
    starts.extend((0..64).map(|number| PathBuf::from(format!("/dev/fd/{number}"))));
    for start in starts {
        for up in ["", "../../../../../../../../../../../../"] {
            let path = start.join(format!("{up}{decoy}"));
            report.tried(holds(&path), || format!("the host's file by {}", path.display()));
        }
    }
    by_handle(&mut report);
    report
}

/// The root directories of the file systems below this container's, by the handles that they always have.
fn by_handle(report: &mut Report) {
    // struct file_handle: 8 bytes, FILEID_INO32_GEN; inode 2 (ext4) and 128 (XFS), generation 0.
    const HANDLES: [[u8; 16]; 2] =
        [[8, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0], [8, 0, 0, 0, 1, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0]];
    for start in ["/", "/dev", "/dev/shm", "/proc", "/sys", "/v"] {
        let Ok(mount) = openat(CWD, start, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else { continue };
        for handle in &HANDLES {
            report.refused(&format!("a handle below {start}"), raw::open_by_handle(mount.as_fd(), handle));
        }
    }
}

/// Fills `directory` with links to `target` under many names, links in chains and rings, odd names, hard links, pipes and a
/// deep tree, for whoever cleans up.
pub(crate) fn plant(directory: &str, target: &str) -> io::Result<Report> {
    let report = Report::default();
    let directory = Path::new(directory);
    for name in NAMES {
        // What is there already stays: it is needed, or cannot be removed.
        let _ = symlink(target, directory.join(name));
    }
    let traps = directory.join("traps");
    fs::create_dir(&traps)?;
    symlink("..", traps.join("up"))?;
    symlink(".", traps.join("ring"))?;
    symlink("/", traps.join("root"))?;
    symlink("/proc/1/root", traps.join("magic"))?;
    symlink(target, traps.join("new\nline"))?;
    symlink(target, traps.join("-rf"))?;
    fs::write(traps.join("file"), "x")?;
    fs::hard_link(traps.join("file"), traps.join("hard"))?;
    let pipe = rustix::fs::mknodat(CWD, traps.join("pipe"), rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o666), 0);
    pipe?;
    let mut deep = traps.join("deep");
    for _ in 0..60 {
        fs::create_dir(&deep)?;
        symlink(target, deep.join("decoy"))?;
        deep.push("d");
    }
    // A directory that nobody but root may enter or empty.
    fs::create_dir(traps.join("closed"))?;
    symlink(target, traps.join("closed/decoy"))?;
    fs::set_permissions(traps.join("closed"), std::os::unix::fs::PermissionsExt::from_mode(0o000))?;
    Ok(report)
}
