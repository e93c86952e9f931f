//! `mount`: an image of ten layers is here; its root is asked for, until it can be entered.
//!
//! Ours is what a start does for it: clones of the layers' mounts from the keeper, a directory for what is written, and the
//! overlay as a container's first process assembles it, shifted into a user namespace's ids. On a host that has run the image
//! before, clones of its layers wait in the agent (`sandbox::namespace`, layers.rs), and a sandbox of the pool has a writable
//! directory, whatever the image: `mount.p50` is what a start waits for then (the directory is moved to where it belongs, the
//! layers are shifted, the overlay is made and attached); in `mount.whole` nothing waits, and both are made.
//! Roots that the pool makes ahead of an image that it expects are not measured here: nothing is left to do for them.
//!
//! The peer is containerd's `ctr snapshot prepare` with its overlayfs snapshotter, and the mount that it asks for.

mod keeper;
mod user;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use sandbox::shim::{assemble, furnish};
use sandbox::spec::Layer;
use sandbox::sys::mount;
use sandbox::sys::spread::Spread;

use self::keeper::Talk;
use self::user::UserNamespace;
use super::containerd::{Containerd, Order};
use super::figure::{Figure, Quantity, lower, quantile};
use super::host::Host;
use super::milliseconds;

/// What is measured here.
pub const FIGURES: [Quantity; 2] = [lower("mount.p50", "ms"), lower("mount.whole", "ms")];

/// Of ours.
const ROUNDS: usize = 500;
/// Of the peer.
const PEER_ROUNDS: usize = 30;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where; with the lowest layer.
    pub host: Host,
    /// The other layers.
    pub layers: Vec<PathBuf>,
    /// The peer, with an image of the same layers.
    pub containerd: Option<Containerd>,
}

/// Measures.
pub async fn run(options: &Options, wanted: impl Fn(&str) -> bool) -> Result<Vec<Figure>> {
    let figures: Vec<Quantity> = FIGURES.into_iter().filter(|figure| wanted(figure.name)).collect();
    if figures.is_empty() {
        return Ok(Vec::new());
    }
    let layer = |path: &PathBuf| Layer { id: format!("sha256:{}", path.display()), path: path.clone() };
    let layers: Vec<Layer> = [&options.host.layer].into_iter().chain(&options.layers).map(layer).collect();
    let dir = options.host.dir.clone();
    let whether_made: Vec<bool> = figures.iter().map(|figure| figure.name != FIGURES[1].name).collect();
    let measure = async |ours: &super::host::Backend| {
        let socket = ours.keeper_socket();
        tokio::task::spawn_blocking(move || apart(&dir, &socket, &layers, &whether_made)).await?
    };
    // A sandbox that stands by has had the keeper started.
    let own = options.host.with_backend(1, measure).await?;
    let mut theirs = Vec::new();
    if let Some(containerd) = &options.containerd {
        let mut runner = containerd.start()?;
        let times = (0..PEER_ROUNDS).map(|_| runner.ask(Order::Mount)).collect::<Result<Vec<f64>>>()?;
        theirs.push(("containerd", quantile(&times, 0.5)));
    }
    let beside = figures.iter().zip(&own);
    Ok(beside
        .flat_map(|(figure, times)| figure.beside_all(quantile(times, 0.5), times.len(), theirs.clone()))
        .collect())
}

/// Milliseconds of each round, for each of `whether_made`; on a thread with a mount namespace of its own, which ends with it.
fn apart(dir: &Path, socket: &Path, layers: &[Layer], whether_made: &[bool]) -> Result<Vec<Vec<f64>>> {
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).context("keep mounts to this namespace")?;
            let user = UserNamespace::make()?;
            whether_made.iter().map(|&made| rounds(dir, socket, layers, &user, made)).collect()
        });
        measuring.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the measurement panicked")))
    })
}

/// `made`: clones of the layers and the writable directory wait.
fn rounds(dir: &Path, socket: &Path, layers: &[Layer], user: &UserNamespace, made: bool) -> Result<Vec<f64>> {
    let mut keeper = Talk::connect(socket)?;
    let root = dir.join("root");
    std::fs::create_dir_all(&root).context("make a place for roots")?;
    // The layers are mounted once a host.
    drop(keeper.mount(layers)?);
    let (waiting, pods) = (Shelf::make(dir.join("waiting"))?, Shelf::make(dir.join("roots"))?);
    let mut times = Vec::with_capacity(ROUNDS);
    for number in 0..ROUNDS {
        let name = number.to_string();
        // A pod has a directory before it has containers, and a sandbox of the pool that of its first one.
        let writable = pods.child(&name)?.join("writable");
        let ahead = made.then(|| waiting.child(&name)).transpose()?;
        if let Some(ahead) = &ahead {
            furnish(ahead).context("furnish a writable directory")?;
        }
        let at_hand = made.then(|| keeper.mount(layers)).transpose()?;
        let begin = Instant::now();
        let place = directory(&root)?;
        match &ahead {
            Some(ahead) => std::fs::rename(ahead, &writable).context("move a writable directory")?,
            None => std::fs::create_dir(&writable).context("make a writable directory")?,
        }
        let clones = at_hand.map_or_else(|| keeper.mount(layers), Ok)?;
        let upper = mount::clone_tree(directory(&writable)?, "", false).context("clone a writable directory")?;
        let tree = assemble(&place, &clones, Some(&upper), Some(user.descriptor()), 0)
            .map_err(|refusal| anyhow::anyhow!("a root was refused: {refusal:?}"))?;
        times.push(milliseconds(begin.elapsed()));
        ensure!(root.join("bin/true").exists() && root.join("layer-9").exists(), "the root lacks a layer");
        drop(tree);
        unmount(&root, UnmountFlags::DETACH).context("unmount a root")?;
        drop((clones, upper, place));
        std::fs::remove_dir_all(pods.0.join(&name)).context("remove a pod's directory")?;
    }
    Ok(times)
}

/// A directory whose children are spread over the disk, as the agent has those of pods.
struct Shelf(PathBuf, Spread);

impl Shelf {
    fn make(parent: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&parent).context("make a directory of directories")?;
        let spread = Spread::of(&parent);
        if let Err(error) = spread.prepare() {
            eprintln!("the pods' directories are not spread over the disk: {error}");
        }
        Ok(Self(parent, spread))
    }

    fn child(&self, name: &str) -> Result<PathBuf> {
        self.1.make(name, 0o711).context("make a pod's directory")?;
        Ok(self.0.join(name))
    }
}

fn directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).with_context(|| format!("open {}", path.display()))
}

/// A namespace of a process, by the name that /proc has for it.
fn namespace(pid: u32, kind: &str) -> Result<File> {
    File::open(format!("/proc/{pid}/ns/{kind}")).with_context(|| format!("open the {kind} namespace of {pid}"))
}
