//! The kernel's surface: what an attacker in a container asks of the kernel, and what it must answer.

#![allow(clippy::unwrap_used, reason = "what cannot be measured is a failed test")]

mod support;

#[path = "surface/expected.rs"]
mod expected;
#[path = "surface/files.rs"]
mod files;
#[path = "surface/processes.rs"]
mod processes;
#[path = "surface/sockets.rs"]
mod sockets;

use std::collections::{BTreeMap, BTreeSet};

use expected::{ATTEMPTS, HOSTS_ALONE, RAW_SOCKETS, ROOT_READS, SOCKETS};
use sandbox::spec::{ALL_CAPABILITIES, ContainerSpec, SandboxId, Seccomp, Security};
use support::Host;

/// Every capability that there is.
fn all_powerful(spec: &mut ContainerSpec) {
    spec.security.capabilities = ALL_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect();
}

/// Runs an attack in a container of its own; what it printed.
async fn answers(
    host: &Host,
    id: &SandboxId,
    name: &str,
    args: &[&str],
    change: impl FnOnce(&mut ContainerSpec),
) -> String {
    let mut spec = host.surface(name, args);
    change(&mut spec);
    let exit = host.run(id, &spec).await;
    let log = host.log(id, name, 0);
    assert_eq!(exit.code, 0, "{args:?}: {exit:?}: {log}");
    log
}

fn outcomes(log: &str) -> BTreeMap<&str, &str> {
    log.lines().filter_map(|line| line.rsplit_once(' ')).collect()
}

fn meets(found: &str, wanted: &str) -> bool {
    if wanted == "refused" { !["done", "waits"].contains(&found) } else { found == wanted }
}

#[tokio::test]
async fn privileged_surface_each_forbidden_call_is_answered_as_the_profile_says() {
    attack!("privileged_surface_each_forbidden_call_is_answered_as_the_profile_says");
    let host = Host::new().await;
    let id = host.sandbox("surface").await;
    let weak = answers(&host, &id, "weak", &["calls"], |_| {}).await;
    let strong = answers(&host, &id, "strong", &["calls"], all_powerful).await;
    let (weak, strong) = (outcomes(&weak), outcomes(&strong));
    let named: BTreeSet<&str> = ATTEMPTS.iter().map(|(name, ..)| *name).collect();
    assert_eq!(weak.keys().copied().collect::<BTreeSet<_>>(), named, "every attempt has its expected outcome");
    let wrong: Vec<String> = ATTEMPTS
        .iter()
        .filter(|(name, by_default, with_all)| !meets(weak[name], by_default) || !meets(strong[name], with_all))
        .map(|(name, ..)| format!("{name}: {} by default, {} with every capability", weak[name], strong[name]))
        .collect();
    assert_eq!(wrong, Vec::<String>::new());
    // Without ids of its own it is the host's root without its capabilities: what the host's files let root read, it reads.
    let id = host.sandbox_with("hosts-ids", |spec| spec.namespaces.user = false).await;
    let log = answers(&host, &id, "weak", &["calls"], |_| {}).await;
    let found = outcomes(&log);
    let wrong: Vec<String> = ATTEMPTS
        .iter()
        .filter(|(name, by_default, _)| !meets(found[name], by_default) && !ROOT_READS.contains(name))
        .map(|(name, ..)| format!("{name}: {}", found[name]))
        .collect();
    assert_eq!(wrong, Vec::<String>::new());
    host.close().await;
}

/// As Kubernetes' privileged: no filter, nothing hidden, every capability, the host's device nodes.
fn privileged(spec: &mut ContainerSpec) {
    all_powerful(spec);
    let capabilities = std::mem::take(&mut spec.security.capabilities);
    spec.security = Security {
        capabilities,
        seccomp: Seccomp::Unconfined,
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        writable_kernel: true,
        host_devices: true,
        ..Security::default()
    };
}

#[tokio::test]
async fn privileged_surface_a_privileged_container_with_its_own_ids_has_nothing_of_the_hosts() {
    attack!("privileged_surface_a_privileged_container_with_its_own_ids_has_nothing_of_the_hosts");
    // By policy; then the user namespace is the wall.
    let host = Host::new().await;
    let id = host.sandbox("privileged").await;
    let log = answers(&host, &id, "calls", &["calls"], privileged).await;
    let found = outcomes(&log);
    let through: Vec<&str> = HOSTS_ALONE.iter().copied().filter(|name| !meets(found[name], "refused")).collect();
    assert_eq!(through, Vec::<&str>::new());
    let log = answers(&host, &id, "agent", &["release-agent"], privileged).await;
    assert!(outcomes(&log).iter().all(|(name, outcome)| *name == "unshare" || *outcome != "done"), "{log}");
    let log =
        answers(&host, &id, "walk", &["walk", "/tmp", "/bin", "/data", "/etc", "/root", "/var"], privileged).await;
    let own =
        ["full", "null", "pts/ptmx", "random", "tty", "urandom", "zero"].map(|name| format!("device /dev/{name} "));
    let opened = |line: &&str| line.starts_with("device ") && line.ends_with(" opens");
    let foreign: Vec<&str> =
        log.lines().filter(opened).filter(|line| !own.iter().any(|device| line.starts_with(device))).collect();
    assert_eq!(foreign, Vec::<&str>::new(), "the host's devices are seen, not had");
    let spaces = ["/proc/sys/net/", "/proc/sys/fs/mqueue/", "/proc/sys/user/", "/sys/devices/virtual/net/"];
    let own_ipc = ["auto_msgmni", "msg", "ns_last_pid", "sem", "shm"].map(|name| format!("/proc/sys/kernel/{name}"));
    let sysctls: Vec<&str> = log
        .lines()
        .filter_map(|line| line.strip_prefix("writable "))
        .filter(|path| path.starts_with("/proc/sys/") || path.starts_with("/sys/"))
        .filter(|path| !spaces.iter().any(|own| path.starts_with(own)))
        .filter(|path| !own_ipc.iter().any(|own| path.starts_with(own)))
        .collect();
    assert_eq!(sysctls, Vec::<&str>::new(), "settings of its own namespaces only");
    host.close().await;
}

