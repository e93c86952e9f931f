//! Credentials of the pull secrets that objects name.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use agent_api::proto::RegistryCredential;
use tokio::time::Instant;

use crate::ports::References;
use crate::resolve::credentials;

/// Where these secrets are. One namespace only: whoever may make such objects must not thereby reach every secret.
pub(super) const NAMESPACE: &str = "nodeless-system";
/// A secret is looked at again after this time.
const AGAIN: Duration = Duration::from_secs(30);

struct Known {
    at: Instant,
    credentials: Vec<RegistryCredential>,
    problem: Option<String>,
}

pub(super) struct Secrets {
    references: Arc<dyn References>,
    known: HashMap<String, Known>,
}

impl Secrets {
    pub(super) fn new(references: Arc<dyn References>) -> Self {
        Self { references, known: HashMap::new() }
    }

    /// The credentials of these secrets, and what is wrong with them. What cannot be asked for stays what it was.
    pub(super) async fn of(&mut self, names: impl Iterator<Item = &str>) -> (Vec<RegistryCredential>, Vec<String>) {
        let (mut all, mut problems) = (Vec::new(), Vec::new());
        for name in names {
            if self.known.get(name).is_none_or(|known| known.at.elapsed() >= AGAIN) {
                let earlier = self.known.remove(name).map(|known| known.credentials).unwrap_or_default();
                let (credentials, problem) = self.look(name, earlier).await;
                self.known.insert(name.to_owned(), Known { at: Instant::now(), credentials, problem });
            }
            if let Some(known) = self.known.get(name) {
                all.extend(known.credentials.iter().cloned());
                problems.extend(known.problem.clone());
            }
        }
        (all, problems)
    }

    async fn look(&self, name: &str, earlier: Vec<RegistryCredential>) -> (Vec<RegistryCredential>, Option<String>) {
        match self.references.secret(NAMESPACE, name).await {
            Ok(Some(secret)) => match credentials(&secret) {
                Ok(credentials) => (credentials, None),
                Err(error) => (Vec::new(), Some(format!("secret {NAMESPACE}/{name}: {error}"))),
            },
            Ok(None) => (Vec::new(), Some(format!("secret {NAMESPACE}/{name} is not there"))),
            Err(error) => (earlier, Some(error.to_string())),
        }
    }
}
