//! A loaded AppArmor profile confines the container's programs, those that join it too.
//!
//! Needs a kernel with AppArmor, its file system at /sys/kernel/security and `apparmor_parser` (Debian: apparmor):
//! `hack/vm/suite` has all three.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sandbox::contract::Sandboxes;
use sandbox::spec::{Namespaces, SandboxSpec};
use support::Host;

/// Everything but one of the image's files, one directory and one capability.
const RULES: &str = "
    file,
    capability,
    network,
    signal,
    ptrace,
    deny /etc/plain rwx,
    deny /data/** w,
    deny capability chown,
";

/// A profile in the kernel, for as long as this is held.
struct Loaded {
    parser: PathBuf,
    name: String,
    text: String,
}

impl Loaded {
    /// Loads it, or says why that cannot be.
    fn new(rules: &str) -> Result<Self, String> {
        let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
        if enabled.trim() != "Y" {
            return Err("the kernel does not enforce AppArmor".to_owned());
        }
        if !Path::new("/sys/kernel/security/apparmor/profiles").exists() {
            return Err("no securityfs at /sys/kernel/security".to_owned());
        }
        let parser = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"].map(PathBuf::from);
        let parser = parser.into_iter().find(|path| path.exists()).ok_or("no apparmor_parser (Debian: apparmor)")?;
        let name = format!("nodeless-test-{}", std::process::id());
        let text = format!("profile {name} flags=(attach_disconnected,mediate_deleted) {{{rules}}}\n");
        let loaded = Self { parser, name, text };
        loaded.tell("--replace");
        Ok(loaded)
    }

    #[track_caller]
    fn tell(&self, what: &str) {
        let mut child = Command::new(&self.parser)
            .args([what, "--skip-cache", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(self.text.as_bytes()).unwrap();
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success(), "apparmor_parser {what}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn is_loaded(&self) -> bool {
        let profiles = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap();
        profiles.lines().any(|line| line == format!("{} (enforce)", self.name))
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if self.is_loaded() {
            self.tell("--remove");
        }
    }
}

#[tokio::test]
async fn privileged_a_loaded_apparmor_profile_confines_a_container_and_what_joins_it() {
    const NAME: &str = "privileged_a_loaded_apparmor_profile_confines_a_container_and_what_joins_it";
    privileged!("privileged_a_loaded_apparmor_profile_confines_a_container_and_what_joins_it");
    let loaded = match Loaded::new(RULES) {
        Ok(loaded) => loaded,
        Err(reason) => {
            eprintln!("SKIPPED {NAME}: {reason}");
            return;
        }
    };
    assert!(loaded.is_loaded());
    let host = Host::with_pool(1).await;
    let off =
        Namespaces { user: false, host_network: false, host_pid: false, host_ipc: false, high_ids: BTreeSet::new() };
    // What each way of running a program finds: who it is, what it may, and three things that only others may.
    let script = "cat /proc/self/attr/current; cat /etc/passwd >/dev/null && echo reads; echo x >/tmp/x && echo writes; \
        cat /etc/plain 2>/dev/null; (echo x >/data/x) 2>/dev/null && echo writes more; chown 5 /tmp/x 2>/dev/null && echo owns; \
        echo looked";
    for (kind, namespaces) in [("own-ids", Namespaces::default()), ("hosts-ids", off)] {
        let id = host.sandbox_with(kind, |spec: &mut SandboxSpec| spec.namespaces = namespaces).await;
        let found = format!("{} (enforce)\nreads\nwrites\nlooked", loaded.name);
        for no_new_privileges in [false, true] {
            let name = if no_new_privileges { "tight" } else { "main" };
            let mut spec = host.shell(name, &format!("{script}; exec sleep 1000"));
            spec.security.apparmor = Some(loaded.name.clone());
            spec.security.no_new_privileges = no_new_privileges;
            host.sandboxes().start(&id, &spec).await.unwrap();
            support::until("it has looked", || host.log(&id, name, 0).ends_with("looked")).await;
            assert_eq!(host.log(&id, name, 0), found, "{kind} {name}");
            let (exit, out, err) = host.exec(&id, name, &["sh", "-c", script]).await;
            assert_eq!((exit.code, out), (0, format!("{found}\n")), "{kind} {name} {err}");
        }
        // Nobody else is confined by it.
        let (_, log) = host.script(&id, "free", script).await;
        assert!(log.ends_with("reads\nwrites\nnot a program\nwrites more\nowns\nlooked"), "{kind}: {log}");
        assert!(!log.contains(&loaded.name), "{kind}: {log}");
    }
    // A profile that has been taken away is refused, not left out.
    let id = host.sandbox("later").await;
    loaded.tell("--remove");
    assert!(!loaded.is_loaded());
    let mut spec = host.shell("later", "true");
    spec.security.apparmor = Some(loaded.name.clone());
    let error = host.sandboxes().start(&id, &spec).await.unwrap_err();
    assert!(error.to_string().contains("unable to apply apparmor profile"), "{error}");
    host.close().await;
}
