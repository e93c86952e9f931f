//! Steps that can kill; compiled for the churn tests only.
#![allow(unsafe_code)] // a mapping that outlives exec's preparations and is shared with forks is no Rust value

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, openat};
use rustix::mm::{MapFlags, ProtFlags, mmap};

use super::{ACTION, ARMED, COUNTDOWN, FILE, HOLD, PASSED, Point, REACHED, SLOT, STOPPED, VARIABLE, WORDS};

/// How long somebody holds still for a test that has gone away.
const PATIENCE: u32 = 20_000;
/// How often it looks.
const LOOK: Duration = Duration::from_micros(500);

static WORDS_MAPPED: OnceLock<&'static [AtomicU32; WORDS]> = OnceLock::new();
/// This process's slot; 0 for none. A stub has its shim's.
static OWN_SLOT: AtomicU32 = AtomicU32::new(0);

/// Maps the file that [`VARIABLE`] names.
pub(crate) fn join() {
    if let Some(path) = std::env::var_os(VARIABLE) {
        OpenOptions::new().read(true).write(true).open(path).ok().and_then(map);
    }
}

/// Maps the file [`FILE`], three levels above a shim's record directory; `slot` is the shim's own name.
pub(crate) fn join_beside(record: &OwnedFd, slot: &str) {
    let number = slot.rsplit('-').next().and_then(|number| number.parse().ok());
    OWN_SLOT.store(number.unwrap_or(0), Ordering::Relaxed);
    let path = format!("../../../{FILE}");
    openat(record, path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok().and_then(|file| map(file.into()));
}

fn map(file: File) -> Option<()> {
    let length = WORDS * size_of::<u32>();
    if file.metadata().ok()?.len() < length as u64 {
        return None;
    }
    let flags = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice, of a file that is at least as long (checked above) and that
    // the test never shortens.
    let start = unsafe { mmap(std::ptr::null_mut(), length, flags, MapFlags::SHARED, &file, 0) }.ok()?;
    // SAFETY: page-aligned, WORDS words long, never unmapped, and only ever reached by atomic operations.
    let words = unsafe { &*start.cast::<[AtomicU32; WORDS]>() };
    WORDS_MAPPED.set(words).ok()
}

/// The step was reached: counts it, and stops here when it is the armed one's turn. Makes only calls that are allowed
/// between fork and exec.
pub(crate) fn pass(point: Point) {
    let Some(words) = WORDS_MAPPED.get() else { return };
    let number = point as usize;
    words[PASSED + number].fetch_add(1, Ordering::Relaxed);
    let armed = number as u32 + 1;
    if words[ARMED].load(Ordering::Acquire) != armed || words[COUNTDOWN].fetch_sub(1, Ordering::AcqRel) != 1 {
        return;
    }
    words[ARMED].store(0, Ordering::Release);
    words[STOPPED + number].fetch_add(1, Ordering::Relaxed);
    words[SLOT].store(OWN_SLOT.load(Ordering::Relaxed), Ordering::Relaxed);
    let action = words[ACTION].load(Ordering::Acquire);
    words[REACHED].store(1, Ordering::Release);
    if action != HOLD {
        die();
    }
    for _ in 0..PATIENCE {
        if words[REACHED].load(Ordering::Acquire) == 2 {
            return;
        }
        std::thread::sleep(LOOK);
    }
}

fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // The first process of a PID namespace is immune to signals from within; its end is the same.
    crate::sys::process::exit_now(137)
}
