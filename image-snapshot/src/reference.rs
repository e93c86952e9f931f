//! Image names, as Kubernetes and `docker pull` write them, and the local forms `oci-layout:PATH[:tag]`,
//! `oci-archive:PATH[:tag]` and `docker-archive:PATH[:name]`.

use std::{fmt, path::PathBuf, str::FromStr};

use crate::{Digest, digest::DigestError};

/// The registry that a name without one means.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag that a name without tag and digest means.
pub const DEFAULT_TAG: &str = "latest";

const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A parsed image name. [`fmt::Display`] gives the full, normalised form, which is the key of the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reference {
    /// In a registry.
    Registry(RegistryReference),
    /// In a local directory or file.
    Local(LocalReference),
}

/// `registry/repository[:tag][@digest]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegistryReference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A local image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LocalReference {
    /// What lies at the path.
    pub kind: LocalKind,
    /// Absolute path.
    pub path: PathBuf,
    /// Which image of several: a tag, or for docker archives a whole name.
    pub name: Option<String>,
}

/// Shapes of a local image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LocalKind {
    /// A directory with `oci-layout` and `index.json`.
    OciLayout,
    /// The same in a tar file.
    OciArchive,
    /// What `docker save` writes.
    DockerArchive,
}

impl LocalKind {
    const ALL: [Self; 3] = [Self::OciLayout, Self::OciArchive, Self::DockerArchive];

    fn scheme(self) -> &'static str {
        match self {
            Self::OciLayout => "oci-layout",
            Self::OciArchive => "oci-archive",
            Self::DockerArchive => "docker-archive",
        }
    }
}

/// Why a string names no image. Each message says which part is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("image name is empty")]
    Empty,
    /// The registry part is no host name, address or port.
    #[error("image name {name:?}: registry {registry:?} is not host[:port]")]
    Registry {
        /// The whole name.
        name: String,
        /// The part.
        registry: String,
    },
    /// Upper-case letters, as in `Repo/Name`.
    #[error("image name {name:?}: repository {repository:?} must be lower case")]
    UpperCase {
        /// The whole name.
        name: String,
        /// The part.
        repository: String,
    },
    /// A path component breaks the grammar.
    #[error(
        "image name {name:?}: repository component {component:?} is not [a-z0-9]+ joined by '.', '_', '__' or dashes"
    )]
    Repository {
        /// The whole name.
        name: String,
        /// The component.
        component: String,
    },
    /// Registry and repository together are too long.
    #[error("image name {name:?}: longer than 255 characters")]
    TooLong {
        /// The whole name.
        name: String,
    },
    /// The tag breaks the grammar.
    #[error("image name {name:?}: tag {tag:?} is not 1 to 128 of [A-Za-z0-9_.-] that begin with neither '.' nor '-'")]
    Tag {
        /// The whole name.
        name: String,
        /// The tag.
        tag: String,
    },
    /// What follows `@` is no digest.
    #[error("image name {name:?}: bad digest")]
    Digest {
        /// The whole name.
        name: String,
        /// Why.
        #[source]
        source: DigestError,
    },
    /// 64 hex digits are an image id, which cannot be pulled.
    #[error("image name {name:?}: 64 hex digits are an image id, not a repository")]
    ImageId {
        /// The whole name.
        name: String,
    },
    /// A local reference without an absolute path.
    #[error("image name {name:?}: {scheme}: wants an absolute path without '..'")]
    LocalPath {
        /// The whole name.
        name: String,
        /// Which scheme.
        scheme: &'static str,
    },
}

impl RegistryReference {
    /// `host[:port]` as in the name (`docker.io`, not the host that serves it).
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path within the registry, `library/` included.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if there is one; `latest` is filled in when neither tag nor digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if there is one. It decides; the tag is then only decoration.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same repository under another host's name, for matching credentials of mirrors.
    pub(crate) fn served_by(&self, host: &str) -> Self {
        Self { registry: host.to_owned(), ..self.clone() }
    }

    /// `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Display for LocalReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.scheme(), self.path.display())?;
        match &self.name {
            Some(name) => write!(f, ":{name}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(r) => r.fmt(f),
            Self::Local(l) => l.fmt(f),
        }
    }
}

impl Reference {
    /// Whether the name fixes the content, so that a tag need never be resolved again.
    pub fn is_pinned(&self) -> bool {
        matches!(self, Self::Registry(r) if r.digest.is_some())
    }