#[tokio::test]
async fn privileged_surface_sockets_are_of_four_families_and_none_is_raw() {
    attack!("privileged_surface_sockets_are_of_four_families_and_none_is_raw");
    let host = Host::new().await;
    let id = host.sandbox("sockets").await;
    let had = |log: &str| -> BTreeSet<String> {
        outcomes(log).into_iter().filter(|(_, outcome)| *outcome == "done").map(|(name, _)| name.to_owned()).collect()
    };
    let owned = |lists: &[&[&str]]| -> BTreeSet<String> {
        lists.iter().flat_map(|list| list.iter()).map(|name| (*name).to_owned()).collect()
    };
    let log = answers(&host, &id, "weak", &["families"], |_| {}).await;
    assert_eq!(had(&log), owned(&[SOCKETS]));
    // The filter answers, before a family's module could be loaded.
    let families = outcomes(&log);
    for (name, family) in
        [("AF_RDS", 21), ("AF_CAN", 29), ("AF_TIPC", 30), ("AF_ALG", 38), ("AF_VSOCK", 40), ("AF_XDP", 44)]
    {
        assert_eq!(families[format!("{family} seqpacket").as_str()], "EPERM", "{name}");
    }
    let strong = answers(&host, &id, "strong", &["families"], all_powerful).await;
    assert_eq!(had(&strong), owned(&[SOCKETS, RAW_SOCKETS]));
    host.close().await;
}

#[tokio::test]
async fn privileged_surface_no_namespace_or_mount_but_the_own_is_reached_by_number_or_ioctl() {
    attack!("privileged_surface_no_namespace_or_mount_but_the_own_is_reached_by_number_or_ioctl");
    let host = Host::new().await;
    let (id, other) = (host.sandbox("spaces").await, host.sandbox("other").await);
    // Another pod's mounts, made just before: their numbers are near.
    support::start(&host, &other, &host.shell("other", "exec sleep 1000")).await;
    for (name, change) in [("weak", (|_| {}) as fn(&mut ContainerSpec)), ("strong", all_powerful)] {
        let log = answers(&host, &id, name, &["spaces"], change).await;
        for line in log.lines() {
            let told = line.rsplit(' ').next().unwrap_or_default();
            match line.split(' ').next() {
                Some("mounts") => assert!(
                    line.ends_with("own-told true foreign-told 0 foreign-listed 0")
                        || line.ends_with("not numbered here"),
                    "{line}"
                ),
                // The owner of the owner is the host's root, seen as nobody.
                _ if line.starts_with("user owner-uid") => assert_eq!(told, "65534"),
                _ => assert!(["own-user", "EPERM", "EINVAL", "errno25"].contains(&told), "{line}"),
            }
        }
        for owned in ["net", "ipc", "uts"] {
            assert!(log.contains(&format!("{owned} owner own-user")), "{log}");
        }
        for foreign in ["pid", "mnt", "cgroup", "time", "user"] {
            assert!(log.contains(&format!("{foreign} owner EPERM")), "{log}");
        }
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_surface_a_cgroups_release_agent_is_out_of_reach() {
    attack!("privileged_surface_a_cgroups_release_agent_is_out_of_reach");
    // CVE-2022-0492
    let host = Host::new().await;
    let id = host.sandbox("agent").await;
    let log = answers(&host, &id, "weak", &["release-agent"], |_| {}).await;
    assert!(outcomes(&log).values().all(|outcome| *outcome == "EPERM"), "{log}");
    // By policy it may have namespaces of its own; the host's agents it may not have.
    let log = answers(&host, &id, "strong", &["release-agent"], all_powerful).await;
    let outcomes = outcomes(&log);
    assert_eq!(outcomes["unshare"], "done", "{log}");
    assert!(outcomes.iter().all(|(name, outcome)| *name == "unshare" || *outcome != "done"), "{log}");
    host.close().await;
}

#[tokio::test]
async fn privileged_surface_no_file_system_is_mounted_in_a_namespace_of_ones_own() {
    attack!("privileged_surface_no_file_system_is_mounted_in_a_namespace_of_ones_own");
    // CVE-2021-3493, CVE-2023-0386, CVE-2023-2640 begin with an overlay in a user namespace.
    let host = Host::new().await;
    let id = host.sandbox("own").await;
    let log = answers(&host, &id, "weak", &["mount-in-own-namespace"], |_| {}).await;
    assert!(outcomes(&log).len() == 5 && outcomes(&log).values().all(|outcome| *outcome == "EPERM"), "{log}");
    // With CAP_SYS_ADMIN by policy these are the sandbox's own; proc and sysfs stay covered as they are, so refused.
    let log = answers(&host, &id, "strong", &["mount-in-own-namespace"], all_powerful).await;
    assert!(["proc", "sysfs"].iter().all(|kind| meets(outcomes(&log)[kind], "refused")), "{log}");
    host.close().await;
}
