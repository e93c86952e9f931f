//! Who asks, and what they may see.

use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::{Problem, Shared};

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User name.
    pub user: String,
    /// Groups.
    pub groups: Vec<String>,
}

/// Why a request is turned away.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The token is nobody's.
    #[error("the token is not valid")]
    Unauthenticated,
    /// They may not see this.
    #[error("{user} may not read the bills of {what}")]
    Forbidden {
        /// Who.
        user: String,
        /// Of what.
        what: String,
    },
    /// Whoever decides could not be asked.
    #[error("authorisation could not be asked for")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Who decides. On loopback a [`BearerToken`]; in a cluster TokenReview and SubjectAccessReview.
#[async_trait]
pub trait Authorizer: std::fmt::Debug + Send + Sync {
    /// Whose token this is.
    async fn authenticate(&self, token: &str) -> Result<Identity, AuthError>;
    /// May they read the bills of this namespace; of all, if `None`?
    async fn authorize(&self, identity: &Identity, namespace: Option<&str>) -> Result<(), AuthError>;
}

/// One token that may read everything. Only its digest is kept.
#[derive(Clone)]
pub struct BearerToken {
    digest: [u8; 32],
}

impl std::fmt::Debug for BearerToken {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("BearerToken(..)")
    }
}

/// Why a token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It could not be read.
    #[error("read token file {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be made.
    #[error("make token file {}", path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It holds no token of at least 16 characters.
    #[error("token file {} holds no token of at least 16 characters", path.display())]
    Short {
        /// Which.
        path: PathBuf,
    },
}

impl BearerToken {
    /// Of this text.
    pub fn new(token: &str) -> Self {
        Self { digest: Sha256::digest(token.as_bytes()).into() }
    }

    /// From a file; a random one is made (mode 0600) when it is absent.
    pub fn load_or_create(path: &Path) -> Result<Self, TokenFileError> {
        let read = |source| TokenFileError::Read { path: path.to_owned(), source };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(path).map_err(|source| TokenFileError::Make { path: path.to_owned(), source })?;
                std::fs::read_to_string(path).map_err(read)?
            }
            Err(error) => return Err(read(error)),
        };
        let token = text.trim();
        if token.len() < 16 {
            return Err(TokenFileError::Short { path: path.to_owned() });
        }
        Ok(Self::new(token))
    }

    /// Takes the same time wherever the tokens differ.
    pub(super) fn matches(&self, token: &str) -> bool {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let difference = self.digest.iter().zip(digest).fold(0u8, |sum, (a, b)| sum | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

#[async_trait]
impl Authorizer for BearerToken {
    async fn authenticate(&self, token: &str) -> Result<Identity, AuthError> {
        if self.matches(token) {
            Ok(Identity { user: "bearer".into(), groups: Vec::new() })
        } else {
            Err(AuthError::Unauthenticated)
        }
    }

    async fn authorize(&self, _identity: &Identity, _namespace: Option<&str>) -> Result<(), AuthError> {
        Ok(())
    }
}

/// The name appears only when the token is durable; whoever is first wins.
fn create(path: &Path) -> io::Result<()> {
    let mut random = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let made = || -> io::Result<()> {
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        writeln!(file, "{}", hex::encode(random))?;
        file.sync_all()?;
        match std::fs::hard_link(&temporary, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    };
    let made = made();
    let _ = std::fs::remove_file(&temporary);
    made
}

/// Nothing behind this without a valid token.
pub(super) async fn require_identity(State(shared): State<Shared>, mut request: Request, next: Next) -> Response {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    let Some(token) = token.filter(|token| !token.is_empty()) else {
        return Problem::unauthenticated("send `Authorization: Bearer TOKEN`").into_response();
    };
    match shared.billing.authorizer.authenticate(token).await {
        Ok(identity) => {
            request.extensions_mut().insert(identity);
            next.run(request).await
        }
        Err(error) => Problem::from(error).into_response(),
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        match &error {
            AuthError::Unauthenticated => Self::unauthenticated(error.to_string()),
            AuthError::Forbidden { .. } => Self::forbidden(error.to_string()),
            AuthError::Unavailable(source) => {
                tracing::warn!(
                    error = source.as_ref() as &dyn std::error::Error,
                    "authorisation could not be asked for"
                );
                Self::unavailable(error.to_string())
            }
        }
    }
}