    /// Whether Kubernetes defaults the pull policy to `Always`: tag `latest`, or none, and no digest.
    pub fn defaults_to_always(&self) -> bool {
        match self {
            Self::Registry(r) => r.digest.is_none() && r.tag.as_deref() == Some(DEFAULT_TAG),
            Self::Local(_) => false,
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(s: &str) -> Result<Self, ReferenceError> {
        for kind in LocalKind::ALL {
            if let Some(rest) = s.strip_prefix(kind.scheme()).and_then(|r| r.strip_prefix(':')) {
                // `oci-layout:8080/x` could in theory be a registry; a local path is absolute.
                if rest.starts_with('/') || !rest.starts_with(|c: char| c.is_ascii_digit()) {
                    return parse_local(s, kind, rest).map(Self::Local);
                }
            }
        }
        parse_registry(s).map(Self::Registry)
    }
}

fn parse_local(whole: &str, kind: LocalKind, rest: &str) -> Result<LocalReference, ReferenceError> {
    let bad_path = || ReferenceError::LocalPath { name: whole.to_owned(), scheme: kind.scheme() };
    // The name begins at the first colon after the last slash of the path; docker archives name images with
    // slashes, so there the first colon of all decides.
    let colon = match kind {
        LocalKind::DockerArchive => rest.find(':'),
        _ => {
            let after_slash = rest.rfind('/').map_or(0, |i| i + 1);
            rest[after_slash..].find(':').map(|i| i + after_slash)
        }
    };
    let (path, name) = match colon {
        Some(i) => (&rest[..i], Some(&rest[i + 1..])),
        None => (rest, None),
    };
    let clean = path.starts_with('/') && path.len() > 1 && !path.contains('\0') && path.split('/').all(|c| c != "..");
    if !clean {
        return Err(bad_path());
    }
    if let Some(name) = name {
        let ok = match kind {
            LocalKind::DockerArchive => parse_registry(name).is_ok(),
            _ => is_tag(name),
        };
        if !ok {
            return Err(ReferenceError::Tag { name: whole.to_owned(), tag: name.to_owned() });
        }
    }
    Ok(LocalReference { kind, path: PathBuf::from(path), name: name.map(str::to_owned) })
}

fn parse_registry(s: &str) -> Result<RegistryReference, ReferenceError> {
    let name = || s.to_owned();
    if s.is_empty() {
        return Err(ReferenceError::Empty);
    }
    let (rest, digest) = match s.split_once('@') {
        None => (s, None),
        Some((rest, digest)) => {
            let digest = digest.parse().map_err(|source| ReferenceError::Digest { name: name(), source })?;
            (rest, Some(digest))
        }
    };
    let after_slash = rest.rfind('/').map_or(0, |i| i + 1);
    let (path, tag) = match rest[after_slash..].find(':') {
        None => (rest, None),
        Some(i) => (&rest[..after_slash + i], Some(&rest[after_slash + i + 1..])),
    };
    if let Some(tag) = tag
        && !is_tag(tag)
    {
        return Err(ReferenceError::Tag { name: name(), tag: tag.to_owned() });
    }
    // As docker does: the first component is a registry if it looks like a host.
    let (registry, repository) = match path.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, path),
    };
    if !is_host(registry) {
        return Err(ReferenceError::Registry { name: name(), registry: registry.to_owned() });
    }
    let registry = match registry {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    if repository.len() == 64 && repository.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(ReferenceError::ImageId { name: name() });
    }
    for component in repository.split('/') {
        if is_component(component) {
            continue;
        }
        return Err(if component.bytes().any(|b| b.is_ascii_uppercase()) {
            ReferenceError::UpperCase { name: name(), repository: repository.to_owned() }
        } else {
            ReferenceError::Repository { name: name(), component: component.to_owned() }
        });
    }
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    if registry.len() + 1 + repository.len() > MAX_NAME {
        return Err(ReferenceError::TooLong { name: name() });
    }
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some(DEFAULT_TAG.to_owned()),
    };
    Ok(RegistryReference { registry: registry.to_owned(), repository, tag, digest })
}

fn looks_like_host(s: &str) -> bool {
    s == "localhost" || s.contains(['.', ':', '[']) || s.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_host(s: &str) -> bool {
    let (host, port) = if let Some(rest) = s.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match port.strip_prefix(':') {
            None => return port.is_empty(),
            Some(port) => ("v6", Some(port)),
        }
    } else {
        match s.split_once(':') {
            None => (s, None),
            Some((host, port)) => (host, Some(port)),
        }
    };
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let port_ok = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok();
    host.split('.').all(label) && port.is_none_or(port_ok)
}

/// `[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*`
fn is_component(s: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = s.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alnum(*first) || !alnum(*last) {
        return false;
    }
    let mut separators = bytes.split(|b| alnum(*b)).filter(|run| !run.is_empty());
    separators.all(|run| run == b"." || run == b"_" || run == b"__" || run.iter().all(|b| *b == b'-'))
}

/// `[\w][\w.-]{0,127}`
fn is_tag(s: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    s.len() <= MAX_TAG && s.bytes().next().is_some_and(word) && s.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests;
