//! Why the agent cannot run.

use crate::cpus::CpusError;
use crate::devices::PolicyError;
use crate::host::facts::FactsError;
use crate::host::kernel::KernelError;
use crate::ledger::LedgerError;
use crate::link::IdentityError;
use crate::meter::MeterError;
use crate::network::NetworkError;
use crate::pod::volumes::disk::VolumeError;
use crate::prepared::RecordError;
use crate::recover::RecoverError;

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Not root.
    #[error("the agent must run as root: it makes namespaces, mounts and control groups")]
    NotRoot,
    /// The operator's file of devices.
    #[error("could not use the device policy (--device-policy)")]
    Devices(#[source] PolicyError),
    /// CPUs cannot be given out.
    #[error("could not use the static CPU policy (--cpu-manager-policy)")]
    Cpus(#[source] CpusError),
    /// The kernel cannot run pods.
    #[error("could not find in this kernel what pods need")]
    Kernel(#[source] KernelError),
    /// A directory could not be made.
    #[error("could not make directory {path:?}")]
    Directory {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The host has not joined, or its identity cannot be read.
    #[error("this host's identity")]
    Identity(#[source] IdentityError),
    /// The id given is not the one in the certificate.
    #[error("--host-id {given} is not the id that this host joined with, {joined}")]
    OtherHost {
        /// By flag.
        given: String,
        /// By certificate.
        joined: String,
    },
    /// Another agent works here.
    #[error(
        "another agent runs with state directory {path:?}: a host has one; for a second one give it directories of its own"
    )]
    InUse {
        /// Whose.
        path: std::path::PathBuf,
    },
    /// The state directory cannot be taken.
    #[error("could not lock {path:?}")]
    Lock {
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The port for metrics and health is not to be had.
    #[error("could not listen on {address} (--http-listen)")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// /proc cannot be read.
    #[error("could not learn about this host")]
    Facts(#[source] FactsError),
    /// Secrets would reach a disk.
    #[error("could not keep secrets in memory only")]
    Secrets(#[source] VolumeError),
    /// The ledger.
    #[error("could not open the ledger")]
    Ledger(#[source] LedgerError),
    /// The network.
    #[error("could not open the pods' network")]
    Network(#[source] NetworkError),
    /// The sandboxes.
    #[error("could not open the sandboxes")]
    Sandboxes(#[source] sandbox::contract::SandboxError),
    /// Layers would be converted as root.
    #[error(
        "could not find the agent's own program, which converts layers without privileges: /proc must be mounted, and the program's file still be there"
    )]
    Program(#[source] std::io::Error),
    /// The images.
    #[error("could not open the image store")]
    Images(#[source] image_snapshot::ImageError),
    /// What is kept ready.
    #[error("could not read which images are to be kept")]
    Prepared(#[source] RecordError),
    /// The meter.
    #[error("could not open the usage meter")]
    Meter(#[source] MeterError),
    /// What was there before could not be taken back.
    #[error("could not recover this host's pods")]
    Recover(#[source] RecoverError),
    /// A thread ended early.
    #[error("starting was interrupted")]
    Interrupted,
}
