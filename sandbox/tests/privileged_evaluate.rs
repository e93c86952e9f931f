//! An evaluation from inside: all that a container sees, may mount, write and reach, against a list that says why.

#![allow(clippy::unwrap_used, reason = "what cannot be measured is a failed test")]

mod support;

#[path = "evaluate/expected.rs"]
mod expected;

use std::collections::BTreeSet;

use expected::{CALLS, CAPABILITIES, DENIED, DEVICES, MOUNTS, OWN_PROCESS, PAST_EVERY_FILTER, WRITABLE};
use sandbox::spec::{Mount, SandboxId};
use support::Host;
use support::attack::KINDS;

async fn answers(host: &Host, id: &SandboxId, args: &[&str]) -> String {
    let spec = host.surface(args[0], args);
    let exit = host.run(id, &spec).await;
    let log = host.log(id, args[0], 0);
    assert_eq!(exit.code, 0, "{args:?}: {log}");
    log
}

/// Whether `name` is the pattern, in which a `*` is one component.
fn is(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<&str>, Vec<&str>) = (pattern.split('/').collect(), name.split('/').collect());
    pattern.len() == name.len() && pattern.iter().zip(&name).all(|(wanted, found)| *wanted == "*" || wanted == found)
}

#[tokio::test]
async fn privileged_evaluate_every_mount_is_one_of_the_list_with_its_attributes() {
    attack!("privileged_evaluate_every_mount_is_one_of_the_list_with_its_attributes");
    let host = Host::new().await;
    for (kind, change) in KINDS {
        let id = host.sandbox_with(kind, change).await;
        let (_, log) = host.script(&id, "main", "cat /proc/self/mountinfo").await;
        let mut wrong = Vec::new();
        for line in log.lines() {
            let (mount, super_block) = line.split_once(" - ").unwrap();
            let fields: Vec<&str> = mount.split(' ').collect();
            let times = ["relatime", "noatime", "strictatime", "nodiratime"];
            let attributes: Vec<&str> = fields[5].split(',').filter(|word| !times.contains(word)).collect();
            let found = (fields[4], super_block.split(' ').next().unwrap(), fields[3], attributes.join(","));
            let listed = |(target, file_system, part, attributes): &(&str, &str, &str, &str)| {
                is(target, found.0) && *file_system == found.1 && *part == found.2 && *attributes == found.3
            };
            // Shared or following: what is mounted elsewhere would come in.
            let propagates = fields[6..].iter().any(|word| word.contains(':'));
            if !MOUNTS.iter().any(listed) || propagates {
                wrong.push(line);
            }
        }
        assert_eq!(wrong, Vec::<&str>::new(), "{kind}");
        let own = host.path().display().to_string();
        assert!(!log.contains(&own), "a path of the host: {log}");
        for needed in ["/", "/proc", "/proc/sys", "/dev", "/dev/pts", "/dev/shm", "/sys", "/sys/fs/cgroup"] {
            assert!(
                log.lines().any(|line| line.split(' ').nth(4) == Some(needed)),
                "{kind}: {needed} is missing: {log}"
            );
        }
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_evaluate_nothing_else_can_be_written_and_no_other_device_or_socket_is_there() {
    attack!("privileged_evaluate_nothing_else_can_be_written_and_no_other_device_or_socket_is_there");
    let host = Host::new().await;
    for (kind, change) in KINDS {
        let id = host.sandbox_with(kind, change).await;
        // What the image has is the container's to write.
        let log = answers(&host, &id, &["walk", "/bin", "/data", "/etc", "/root", "/tmp", "/var"]).await;
        let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
        for line in log.lines() {
            let (what, rest) = line.split_once(' ').unwrap();
            let fine = match what {
                "writable" => {
                    let own = rest.strip_prefix("/proc/N/task/N/").or_else(|| rest.strip_prefix("/proc/N/"));
                    rest == "/" || WRITABLE.contains(&rest) || own.is_some_and(|own| OWN_PROCESS.contains(&own))
                }
                "device" => DEVICES.contains(&rest.trim_end_matches(" opens")),
                _ => false,
            };
            if !fine {
                wrong.push(line);
            }
            seen.insert(what);
        }
        assert_eq!(wrong, Vec::<&str>::new(), "{kind}");
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["device", "writable"], "the walk sees what there is");
        assert!(log.contains("writable /proc/N/mem") && log.contains("device /dev/null c 1:3 opens"), "{kind}: {log}");
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_evaluate_a_read_only_root_leaves_only_what_is_in_memory_and_volumes_to_write() {
    attack!("privileged_evaluate_a_read_only_root_leaves_only_what_is_in_memory_and_volumes_to_write");
    let host = Host::new().await;
    let id = host.sandbox("readonly").await;
    for name in ["rw", "ro"] {
        std::fs::create_dir(host.path().join(name)).unwrap();
        std::fs::write(host.path().join(name).join("file"), "").unwrap();
    }
    let volume = |name: &str, read_only| Mount {
        source: host.path().join(name),
        sub_path: "".into(),
        destination: format!("/{name}").into(),
        read_only,
        no_exec: false,
        idmap: true,
        exclusive: false,
        layers: Vec::new(),
    };
    let mut spec = host.surface("main", &["walk", "/proc"]);
    spec.readonly_rootfs = true;
    spec.mounts = vec![volume("rw", false), volume("ro", true)];
    host.run(&id, &spec).await;
    let log = host.log(&id, "main", 0);
    let writable: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix("writable ")).collect();
    assert_eq!(writable, ["/dev/", "/dev/mqueue/", "/dev/pts/", "/dev/shm/", "/rw/", "/rw/file"]);
    host.close().await;
}

#[tokio::test]
async fn privileged_evaluate_what_is_hidden_by_a_pattern_is_hidden_wherever_it_is() {
    attack!("privileged_evaluate_what_is_hidden_by_a_pattern_is_hidden_wherever_it_is");
    // As each CPU's thermal_throttle is, which virtual machines do not have.
    let host = Host::new().await;
    let id = host.sandbox("pattern").await;
    let script = "for d in /sys/devices/system/cpu/cpu[0-9]*/topology; do echo $d; ls $d; done";
    let (_, before) = host.script(&id, "before", script).await;
    let mut spec = host.shell("after", script);
    spec.security.masked_paths.push("/sys/devices/system/cpu/cpu*/topology".to_owned());
    host.run(&id, &spec).await;
    let after = host.log(&id, "after", 0);
    let places = |text: &str| text.lines().filter(|line| line.starts_with('/')).count();
    assert!(places(&before) > 0 && before.lines().count() > places(&before), "{before}");
    assert_eq!((after.lines().count(), places(&after)), (places(&before), places(&before)), "{after}");
    host.close().await;
}

#[tokio::test]
#[cfg(target_arch = "x86_64")]
async fn privileged_evaluate_each_system_call_number_is_answered_as_listed() {
    attack!("privileged_evaluate_each_system_call_number_is_answered_as_listed");
    let host = Host::new().await;
    let within = |ranges: &[(u32, u32)], number: u32| ranges.iter().any(|(low, high)| (*low..=*high).contains(&number));
    for (kind, change) in KINDS {
        let id = host.sandbox_with(kind, change).await;
        let log = answers(&host, &id, &["numbers", "600"]).await;
        let mut asked = 0;
        let mut wrong = Vec::new();
        for line in log.lines() {
            let (number, answer) = line.split_once(' ').unwrap();
            let number: u32 = number.parse().unwrap();
            let fine = if number == PAST_EVERY_FILTER {
                ["errno6", "ENOSYS"].contains(&answer)
            } else if within(DENIED, number) {
                answer == "EPERM"
            } else {
                within(CALLS, number) || answer == "ENOSYS"
            };
            if !fine {
                wrong.push(line);
            }
            asked += 1;
        }
        assert_eq!((asked, wrong), (599, vec![]), "{kind}");
        assert!(log.contains("\n39 done\n") && log.contains("\n425 EPERM\n"), "{kind}: {log}");
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_evaluate_identity_limits_and_environment_are_the_lists() {
    attack!("privileged_evaluate_identity_limits_and_environment_are_the_lists");
    let host = Host::new().await;
    for (kind, change) in KINDS {
        let id = host.sandbox_with(kind, change).await;
        let (_, log) = host.script(&id, "main", "cat /proc/self/status; cat /proc/self/limits; env; hostname").await;
        let line = |name: &str| {
            let found = log.lines().find_map(|line| line.strip_prefix(name));
            found.unwrap_or_else(|| panic!("{name}: {log}")).split_whitespace().collect::<Vec<_>>().join(" ")
        };
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(line(set), format!("{CAPABILITIES:016x}"), "{kind}: {set}");
        }
        for set in ["CapInh:", "CapAmb:"] {
            assert_eq!(line(set), format!("{:016x}", 0), "{kind}: {set}");
        }
        assert_eq!(
            (line("Seccomp:"), line("Groups:"), line("NSpid:").split(' ').count()),
            ("2".into(), String::new(), 1)
        );
        assert_eq!(line("Max core file size"), "1 1 bytes", "{kind}");
        assert!(line("Max open files").starts_with("1024 "), "{kind}");
        for limit in ["Max realtime priority", "Max nice priority"] {
            assert_eq!(line(limit), "0 0", "{kind}: {limit}");
        }
        let environment: BTreeSet<&str> = log.lines().filter(|line| line.contains('=')).collect();
        // The first by the specification, the rest by the shell.
        assert_eq!(environment.into_iter().collect::<Vec<_>>(), ["PATH=/bin", "PWD=/", "SHLVL=1"], "{kind}");
        assert_eq!(log.lines().last(), Some(kind), "the host's name is not seen");
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_evaluate_nothing_of_the_host_is_named_inside() {
    attack!("privileged_evaluate_nothing_of_the_host_is_named_inside");
    let host = Host::new().await;
    // Another pod, whose processes, sockets and files must not show.
    let other = host.sandbox("neighbour").await;
    support::start(&host, &other, &host.shell("other", "echo > /dev/shm/theirs; exec sleep 98765")).await;
    for (kind, change) in KINDS {
        let id = host.sandbox_with(kind, change).await;
        let script = "p=part; cat /proc/self/cgroup | cut -d: -f3; echo -- $p; cat /proc/*/cmdline; echo; echo -- $p; cat /proc/net/unix; echo -- $p; \
                      ls /dev/shm /dev/mqueue; cat /proc/sysvipc/shm | tail -n +2; echo -- $p; ls /sys/class/net; cat /proc/net/route | tail -n +2; \
                      echo -- $p; cat /proc/locks; echo -- $p; cat /proc/self/mountstats /proc/self/environ /proc/1/environ; readlink /proc/self/cwd /proc/self/root";
        let (_, log) = host.script(&id, "main", script).await;
        let parts: Vec<&str> = log.split("-- part").map(str::trim).collect();
        assert!(parts[0].lines().all(|path| path == "/"), "{kind}: cgroups: {}", parts[0]);
        assert!(!parts[1].contains("98765") && !parts[1].contains("nodeless"), "{kind}: processes: {}", parts[1]);
        assert!(
            parts[2].lines().skip(1).all(|line| line.split_whitespace().count() == 7),
            "{kind}: sockets: {}",
            parts[2]
        );
        assert_eq!(parts[3].split_whitespace().collect::<Vec<_>>(), ["/dev/mqueue:", "/dev/shm:"], "{kind}");
        assert_eq!(parts[4], "lo", "{kind}: links and routes");
        // Locks that belong to an open file, not to a process, the kernel shows to all: without saying whose.
        assert!(parts[5].lines().all(|lock| lock.contains(" -1 ")), "{kind}: {}", parts[5]);
        let host_paths = ["/tmp/", "/var/lib", "/run/", "/home", "cargo", &host.config.cgroup_parent];
        for text in host_paths {
            assert!(!log.contains(text), "{kind}: {text}: {log}");
        }
    }
    host.close().await;
}
