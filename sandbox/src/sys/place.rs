//! On which processors a process runs, where the kernel's own choice costs time.
//!
//! A process that is woken waits as a rule for the processor of who woke it unless another one is idle; and a new one for its
//! parent's. In a virtual machine an idle processor looks like one that the host has taken away (`vcpu_is_preempted`, as it halts), so
//! that what was meant to be done beside is done afterwards. Who hands work on and goes on itself can say otherwise.

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// Processors that a process may run on.
#[derive(Debug, Clone, Copy)]
pub struct Processors(CpuSet);

impl Processors {
    /// Those that somebody has chosen for the calling thread; any where nobody has: what its control group allows is that one's to
    /// say, and another one's for what it forks into that.
    pub fn chosen() -> Option<Self> {
        let own = sched_getaffinity(None).ok()?;
        let mut any = CpuSet::new();
        (0..CpuSet::MAX_CPU).for_each(|number| any.set(number));
        // As many as its control group allows.
        sched_setaffinity(None, &any).ok()?;
        if sched_getaffinity(None).ok()? == own {
            return Some(Self(any));
        }
        let chosen = Self(own);
        chosen.take();
        Some(chosen)
    }

    /// Lets the calling thread run on these, and what it forks from now on.
    pub fn take(&self) {
        let _ = sched_setaffinity(None, &self.0);
    }
}

/// Moves a process that waits for the caller's processor, or will, to another one, where there is one. It stays away until it is
/// told otherwise, and so do its children.
pub fn elsewhere(process: Pid) {
    let _ = Away::send(process);
}

/// A process that was moved away.
#[derive(Debug)]
pub struct Away {
    process: Pid,
    /// Where it might run before.
    before: CpuSet,
}

impl Away {
    /// As [`elsewhere`]; `None` where there was nothing to be done.
    pub fn send(process: Pid) -> Option<Self> {
        let before = sched_getaffinity(Some(process)).ok()?;
        let mut processors = before;
        processors.unset(sched_getcpu());
        if processors == before || processors.count() == 0 {
            return None;
        }
        sched_setaffinity(Some(process), &processors).ok()?;
        Some(Self { process, before })
    }

    /// Gives it the processors back that it had. It must not have been collected, so that its number is its own.
    pub fn back(self) {
        let _ = sched_setaffinity(Some(self.process), &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_moved_elsewhere_gets_all_of_its_processors_back() {
        // A thread's own mask, so that other tests keep theirs.
        std::thread::spawn(|| {
            let before = sched_getaffinity(None).unwrap();
            let chosen = Processors::chosen().unwrap();
            elsewhere(rustix::thread::gettid());
            let moved = sched_getaffinity(None).unwrap();
            assert_eq!(moved.count(), if before.count() > 1 { before.count() - 1 } else { 1 });
            chosen.take();
            assert_eq!(sched_getaffinity(None).unwrap(), before);
            let away = Away::send(rustix::thread::gettid());
            assert_eq!(away.is_some(), before.count() > 1);
            assert_eq!(sched_getaffinity(None).unwrap().count(), moved.count());
            if let Some(away) = away {
                away.back();
            }
            assert_eq!(sched_getaffinity(None).unwrap(), before);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn processors_that_were_taken_away_before_stay_away() {
        std::thread::spawn(|| {
            elsewhere(rustix::thread::gettid());
            let fewer = sched_getaffinity(None).unwrap();
            let chosen = Processors::chosen().unwrap();
            assert_eq!(sched_getaffinity(None).unwrap(), fewer);
            chosen.take();
            assert_eq!(sched_getaffinity(None).unwrap(), fewer);
        })
        .join()
        .unwrap();
    }
}
