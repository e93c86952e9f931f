//! `floor`: the least that the kernel has to do for a sandbox of the hardening profile, as a peer.
//!
//! One process without a runtime, a protocol, records, a shim or logs makes the same namespaces, control groups with the same limits, mounts,
//! masks, user and filter by bare system calls, as cheaply as we know: its children have its memory instead of a copy. It
//! gives up what a runtime exists for: nobody could attach, read logs, execute more, or take it over after a crash. What a runtime
//! takes longer is its own; what this takes is the machine's.
//!
//! | order | what is done, and measured |
//! | --- | --- |
//! | launch | from a slot made before: limits, a directory, the root's overlay, user, filter, `execve`, to the first byte |
//! | cold | the same, and the slot, one step after the other: what is done beside it takes a little less time, and no less work |
//! | rate | slots made, launched and released, each by one of the workers; nothing is made for two |
//! | kept | the same with the least that a shim, a record and a log are: a copy of this process, which stays with its sandbox from begin to end, and two files; it hears nothing and tells nobody |
//! | crowd | sandboxes that keep still, beside which the rate is measured again |
//! | exec | `/bin/true` by a process that has been put beside a container before, to its end |

mod ground;
mod raw;
mod slot;
mod stub;

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use self::ground::Ground;
use self::slot::Slot;
use super::host::{Host, SLEEP};
use super::milliseconds;
use super::oci::{ECHO, Order, Runner, TRUE, this_program};
use super::rate::per_second;
use super::released::Released;

/// The peer's name.
pub(super) const NAME: &str = "floor";

/// The peer of [`Order::Kept`].
pub(super) const KEPT: &str = "floor+shim";

/// Where the floor is measured.
#[derive(Debug, Clone)]
pub struct Floor {
    /// An EROFS layer of the root that [`super::rootfs`] makes.
    pub layer: PathBuf,
    /// An empty directory on the state's file system.
    pub dir: PathBuf,
}

/// The first kernel whose overlayfs takes layers that are attached nowhere.
const LEAST_KERNEL: (u32, u32) = (6, 15);

/// The process that measures it on this host; `None`, with a word about it, where the kernel is too old.
pub(super) fn runner(host: &Host) -> Result<Option<Runner>> {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    if numbers.next().zip(numbers.next()).is_none_or(|version| version < LEAST_KERNEL) {
        eprintln!("the floor is not measured on Linux {release}: it needs {}.{}", LEAST_KERNEL.0, LEAST_KERNEL.1);
        return Ok(None);
    }
    let mut command = Command::new(this_program()?);
    command.arg("floor").arg("--layer").arg(&host.layer).arg("--dir").arg(host.dir.join(NAME));
    Runner::spawn(NAME, command).map(Some)
}

impl Floor {
    /// Carries out the orders of standard input, and answers each. The process has one thread.
    pub fn obey(&self) -> Result<()> {
        std::fs::create_dir_all(&self.dir).context("make the floor's directory")?;
        let ground = Ground::make(&self.layer, &self.dir)?;
        let obeyed = obey_all(&ground);
        let removed = ground.remove();
        obeyed.and(removed)
    }
}

fn obey_all(ground: &Ground) -> Result<()> {
    let mut held = Vec::new();
    let obeyed = std::io::stdin().lines().enumerate().try_for_each(|(number, order)| {
        let order = serde_json::from_str(&order.context("read an order")?)?;
        println!("{}", obey(ground, number, order, &mut held)?);
        Ok(())
    });
    let released = held.into_iter().try_for_each(|slot: Slot<'_>| slot.release(true));
    obeyed.and(released)
}

fn obey<'a>(ground: &'a Ground, number: usize, order: Order, held: &mut Vec<Slot<'a>>) -> Result<f64> {
    match order {
        Order::Launch => launch(ground, &format!("launch-{number}"), false),
        Order::Cold => launch(ground, &format!("launch-{number}"), true),
        Order::Exec => {
            if held.is_empty() {
                held.push(hold(ground, "held")?);
            }
            held.first().context("it was made")?.exec(&TRUE).map(milliseconds)
        }
        Order::Crowd { count } => {
            while held.len() < count {
                held.push(hold(ground, &format!("crowd-{}", held.len()))?);
            }
            Ok(f64::from(u32::try_from(held.len())?))
        }
        Order::Rate { workers, duration } => rate(ground, workers, duration, run),
        Order::Kept { workers, duration } => rate(ground, workers, duration, run_kept),
    }
}

/// A container that keeps still.
fn hold<'a>(ground: &'a Ground, name: &str) -> Result<Slot<'a>> {
    let mut slot = Slot::make(ground, name)?;
    slot.start(&SLEEP)?;
    slot.executed()?;
    Ok(slot)
}

fn launch(ground: &Ground, name: &str, cold: bool) -> Result<f64> {
    let asked = Instant::now();
    let mut slot = Slot::make(ground, name)?;
    let begin = if cold { asked } else { Instant::now() };
    slot.start(&ECHO)?;
    slot.first_byte()?;
    let taken = begin.elapsed();
    slot.release(false)?;
    Ok(milliseconds(taken))
}

/// One sandbox from begin to end.
type Life = fn(&Ground, &str) -> Result<()>;

fn run(ground: &Ground, name: &str) -> Result<()> {
    let mut slot = Slot::make(ground, name)?;
    slot.start(&TRUE)?;
    slot.release(false)
}

fn run_kept(ground: &Ground, name: &str) -> Result<()> {
    let [record, log] = ["json", "log"].map(|kind| format!("{name}.{kind}"));
    slot::create(&ground.pods, &record, name)?;
    raw::reap(raw::fork(|| {
        slot::create(&ground.pods, &log, "")?;
        run(ground, name)
    })?)?;
    [log, record].iter().try_for_each(|file| {
        rustix::fs::unlinkat(&ground.pods, file, rustix::fs::AtFlags::empty())
            .with_context(|| format!("removal of {file}"))
    })
}

/// Each worker is a process, as a slot's children are the process's only ones that may share its memory.
fn rate(ground: &Ground, workers: usize, duration: Duration, life: Life) -> Result<f64> {
    let released = ground.at_home(Released::watch)?;
    let begin = Instant::now();
    let counts = (0..workers).map(|worker| fork_worker(ground, worker, duration, life)).collect::<Result<Vec<_>>>()?;
    let mut count = 0;
    for (worker, mut counts) in counts {
        let mut text = String::new();
        counts.read_to_string(&mut text).context("hear a worker")?;
        raw::reap(worker)?;
        count += text.parse::<usize>().context("a worker has failed; its words are above")?;
    }
    released.wait()?;
    Ok(per_second(count, begin.elapsed()))
}

/// Gives the process and where it writes how many it has done.
fn fork_worker(ground: &Ground, worker: usize, duration: Duration, life: Life) -> Result<(raw::Child, File)> {
    let (reader, mut writer) = std::io::pipe().context("make a pipe")?;
    let child = raw::fork(|| {
        let begin = Instant::now();
        let mut done = 0;
        while begin.elapsed() < duration {
            life(ground, &format!("rate-{worker}-{done}"))?;
            done += 1;
        }
        write!(writer, "{done}").context("tell the number")
    })?;
    Ok((child, File::from(std::os::fd::OwnedFd::from(reader))))
}
