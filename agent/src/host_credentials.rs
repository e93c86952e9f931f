//! The host's own credentials for registries: a docker config file with `auths`, `credHelpers` and `credsStore`. Whoever runs a pod
//! on this host may pull with them, as with a kubelet's.
//!
//! Docker's rule decides who is asked for a registry: its own helper, else the store, else the file itself.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use image_snapshot::{Credential, CredentialError, Reference, RegistryAuth, Secret};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::Instant;

/// A helper has this long to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// An answer is not asked for again for this long.
const KEEP: Duration = Duration::from_secs(60);
/// A failure is not met again for this long: pods that wait for an image are not to wait for a helper each.
const KEEP_FAILURE: Duration = Duration::from_secs(10);
/// Longest answer of a helper, longest file.
const LONGEST: u64 = 1 << 20;
/// As docker's own file and helpers call Docker Hub.
const HUB: &str = "https://index.docker.io/v1/";

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum HostCredentialsError {
    /// The file cannot be read.
    #[error("could not read {path:?}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be. What is in it is not printed.
    #[error("{path:?} is no docker config: line {line}, column {column}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where.
        line: usize,
        /// Where.
        column: usize,
    },
    /// An entry of it.
    #[error("{path:?} cannot be used")]
    Entry {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: CredentialError,
    },
    /// The name of a helper could be a path.
    #[error("{name:?} is not the name of a credential helper")]
    Name {
        /// As the file has it.
        name: String,
    },
    /// A helper could not be run.
    #[error("could not run {program}")]
    Run {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A helper did not answer in time.
    #[error("{program} did not answer in time")]
    Late {
        /// Which.
        program: String,
    },
    /// A helper failed. What it printed may hold secrets and is not told.
    #[error("{program} failed with {status} for {server}")]
    Failed {
        /// Which.
        program: String,
        /// How.
        status: std::process::ExitStatus,
        /// For what.
        server: String,
    },
    /// A helper's task ended early.
    #[error("asking {program} was interrupted")]
    Interrupted {
        /// Which.
        program: String,
    },
    /// A helper's answer is none.
    #[error("{program} gave no credentials that can be read")]
    Answer {
        /// Which.
        program: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Helpers {
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Told {
    username: String,
    secret: String,
}

/// What a helper said, or that it could not. Shared by all who asked.
type Answer = Result<Option<RegistryAuth>, Arc<HostCredentialsError>>;

/// A question that is being asked, or has been, by helper and server.
#[derive(Debug)]
struct Asked {
    at: Instant,
    answer: watch::Receiver<Option<Answer>>,
}

impl Asked {
    /// Worth waiting for, or still good.
    fn serves(&self) -> bool {
        match &*self.answer.borrow() {
            None => self.answer.has_changed().is_ok(),
            Some(Ok(_)) => self.at.elapsed() < KEEP,
            Some(Err(_)) => self.at.elapsed() < KEEP_FAILURE,
        }
    }
}

/// The host's docker config file.
#[derive(Debug)]
pub struct HostCredentials {
    path: PathBuf,
    /// Where helpers are looked for; the agent's own `PATH` if `None`.
    search: Option<PathBuf>,
    /// How long a helper may take.
    patience: Duration,
    asked: Mutex<HashMap<(String, String), Asked>>,
}

impl HostCredentials {
    /// Of this file; it is read at each use, so that a change counts at once.
    pub fn new(path: PathBuf) -> Self {
        Self { path, search: None, patience: PATIENCE, asked: Mutex::default() }
    }

    /// The credentials for the registry of an image.
    pub async fn of(&self, reference: &str) -> Result<Vec<Credential>, Arc<HostCredentialsError>> {
        // What is no registry's needs none, and what is no name is told by whoever parses it in earnest.
        let Ok(Reference::Registry(image)) = reference.parse::<Reference>() else { return Ok(Vec::new()) };
        let file = tokio::fs::File::open(&self.path).await;
        let failed = |source| HostCredentialsError::Read { path: self.path.clone(), source };
        let mut text = Vec::new();
        file.map_err(failed)?.take(LONGEST + 1).read_to_end(&mut text).await.map_err(failed)?;
        if text.len() as u64 > LONGEST {
            return Err(failed(std::io::ErrorKind::FileTooLarge.into()).into());
        }
        let helpers: Helpers = serde_json::from_slice(&text).map_err(|error| HostCredentialsError::Parse {
            path: self.path.clone(),
            line: error.line(),
            column: error.column(),
        })?;
        let registry = image.registry();
        let hub = registry == "docker.io";
        let named = helpers.cred_helpers.iter().find(|(host, _)| {
            let host = host.trim_start_matches("https://").trim_end_matches('/');
            host == registry || (hub && matches!(host, "index.docker.io" | "index.docker.io/v1"))
        });
        let helper =
            named.map(|(_, name)| name.as_str()).or(Some(helpers.creds_store.as_str())).filter(|n| !n.is_empty());
        if let Some(helper) = helper
            && let Some(credential) = self.ask(helper, if hub { HUB } else { registry }, registry).await?
        {
            return Ok(vec![credential]);
        }
        let entries = Credential::from_docker_config_json(&text)
            .map_err(|source| HostCredentialsError::Entry { path: self.path.clone(), source })?;
        Ok(entries.into_iter().filter(|entry| entry.matches(&image)).collect())
    }

    /// Asks a helper, once for all who ask together. It is asked in a task of its own: one that hangs keeps nobody else waiting, and who stops
    /// waiting does not stop it.
    async fn ask(
        &self,
        helper: &str,
        server: &str,
        registry: &str,
    ) -> Result<Option<Credential>, Arc<HostCredentialsError>> {
        let mut answer = {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.retain(|_, one| one.serves());
            let one = asked.entry((helper.to_owned(), server.to_owned())).or_insert_with(|| {
                let (sender, answer) = watch::channel(None);
                let (helper, server) = (helper.to_owned(), server.to_owned());
                let (search, patience) = (self.search.clone(), self.patience);
                tokio::spawn(async move {
                    let said = run(&helper, &server, search.as_deref(), patience).await.map_err(Arc::new);
                    sender.send_replace(Some(said));
                });
                Asked { at: Instant::now(), answer }
            });
            one.answer.clone()
        };
        let interrupted = || HostCredentialsError::Interrupted { program: format!("docker-credential-{helper}") };
        let said = answer.wait_for(Option::is_some).await.map_err(|_| interrupted())?.clone();
        let auth = said.unwrap_or_else(|| Err(interrupted().into()))?;
        Ok(auth.map(|auth| Credential { scope: registry.to_owned(), auth }))
    }
}

/// `docker-credential-NAME get`, the server on its standard input.
async fn run(
    name: &str,
    server: &str,
    search: Option<&Path>,
    patience: Duration,
) -> Result<Option<RegistryAuth>, HostCredentialsError> {
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) || name.starts_with('.') {
        return Err(HostCredentialsError::Name { name: name.to_owned() });
    }
    let program = format!("docker-credential-{name}");
    let failed = |source| HostCredentialsError::Run { program: program.clone(), source };
    let path = search.map_or_else(|| PathBuf::from(&program), |dir| dir.join(&program));
    let mut command = Command::new(path);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    // With what it has started: a script that hangs does so in a child of its own.
    command.process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let talk = async {
        if let Some(mut stdin) = stdin {
            // One that does not read it may still answer.
            let _ = stdin.write_all(server.as_bytes()).await;
        }
        let mut text = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(LONGEST).read_to_end(&mut text).await?;
        }
        Ok::<_, std::io::Error>((text, child.wait().await?))
    };
    let (text, status) = match tokio::time::timeout(patience, talk).await {
        Ok(answer) => answer.map_err(failed)?,
        Err(_) => {
            // Not waited for yet, so its number, and with it its group's, is still its own.
            if let Some(group) = group {
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            return Err(HostCredentialsError::Late { program });
        }
    };
    if !status.success() {
        // As all helpers say it.
        if String::from_utf8_lossy(&text).contains("credentials not found") {
            return Ok(None);
        }
        return Err(HostCredentialsError::Failed { program, status, server: server.to_owned() });
    }
    let Ok(answer) = serde_json::from_slice::<Told>(&text) else {
        return Err(HostCredentialsError::Answer { program });
    };
    let secret = Secret::new(answer.secret);
    Ok(Some(match answer.username.as_str() {
        "<token>" => RegistryAuth::Identity(secret),
        _ => RegistryAuth::Basic { username: answer.username, password: secret },
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const CONFIG: &str = r#"{
        "auths": {"own.example": {"auth": "dTpw"}, "helped.example": {"auth": "bm86bm8="}, "empty.example": {"auth": "dTpw"}},
        "credHelpers": {"helped.example": "good", "empty.example": "none", "bad.example": "broken", "way.example": "../x"}
    }"#;

    fn made(config: &str) -> (tempfile::TempDir, HostCredentials) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let script = |name: &str, text: &str| {
            let path = dir.path().join(format!("docker-credential-{name}"));
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        let calls = dir.path().join("calls");
        script(
            "good",
            &format!(
                r#"read -r server; echo "$1 $server" >>{}; echo '{{"ServerURL":"x","Username":"me","Secret":"hunter2"}}'"#,
                calls.display()
            ),
        );
        script("none", "echo 'credentials not found in native keychain'; exit 1");
        script("broken", "echo hunter2; exit 3");
        script(
            "store",
            r#"read -r server; [ "$server" = https://index.docker.io/v1/ ] && echo '{"Username":"<token>","Secret":"t"}'"#,
        );
        let search = Some(dir.path().to_owned());
        let credentials = HostCredentials { search, ..HostCredentials::new(dir.path().join("config.json")) };
        (dir, credentials)
    }

    fn basic(scope: &str, username: &str, password: &str) -> Credential {
        let auth = RegistryAuth::Basic { username: username.to_owned(), password: Secret::new(password) };
        Credential { scope: scope.to_owned(), auth }
    }

    #[tokio::test]
    async fn a_registrys_own_helper_is_asked_before_the_file_once_for_many() {
        let (dir, host) = made(CONFIG);
        assert_eq!(host.of("own.example/a").await.unwrap(), [basic("own.example", "u", "p")]);
        for _ in 0..3 {
            assert_eq!(host.of("helped.example/a:1").await.unwrap(), [basic("helped.example", "me", "hunter2")]);
        }
        assert_eq!(std::fs::read_to_string(dir.path().join("calls")).unwrap(), "get helped.example\n");
        // One that has none leaves it to the file.
        assert_eq!(host.of("empty.example/a").await.unwrap(), [basic("empty.example", "u", "p")]);
        assert!(host.of("other.example/a").await.unwrap().is_empty());
        assert!(host.of("oci-layout:/dir").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn the_store_is_asked_for_docker_hub_by_its_old_name_and_may_give_a_token() {
        let (_dir, host) = made(r#"{"credsStore": "store"}"#);
        let token = Credential { scope: "docker.io".to_owned(), auth: RegistryAuth::Identity(Secret::new("t")) };
        assert_eq!(host.of("busybox").await.unwrap(), [token]);
    }

    fn slow(dir: &Path, text: &str) {
        let path = dir.join("docker-credential-slow");
        std::fs::write(&path, format!("#!/bin/sh\necho $$ >>{}\n{text}\n", dir.join("started").display())).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    const SLOW: &str = r#"{"credHelpers": {"slow.example": "slow", "helped.example": "good"}}"#;

    #[tokio::test]
    async fn a_helper_that_hangs_stops_no_other_and_is_asked_once_for_all_who_wait() {
        let (dir, host) = made(SLOW);
        let go = dir.path().join("go");
        slow(dir.path(), &format!("while ! [ -e {} ]; do sleep 0.05; done; exit 3", go.display()));
        let host = Arc::new(HostCredentials { patience: Duration::from_secs(600), ..host });
        let waiting: Vec<_> = (0..5)
            .map(|_| {
                let host = host.clone();
                tokio::spawn(async move { host.of("slow.example/a").await })
            })
            .collect();
        // While the five wait.
        assert_eq!(host.of("helped.example/a").await.unwrap().len(), 1);
        assert!(waiting.iter().all(|one| !one.is_finished()));
        // Who stops waiting stops nobody else.
        waiting[0].abort();
        std::fs::write(go, b"").unwrap();
        for one in waiting.into_iter().skip(1) {
            let failed = one.await.unwrap().unwrap_err();
            assert!(matches!(*failed, HostCredentialsError::Failed { .. }), "{failed}");
        }
        assert_eq!(std::fs::read_to_string(dir.path().join("started")).unwrap().lines().count(), 1);
    }

    #[tokio::test]
    async fn a_helper_that_does_not_answer_in_time_is_ended_with_all_that_it_has_started() {
        let (dir, host) = made(SLOW);
        slow(dir.path(), "sleep 1000 & wait");
        let host = HostCredentials { patience: Duration::from_millis(500), ..host };
        let failed = host.of("slow.example/a").await.unwrap_err();
        assert!(matches!(*failed, HostCredentialsError::Late { .. }), "{failed}");
        // A machine that is busy may not have come to its first line.
        let Ok(started) = std::fs::read_to_string(dir.path().join("started")) else { return };
        let began = Instant::now();
        let group = rustix::process::Pid::from_raw(started.trim().parse().unwrap()).unwrap();
        while rustix::process::test_kill_process_group(group).is_ok() {
            assert!(began.elapsed() < Duration::from_secs(60), "the helper's group lives on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn what_fails_is_told_without_a_secret_and_a_name_is_no_path() {
        let (_dir, host) = made(CONFIG);
        let failed = host.of("bad.example/a").await.unwrap_err();
        assert!(matches!(*failed, HostCredentialsError::Failed { .. }));
        assert!(!crate::errors::chain(&failed).contains("hunter2"), "{failed}");
        assert!(matches!(*host.of("way.example/a").await.unwrap_err(), HostCredentialsError::Name { .. }));
        let (_dir, host) = made("{\"auths\": \"hunter2\"");
        let failed = crate::errors::chain(&host.of("own.example/a").await.unwrap_err());
        assert!(!failed.contains("hunter2"), "{failed}");
    }
}
