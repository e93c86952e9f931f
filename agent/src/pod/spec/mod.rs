//! From a Pod, an image and the values behind references to what a sandbox is told. Pure but for the image's own
//! `passwd` and `group`, which are read through a port.

pub mod apparmor;
mod build;
pub mod env;
pub mod expand;
pub mod fields;
mod oom;
pub mod resources;
pub mod scalars;
pub mod security;
pub mod signal;
pub mod sysctls;
pub mod user;

use std::borrow::Cow;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

pub use self::build::{container, hostname, sandbox};
use self::resources::{Amounts, Policy};
use super::ephemeral;
use crate::cpus::Cpus;
use crate::ports::Address;
use crate::resolved::Resolved;
use crate::trust::Trust;

/// What a pod may learn and have of its host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostFacts {
    /// Addresses, preferred first.
    pub ips: Vec<String>,
    /// What pods may have of it together.
    pub capacity: Amounts,
    /// Its whole memory in bytes; more than pods may have where huge pages are set aside.
    pub memory: u64,
    /// Sizes of huge pages, in bytes, of which each container is limited to what it asks for.
    pub page_sizes: Vec<u64>,
    /// Its CPUs, where containers may have some for themselves.
    pub cpus: Option<Cpus>,
    /// What it does beyond what pods ask for.
    pub policy: Policy,
    /// Its name: that of pods in its network.
    pub hostname: String,
    /// What pods may have of it.
    pub trust: Trust,
}

impl HostFacts {
    /// The host's place in the network, which pods in its network share.
    pub fn address(&self) -> Result<Address, String> {
        let first = self.ips.first().ok_or("the host has no address that a pod could share")?;
        let ip: IpAddr = first.parse().map_err(|_| format!("the host's address {first:?} is none"))?;
        Ok(Address { ip, gateway: ip, prefix: if ip.is_ipv4() { 32 } else { 128 } })
    }
}

/// Everything that a specification is made of.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Values behind its references.
    pub resolved: &'a Resolved,
    /// Its host.
    pub host: &'a HostFacts,
    /// Its address, once known.
    pub ip: Option<IpAddr>,
}

impl<'a> Context<'a> {
    /// The pod's specification.
    pub fn spec(&self) -> Option<&'a PodSpec> {
        self.pod.spec.as_ref()
    }

    /// The pod's namespace.
    pub fn namespace(&self) -> &'a str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// It lives in its host's network.
    pub fn has_host_network(&self) -> bool {
        self.spec().is_some_and(|spec| spec.host_network == Some(true))
    }

    /// A container by name, of any kind.
    pub fn container(&self, name: &str) -> Option<Cow<'a, Container>> {
        let spec = self.spec()?;
        let plain = spec.init_containers.iter().flatten().chain(&spec.containers).find(|c| c.name == name);
        let added = || ephemeral::find(self.pod, name).map(ephemeral::as_container);
        plain.map(Cow::Borrowed).or_else(|| added().map(Cow::Owned))
    }

    /// `NAME_NAMESPACE(UID)`.
    pub fn display(&self) -> String {
        let meta = &self.pod.metadata;
        let text = |value: &'a Option<String>| value.as_deref().unwrap_or_default();
        format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid))
    }
}

/// Why a specification cannot be made. Worded as a kubelet words it; the reason tells which waiting reason is shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A ConfigMap is not there.
    #[error("configmap {name:?} not found")]
    NoConfigMap {
        /// Its name.
        name: String,
    },
    /// A Secret is not there.
    #[error("secret {name:?} not found")]
    NoSecret {
        /// Its name.
        name: String,
    },
    /// A key is not there.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// The object's namespace.
        namespace: String,
        /// The object's name.
        name: String,
        /// The key.
        key: String,
    },
    /// A value must be text to be an environment variable.
    #[error("key {key} in {kind} {name} is not valid UTF-8, so it cannot be an environment variable")]
    NotText {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// The object's name.
        name: String,
        /// The key.
        key: String,
    },
    /// A field reference names nothing that exists.
    #[error("field {path:?} is not supported")]
    NoField {
        /// The path.
        path: String,
    },
    /// A quantity is none.
    #[error("resources of container {container:?} are malformed")]
    Quantity {
        /// Which container.
        container: String,
        /// Why.
        #[source]
        source: crate::quantity::QuantityError,
    },
    /// `runAsNonRoot` does not hold.
    #[error("{message} (pod: \"{pod}\", container: {container})")]
    Root {
        /// As a kubelet says it.
        message: String,
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
    /// The image's or the pod's user cannot be resolved.
    #[error("could not resolve the user of container {container:?}")]
    User {
        /// The container.
        container: String,
        /// Why.
        #[source]
        source: user::UserError,
    },
    /// Neither the pod nor the image names a program.
    #[error("no command specified")]
    NoCommand,
    /// A working directory that is no absolute path.
    #[error("working directory {path:?} is not an absolute path")]
    WorkingDirectory {
        /// The path.
        path: String,
    },
    /// A signal that does not exist.
    #[error("stop signal {signal:?} is unknown")]
    Signal {
        /// As written.
        signal: String,
    },
    /// The image runs as an id that the pod's user namespace lacks.
    #[error(
        "the image's user of container {container:?} has id {id}, which this pod's user namespace lacks: set runAsUser: {uid} and runAsGroup: {gid} in the container's securityContext"
    )]
    HighId {
        /// The container.
        container: String,
        /// The id.
        id: u32,
        /// Its user.
        uid: u32,
        /// Its user's group.
        gid: u32,
    },
    /// A mount that names no volume, or leaves its volume.
    #[error("{message}")]
    Mount {
        /// What is wrong.
        message: String,
    },
}

impl SpecError {
    /// The waiting reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::User { .. } | Self::NoCommand | Self::WorkingDirectory { .. } | Self::HighId { .. } => {
                "CreateContainerError"
            }
            _ => "CreateContainerConfigError",
        }
    }
}
