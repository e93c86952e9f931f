//! The network as a pod task sees it.

use std::os::fd::BorrowedFd;

use async_trait::async_trait;
use sandbox::spec::SandboxId;

use super::{Address, Network};
use crate::ports::{PodNetwork, PortError};

#[async_trait]
impl PodNetwork for Network {
    async fn attach(&self, sandbox: &SandboxId, netns: BorrowedFd<'_>) -> Result<Address, PortError> {
        Network::attach(self, &sandbox.0, netns).await.map_err(|error| PortError::new("connect the sandbox", &error))
    }

    async fn detach(&self, sandbox: &SandboxId) -> Result<(), PortError> {
        Network::detach(self, &sandbox.0).await.map_err(|error| PortError::new("disconnect the sandbox", &error))
    }

    async fn reconcile(&self, live: &[SandboxId]) -> Result<(), PortError> {
        let live: Vec<String> = live.iter().map(|id| id.0.clone()).collect();
        let freed = Network::reconcile(self, &live).await;
        freed.map(|_| ()).map_err(|error| PortError::new("reconcile the network", &error))
    }
}
