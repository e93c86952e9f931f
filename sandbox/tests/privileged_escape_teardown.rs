//! Attacks on whoever cleans up after a pod.

#![allow(clippy::unwrap_used, reason = "a test program: helpers fail as tests do")]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use sandbox::contract::Sandboxes;
use support::Host;
use support::attack::{KINDS, iterations, volume};
use support::census::Decoys;

/// CVE-2024-23651, CVE-2024-23652, CVE-2024-23653: links, rings, deep trees and closed directories in everything that a pod may
/// write, planted while it runs and racing until it is killed.
#[tokio::test]
async fn privileged_escape_what_a_pod_leaves_leads_no_removal_astray() {
    attack!("privileged_escape_what_a_pod_leaves_leads_no_removal_astray");
    for (kind, change) in KINDS {
        let decoys = Decoys::plant();
        let aim = decoys.path().join("data").display().to_string();
        let host = Host::new().await;
        for round in 0..(iterations() / 3000).max(1) {
            let id = host.sandbox_with(&format!("leaves-{kind}-{round}"), change).await;
            let place = host.path().join(format!("volume{round}"));
            fs::create_dir(&place).unwrap();
            fs::set_permissions(&place, Permissions::from_mode(0o777)).unwrap();
            let mut idle = host.attacker("idle", &["idle"]);
            idle.mounts = vec![volume(&place, "", "/v")];
            host.begin(&id, &idle).await;
            for directory in ["/", "/tmp", "/var", "/v", "/dev/shm", "/dev", "/bin"] {
                let told = host.attack_by_exec(&id, "idle", &["plant", directory, &aim]).await;
                assert!(told.text.contains("TRIED"), "{kind} {directory}: {}", told.text);
            }
            let mut racer = host.attacker("racer", &["race", "/v/traps", "/v/log", "/v/count"]);
            racer.mounts = vec![volume(&place, "", "/v")];
            host.begin(&id, &racer).await;
            support::until("the racer races", || fs::metadata(place.join("count")).is_ok_and(|meta| meta.len() > 0))
                .await;
            // An ended container's leavings are met by the next attempt, too.
            host.end(&id, &idle).await;
            idle.attempt = 1;
            host.begin(&id, &idle).await;
            host.sandboxes().destroy(&id).await.unwrap();
            assert_eq!(host.leftovers(), Vec::<String>::new(), "{kind}");
        }
        host.close().await;
        decoys.untouched();
    }
}
