//! A stub that stands by: what it is told, and what it makes before it is told which container to become.

use std::mem::ManuallyDrop;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::super::{rehearsal, slot};
use super::cgroups::{CgroupView, Cgroups};
use super::report::{Proceed, Report, Step};
use super::rootfs::{self, Tree};
use super::stage::Stage;
use super::{Order, Shared, begin_container, fail, make_container, tell};
use crate::cgroup::Group;
use crate::ids::Ids;
use crate::protocol::shim::StartFds;
use crate::protocol::{Connection, ProtocolError, Refusal};
use crate::seccomp;
use crate::spec::{ContainerSpec, Security};
use crate::sys::process;

/// What a stub that stands by is told: `R` the text of a start, `O` an [`Order`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Told<R, O> {
    /// Make a root of these descriptors and wait on: the layers, lowest first, and the writable directory.
    Assemble,
    /// This has been asked for; whether it comes to be is decided while it is read.
    Asked(R),
    /// An order of what was asked for last.
    AsAsked(StartFds),
    /// An order.
    Order(O),
}

/// [`Told`] as it is said.
pub(crate) type Telling<'a> = Told<&'a RawValue, &'a Order>;

/// [`Told`] as it is heard.
pub(crate) type Heard = Told<Box<Asked>, Box<Order>>;

/// What a stub reads of a start that was asked for.
#[derive(Debug, Deserialize)]
pub(crate) struct Asked {
    spec: ContainerSpec,
}

/// Runs in the child: becomes ready, waits for its order, makes the container and executes its program. Does not return.
/// `space`: the mount namespace that it starts from. `shim`: the shim's process, in whose namespaces it is to be once that says
/// [`Proceed`].
pub(crate) fn stand_by(
    (user, ids): (Option<&OwnedFd>, &Ids),
    (leaf, view): (&Group, &CgroupView),
    (dev, space): (&OwnedFd, &OwnedFd),
    shim: BorrowedFd<'_>,
    channel: OwnedFd,
) -> ! {
    let mut channel = ManuallyDrop::new(Connection::new(channel));
    let steps = |channel: &mut Connection| {
        begin_container(leaf)?;
        let enter = || {
            // Without the shim there is nobody for whom to stand by.
            let Ok((Proceed, _)) = channel.receive() else { process::exit_now(0) };
            slot::join(shim)
        };
        let stage = Stage::make(ids.base(), (dev, space), Cgroups { view, leaf: leaf.name() }, enter)?;
        let mut stage = ManuallyDrop::new(stage);
        if !has_word(channel) {
            rehearsal::of_order();
        }
        tell(channel, &Report::Ready, vec![])?;
        let (mut ahead, mut asked) = (None, None);
        let (order, fds) = loop {
            match channel.receive::<Heard>() {
                Ok((Told::Assemble, fds)) => ahead = assemble_ahead(fds, (user, ids), dev, &mut stage, channel)?,
                Ok((Told::Asked(start), _)) => asked = Some(start),
                Ok((Told::AsAsked(counts), fds)) => {
                    let message = "ordered as asked, but nothing was".into();
                    let Asked { spec } = *asked.take().ok_or(Refusal::Invalid { message })?;
                    break (Order { spec, counts }, fds);
                }
                Ok((Told::Order(order), fds)) => break (*order, fds),
                // Nothing that this build can read: the shim cannot either, and refuses it.
                Err(ProtocolError::Body(_)) => asked = None,
                // Nobody gives orders any more: the sandbox goes.
                Err(_) => process::exit_now(0),
            }
        };
        let security = &order.spec.security;
        let filter = seccomp::program(&security.seccomp, &security.capabilities);
        make_container(&Shared { user, ids, filter }, &order, fds, dev, (&mut stage, ahead), channel)
    };
    let Err(refusal) = steps(&mut channel);
    fail(&mut channel, refusal)
}

/// Whether somebody waits for what comes next.
fn has_word(channel: &Connection) -> bool {
    let mut ends = [PollFd::from_borrowed_fd(channel.socket(), PollFlags::IN)];
    poll(&mut ends, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Makes a root before it is asked for, with the stage in it; none where that fails: an order can do without. What it is made of
/// is the shim's too: whoever closes the last descriptor of a mount waits for it to be gone.
fn assemble_ahead(
    fds: Vec<OwnedFd>,
    (user, ids): (Option<&OwnedFd>, &Ids),
    dev: &OwnedFd,
    stage: &mut Stage<'_>,
    channel: &mut Connection,
) -> Result<Option<ManuallyDrop<Tree>>, Refusal> {
    let fds = ManuallyDrop::new(fds);
    let Some((writable, layers)) = fds.split_last() else {
        return Err(Refusal::Invalid { message: "a root is made of layers and a writable directory".into() });
    };
    match rootfs::assemble_ahead(layers, writable, user) {
        Ok(Some(root)) => {
            let tree = ManuallyDrop::new(rootfs::take(&stage.root, root)?);
            stage.place(&tree.root, ids.base(), dev, &Security::default())?;
            let copy = tree.root.try_clone().step("copy of a root")?;
            tell(channel, &Report::Assembled, vec![copy])?;
            Ok(Some(tree))
        }
        Ok(None) => tell(channel, &Report::Assembled, vec![]).map(|()| None),
        Err(refusal) => tell(channel, &Report::Failed { refusal }, vec![]).map(|()| None),
    }
}
