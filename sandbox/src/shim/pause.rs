//! Stopping containers and letting them go on: their leaf's freezer.

use std::time::Duration;

use super::attach::init_of;
use super::poller::Key;
use super::requests::cgroup_refusal;
use super::server::Shim;
use crate::protocol::Refusal;
use crate::protocol::shim::Reply;

/// How long the kernel may take to stop a container: nobody else is served meanwhile.
const DEADLINE: Duration = Duration::from_millis(100);

impl Shim {
    pub(super) fn pause(&mut self, name: &str) -> Result<Reply, Refusal> {
        let failed = |error: &_| cgroup_refusal("pause of the container", error);
        let (key, _) = self.running_key(name)?;
        let Some(container) = init_of(&mut self.processes, key) else { return Ok(Reply::Done) };
        if !container.leaf.freeze_within(DEADLINE).map_err(|error| failed(&error))? {
            container.leaf.thaw().map_err(|error| failed(&error))?;
            let message = format!("a process did not stop within {} ms; all go on", DEADLINE.as_millis());
            return Err(Refusal::Failed { operation: "pause of the container".into(), message, errno: None });
        }
        container.paused = true;
        Ok(Reply::Done)
    }

    pub(super) fn resume(&mut self, name: &str) -> Result<Reply, Refusal> {
        let (key, _) = self.running_key(name)?;
        let Some(container) = init_of(&mut self.processes, key) else { return Ok(Reply::Done) };
        if container.paused {
            container.leaf.thaw().map_err(|error| cgroup_refusal("resumption of the container", &error))?;
            container.paused = false;
        }
        Ok(Reply::Done)
    }

    /// Refuses what a paused container would hold up for as long as it is.
    pub(super) fn not_paused(&self, key: Key) -> Result<(), Refusal> {
        use super::container::{Process, Role};
        match self.processes.get(&key) {
            Some(Process { role: Role::Init(container), .. }) if container.paused => {
                Err(Refusal::Invalid { message: format!("container {} is paused", container.spec.name) })
            }
            _ => Ok(()),
        }
    }
}
