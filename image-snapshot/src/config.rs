//! What the owner of a store decides: where it is, what it may spend, whom it trusts.

use std::{path::PathBuf, time::Duration};

use crate::convert::Limits;

/// Settings of an [`Images`](crate::Images) store.
#[derive(Debug, Clone)]
pub struct ImagesConfig {
    /// Directory of the store; made (0700) when missing. One process owns it at a time.
    pub root: PathBuf,
    /// Which entry of an image index is ours.
    pub platform: Platform,
    /// Registries (`host[:port]`) spoken to in plain HTTP. Loopback addresses are without being listed, unless certificates are given for them.
    pub insecure_registries: Vec<String>,
    /// Further settings per registry.
    pub registries: Vec<RegistryHost>,
    /// Bounds on what an image may make us spend.
    pub limits: Limits,
    /// How long we wait, and how often.
    pub timeouts: Timeouts,
    /// How much runs at once.
    pub concurrency: Concurrency,
    /// Which directories `oci-layout:` references of ordinary pods may name.
    pub local_sources: LocalSources,
    /// Where the bytes of an image are parsed.
    pub converter: Converter,
    /// Who shares the files of layers.
    pub copies: Copies,
}

impl ImagesConfig {
    /// Defaults for a store at `root`: this machine's platform, no insecure registries, no local sources.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            platform: Platform::host(),
            insecure_registries: Vec::new(),
            registries: Vec::new(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            concurrency: Concurrency::default(),
            local_sources: LocalSources::Refused,
            converter: Converter::InProcess,
            copies: Copies::Shared,
        }
    }
}

/// Operating system and processor, in the image specification's (Go's) words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, ….
    pub architecture: String,
    /// `v7`, `v8`, …; empty when it does not matter.
    pub variant: String,
}

impl Platform {
    /// The platform this program was built for.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "powerpc64" => ("ppc64le", ""),
            "loongarch64" => ("loong64", ""),
            other => (other, ""),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.to_owned() }
    }
}

/// Settings for one registry.
#[derive(Debug, Clone, Default)]
pub struct RegistryHost {
    /// `host[:port]` as it stands in references.
    pub host: String,
    /// Endpoints (`http://` or `https://` URLs) tried in order before the registry itself.
    pub mirrors: Vec<String>,
    /// PEM certificates trusted besides the system's.
    pub ca_certificates: Vec<Vec<u8>>,
    /// Whoever answers in TLS is taken for it, whatever the certificate. What it sends is checked against digests as always, but credentials for
    /// it and what a tag means are in the hands of whoever answers. It holds for this host alone: redirects to others and token services
    /// elsewhere are verified as usual, or not followed.
    pub unverified: bool,
}

/// Waiting times.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// TCP and TLS set-up.
    pub connect: Duration,
    /// From request to response header, and longest silence within a body.
    pub progress: Duration,
    /// What a layer may take from one server, however small it is. A larger one may take a second more for each 32 KiB.
    pub layer: Duration,
    /// Tries of one request (the first included) before giving up on failures that may pass.
    pub attempts: u32,
    /// First pause between tries; doubles each time, with jitter.
    pub backoff: Duration,
    /// Longest pause; a registry's `Retry-After` beyond it ends the trying.
    pub backoff_max: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            progress: Duration::from_secs(60),
            layer: Duration::from_secs(10 * 60),
            attempts: 5,
            backoff: Duration::from_millis(250),
            backoff_max: Duration::from_secs(20),
        }
    }
}

/// Parallelism.
#[derive(Debug, Clone)]
pub struct Concurrency {
    /// Layers of one image that download at once.
    pub layers_per_image: usize,
    /// Layers that download at once in the whole store.
    pub layers_in_all: usize,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self { layers_per_image: 3, layers_in_all: 6 }
    }
}

/// Which host paths a reference may name (`oci-layout:PATH`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalSources {
    /// None: a pod's author must not read host paths.
    Refused,
    /// Paths below one of these directories (compared after resolving symbolic links).
    Under(Vec<PathBuf>),
}

/// Who shares the files of layers, and with them their pages in memory: how long a read takes tells whether somebody else has read the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Copies {
    /// Everybody: one file a layer.
    #[default]
    Shared,
    /// One trust domain: a file a layer and domain ([`Images::of_domain`](crate::Images::of_domain)), brought by that domain's own right or
    /// copied from what the host's operator has prepared for all; nothing that one domain has brought serves another.
    PerDomain,
}

/// Where untrusted archives are decompressed and parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Converter {
    /// On threads of this process.
    InProcess,
    /// In a converter process per layer, which gives up its privileges first: `program args…`, whose main calls
    /// [`run_converter`](crate::convert::run_converter).
    Program {
        /// Absolute path of the program.
        program: PathBuf,
        /// Its arguments.
        args: Vec<String>,
    },
}
