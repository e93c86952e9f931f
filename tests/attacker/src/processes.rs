//! Other processes of the container: those that are about to join it still hold what is the host's.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::raw;
use crate::report::Report;

/// How long a program file is tried.
const PATIENCE: Duration = Duration::from_millis(200);

fn others() -> Vec<i32> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let names = fs::read_dir("/proc").into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| *pid != own).collect()
}

/// The runtime's program, by the names that its file and its process have.
fn of_the_runtime(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name);
    name.contains("nodeless") || name.contains("memfd:")
}

/// Looks into every process that appears, again and again, until `stop` exists. What is the container's own may be looked
/// into; a process that still runs the runtime's program, or has something of the host's, may not. `shared`: the processes
/// of the pod's other containers are there, too, each in its own root.
pub(crate) fn hunt(stop: &str, shared: bool) -> Report {
    let mut report = Report::default();
    let root = fs::metadata("/").map(|meta| (meta.dev(), meta.ino())).ok();
    let (mut met, mut rounds): (u64, u64) = (0, 0);
    while !Path::new(stop).exists() {
        rounds += 1;
        for pid in others() {
            let directory = PathBuf::from(format!("/proc/{pid}"));
            if fs::read(directory.join("cmdline")).is_ok_and(|line| of_the_runtime(&line)) {
                met += 1;
            }
            look_into(&directory, root.filter(|_| !shared), Path::new(stop), &mut report);
            if let Ok(exe) = raw::seized(pid, || fs::read_link(directory.join("exe"))) {
                let runtime = exe.is_ok_and(|exe| of_the_runtime(exe.as_os_str().as_encoded_bytes()));
                report.tried(runtime, || format!("process {pid} of the runtime's was traced"));
            }
        }
    }
    report.seen(&format!("stubs {met}"));
    report.seen(&format!("rounds {rounds}"));
    report
}

fn look_into(directory: &Path, root: Option<(u64, u64)>, stop: &Path, report: &mut Report) {
    let what = |name: &str| format!("{}/{name}", directory.display());
    for name in ["exe", "root", "cwd"] {
        let opened = openat(CWD, directory.join(name), OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let Ok(opened) = opened else {
            report.tried(false, String::new);
            continue;
        };
        // By our own descriptor: the process may have become another program meanwhile.
        let link = fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).unwrap_or_default();
        let text = link.as_os_str().as_encoded_bytes();
        report.tried(of_the_runtime(text), || format!("{} is {}", what(name), link.display()));
        if name == "root" {
            let there = rustix::fs::fstat(&opened).map(|stat| (stat.st_dev, stat.st_ino)).ok();
            report.tried(root.is_some() && there != root, || format!("{} is another root", what(name)));
            // Every container of these tests has it, and nothing else that is a root.
            let busybox = openat(&opened, "bin/busybox", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
            report.tried(busybox.is_err(), || format!("{} is no container's", what(name)));
        }
    }
    for entry in fs::read_dir(directory.join("fd")).into_iter().flatten().flatten() {
        let number = entry.file_name().to_string_lossy().into_owned();
        let Ok(link) = fs::read_link(entry.path()) else { continue };
        // A program's own start reads its own maps; who makes the file at which this ends has it open.
        let own = link.starts_with(directory) || link == stop;
        let beyond = number.parse::<u32>().is_ok_and(|number| number > 2) && !own;
        report.tried(beyond, || format!("{} has descriptor {number}: {}", what("fd"), link.display()));
    }
}

/// Whether a process's memory can be looked into. Linux 6.1 opens the file of one that has ended too: it is at its end. To read
/// the first page of memory that is there, which nobody has, is an error.
fn has_memory(process: &Path) -> bool {
    File::open(process.join("mem")).is_ok_and(|memory| !matches!(memory.read_at(&mut [0], 0), Ok(0)))
}

/// Looks into everything that has the keeper's memory, as that lives in it: it, and whoever makes namespaces for it; until `stop`
/// exists. Where all processes of the host are seen, and as the host's root.
pub(crate) fn keeper(stop: &str) -> Report {
    let mut report = Report::default();
    let (mut seen, mut rounds) = (BTreeSet::new(), 0_u64);
    while !Path::new(stop).exists() {
        rounds += 1;
        for pid in others() {
            let directory = PathBuf::from(format!("/proc/{pid}"));
            let line = fs::read(directory.join("cmdline")).unwrap_or_default();
            if !String::from_utf8_lossy(&line).contains("keeper\0--run-dir") {
                continue;
            }
            seen.insert(pid);
            for name in ["root", "cwd", "exe"] {
                let opened = File::open(directory.join(name));
                report.refused(&format!("{name} of the keeper's {pid}"), opened);
            }
            report.tried(has_memory(&directory), || format!("mem of the keeper's {pid}"));
            for entry in fs::read_dir(directory.join("fd")).into_iter().flatten().flatten() {
                report.refused(&format!("a descriptor of the keeper's {pid}"), fs::read_link(entry.path()));
            }
            report.refused(&format!("tracing of the keeper's {pid}"), raw::seized(pid, || ()));
        }
    }
    report.seen(&format!("keepers {}", seen.len()));
    report.seen(&format!("rounds {rounds}"));
    report
}

/// CVE-2019-5736: opens each program file that is the runtime's and not this container's, and writes to it as soon as nobody
/// executes it any more; until `stop` exists.
pub(crate) fn overwrite(stop: &str) -> Report {
    let mut report = Report::default();
    let mut found = 0;
    while !Path::new(stop).exists() {
        for pid in others() {
            let Ok(file) = File::open(format!("/proc/{pid}/exe")) else { continue };
            let name = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
            if !of_the_runtime(name.as_os_str().as_encoded_bytes()) {
                continue;
            }
            found += 1;
            println!("SEEN program {}", name.display());
            let began = Instant::now();
            while began.elapsed() < PATIENCE {
                for (what, written) in write_to(&file) {
                    report.refused(&format!("{} of {}", what, name.display()), written);
                }
            }
        }
    }
    report.seen(&format!("programs {found}"));
    report
}

fn write_to(file: &File) -> [(&'static str, io::Result<()>); 6] {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let emptied = OpenOptions::new().write(true).truncate(true).open(&path).map(drop);
    let grown = OpenOptions::new().append(true).open(&path).and_then(|mut file| file.write_all(b"\0"));
    let changed = OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(b"#!/bin/sh\n"));
    // Not to be executed any more: no new container on this host.
    let mode = rustix::fs::fchmod(file, Mode::empty()).map_err(io::Error::from);
    let owner = rustix::fs::fchown(file, Some(rustix::fs::Uid::from_raw(1)), None).map_err(io::Error::from);
    let times = file.set_modified(std::time::SystemTime::UNIX_EPOCH);
    [
        ("emptying", emptied),
        ("appending", grown),
        ("overwriting", changed),
        ("change of mode", mode),
        ("change of owner", owner),
        ("change of times", times),
    ]
}
