//! Races: a container exchanges what a name means while the runtime is between looking and acting.
//!
//! One container of the pod races in a volume that it shares with others, which are started meanwhile with many mounts each.
//! Whichever way it goes, nothing but the pod's own is mounted, made, changed or reached. The racer counts its exchanges,
//! so that a test in which nothing raced fails.

#![allow(clippy::unwrap_used, reason = "a test program: helpers fail as tests do")]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sandbox::contract::{Sandboxes, Stdio};
use sandbox::spec::{ContainerSpec, ExecSpec, Mount, SandboxId, Seccomp};
use support::attack::{KINDS, Told, in_time, iterations, layer, volume};
use support::census::Decoys;
use support::{Host, exec_spec, exit_of, until};

/// Mounts of one start.
const MOUNTS: usize = 50;

/// A volume in which a container races, with what is exchanged: `dir` and `link`, which leads to the decoys' path.
struct Raced {
    volume: PathBuf,
    counter: PathBuf,
    racer: ContainerSpec,
}

impl Raced {
    /// Fills a directory of the host with both sides, each marked, and what the link leads to when it stays inside.
    fn prepare(host: &Host, decoys: &Decoys) -> Self {
        let place = host.path().join("raced");
        let aim = place.join(decoys.path().strip_prefix("/").unwrap());
        for directory in [place.join("dir"), aim.clone()] {
            fs::create_dir_all(&directory).unwrap();
            for number in 0..MOUNTS {
                fs::create_dir(directory.join(format!("m{number}"))).unwrap();
            }
        }
        fs::write(place.join("dir/at-the-directory"), "").unwrap();
        fs::write(aim.join("at-the-link"), "").unwrap();
        symlink(decoys.path(), place.join("link")).unwrap();
        open_to_all(&place);
        let mut racer = host.attacker("racer", &["race", "/v/dir", "/v/link", "/v/count"]);
        racer.mounts = vec![volume(&place, "", "/v")];
        Self { counter: place.join("count"), volume: place, racer }
    }

    /// How often names were exchanged so far.
    fn count(&self) -> u64 {
        fs::read_to_string(&self.counter).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    async fn begin(&self, host: &Host, id: &SandboxId) {
        host.begin(id, &self.racer).await;
        until("the racer races", || self.count() > 0).await;
    }
}

/// Everybody may do everything in a volume, also who has no power over the host's ids.
fn open_to_all(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            open_to_all(&path);
        }
    }
    fs::set_permissions(directory, Permissions::from_mode(0o777)).unwrap();
}

/// What became of the starts of a race.
#[derive(Debug, Default)]
struct Outcome {
    started: usize,
    refused: usize,
    mounts: usize,
}

/// Starts containers until as many mounts were tried as are asked for; `judge` looks at what each saw.
async fn start_many(
    host: &Host,
    id: &SandboxId,
    mounts: impl Fn(usize) -> Vec<Mount>,
    look: &[&str],
    judge: impl Fn(&Told),
) -> Outcome {
    let mut outcome = Outcome::default();
    let arguments: Vec<&str> = ["look"].iter().chain(look).copied().collect();
    in_time(async {
        let mut events = host.sandboxes().events(id).await.unwrap();
        while outcome.mounts < iterations() {
            let mut spec = host.attacker("target", &arguments);
            spec.attempt = u32::try_from(outcome.started + outcome.refused).unwrap();
            spec.mounts = mounts(outcome.started + outcome.refused);
            outcome.mounts += spec.mounts.len();
            if host.sandboxes().start(id, &spec).await.is_err() {
                outcome.refused += 1;
                continue;
            }
            exit_of(&mut events, &spec.name, spec.attempt).await;
            judge(&Told::new(host.log(id, &spec.name, spec.attempt)));
            outcome.started += 1;
            let _ = fs::remove_dir_all(spec.rootfs.writable.unwrap());
        }
    })
    .await;
    outcome
}

/// CVE-2021-30465, CVE-2024-45310: mount points below a directory that is exchanged with a link to the host's.
#[tokio::test]
async fn privileged_escape_mounts_under_a_racing_directory_stay_inside() {
    attack!("privileged_escape_mounts_under_a_racing_directory_stay_inside");
    for (kind, change) in KINDS {
        let decoys = Decoys::plant();
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("points-{kind}"), change).await;
        let raced = Raced::prepare(&host, &decoys);
        let (data, aim) = (host.path().join("data"), host.path().join("aim"));
        fs::create_dir(&data).unwrap();
        fs::create_dir(&aim).unwrap();
        for number in 0..MOUNTS {
            fs::create_dir(aim.join(format!("m{number}"))).unwrap();
        }
        raced.begin(&host, &id).await;
        let before = raced.count();
        let inside = decoys.path().display().to_string();
        let mounts = |round: usize| {
            // What the link means inside exists there, too: both ways a mount succeeds.
            let mut mounts = vec![volume(&raced.volume, "", "/v"), volume(&aim, "", &inside)];
            let missing = if round.is_multiple_of(4) { format!("/new{round}") } else { String::new() };
            let points = (0..MOUNTS - 2).map(|number| volume(&data, "", &format!("/v/dir/m{number}{missing}")));
            mounts.extend(points);
            mounts
        };
        let allowed = ["/v/dir/m".to_owned(), format!("{inside}/m"), "/v/link/m".to_owned()];
        let outcome = start_many(&host, &id, mounts, &[], |told| {
            for point in told.seen("mount ") {
                let own = ["/", "/v", &inside].contains(&point)
                    || ["/proc", "/dev", "/sys"].iter().any(|kernel| Path::new(point).starts_with(kernel))
                    || allowed.iter().any(|place| point.starts_with(place.as_str()));
                assert!(own, "{kind}: something is mounted on {point}");
            }
        })
        .await;
        let raced_meanwhile = raced.count() - before;
        assert!(outcome.started > 0, "{outcome:?}");
        assert!(raced_meanwhile as usize >= iterations(), "{raced_meanwhile} exchanges, {outcome:?}");
        // Nothing of it is on the host: neither a mount, nor anything that was made for one.
        let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounted.contains(&inside) && !mounted.contains("/raced/"), "{mounted}");
        host.close().await;
        decoys.untouched();
    }
}

/// CVE-2017-1002101, CVE-2021-25741: sub paths of a volume that another container races in.
#[tokio::test]
async fn privileged_escape_racing_sub_paths_stay_in_their_volume() {
    attack!("privileged_escape_racing_sub_paths_stay_in_their_volume");
    for (kind, change) in KINDS {
        let decoys = Decoys::plant();
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("subpath-{kind}"), change).await;
        let raced = Raced::prepare(&host, &decoys);
        raced.begin(&host, &id).await;
        let before = raced.count();
        let mounts = |round: usize| {
            let missing = if round % 4 == 3 { format!("/new{round}/deep") } else { String::new() };
            let mounts = (0..MOUNTS).map(|number| {
                let name = if number % 2 == 0 { "dir" } else { "link" };
                volume(&raced.volume, &format!("{name}{missing}"), &format!("/m/{number}"))
            });
            mounts.collect()
        };
        let looked: Vec<String> = (0..MOUNTS).map(|number| format!("/m/{number}")).collect();
        let looked: Vec<&str> = looked.iter().map(String::as_str).collect();
        let sides = std::cell::RefCell::new([0; 2]);
        let outcome = start_many(&host, &id, mounts, &looked, |told| {
            assert_eq!(told.seen("in /m/").len(), MOUNTS, "{kind}: {}", told.text);
            for content in told.seen("in /m/") {
                assert!(!content.contains("secret"), "{kind}: a volume holds what is the host's: {content}");
                for (side, name) in ["at-the-directory", "at-the-link"].iter().enumerate() {
                    sides.borrow_mut()[side] += usize::from(content.contains(name));
                }
            }
        })
        .await;
        let raced_meanwhile = raced.count() - before;
        assert!(raced_meanwhile as usize >= iterations(), "{raced_meanwhile} exchanges, {outcome:?}");
        let sides = sides.into_inner();
        assert!(
            sides.iter().all(|count| *count > 0),
            "{kind}: both sides of the exchange are met: {sides:?}, {outcome:?}"
        );
        host.close().await;
        decoys.untouched();
    }
}

/// What is made for a mount point or a working directory in a volume is the pod's at once: nobody can put another file in its
/// place before it is given away.
#[tokio::test]
async fn privileged_escape_what_is_made_in_a_volume_cannot_be_exchanged_before_it_is_given_away() {
    attack!("privileged_escape_what_is_made_in_a_volume_cannot_be_exchanged_before_it_is_given_away");
    for (kind, change) in KINDS {
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("steal-{kind}"), change).await;
        let place = host.path().join("shared");
        fs::create_dir(&place).unwrap();
        // Somebody else's: the racer's root has no id for its owner, and may move but not read it.
        fs::create_dir(place.join("bait")).unwrap();
        std::os::unix::fs::chown(place.join("bait"), Some(4_000_000_000), Some(4_000_000_000)).unwrap();
        fs::set_permissions(place.join("bait"), Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(&place, Permissions::from_mode(0o777)).unwrap();
        // Held, so that no other file gets its inode's number.
        let bait = fs::File::open(place.join("bait")).unwrap();
        let mut racer = host.attacker("racer", &["steal", "/v", "prey", "bait", "/v/count"]);
        // Where the file system shifts no owners: the kernel lets nobody move what a shifting mount has no owner for.
        let shared = Mount { idmap: false, ..volume(&place, "", "/v") };
        racer.mounts = vec![shared.clone()];
        host.begin(&id, &racer).await;
        let count = || fs::read_to_string(place.join("count")).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let rounds = (iterations() / 3).min(1000);
        let mut rounds_raced = 0;
        in_time(async {
            for round in 0..rounds {
                let mut spec = host.shell("target", "true");
                spec.attempt = u32::try_from(round).unwrap();
                spec.mounts = vec![shared.clone()];
                if round % 2 == 0 {
                    spec.cwd = "/v/prey".into();
                } else {
                    spec.mounts.push(volume(&place, "", "/v/prey"));
                }
                let mut events = host.sandboxes().events(&id).await.unwrap();
                if host.sandboxes().start(&id, &spec).await.is_ok() {
                    exit_of(&mut events, "target", spec.attempt).await;
                }
                assert_eq!(bait.metadata().unwrap().uid(), 4_000_000_000, "{kind}: round {round}: given away");
                rounds_raced += u64::from(set_again(&place, &bait));
                let _ = fs::remove_dir_all(spec.rootfs.writable.unwrap());
            }
        })
        .await;
        assert!(rounds_raced > 0 && count().is_some_and(|count| count > 0), "nothing was exchanged");
        host.close().await;
    }
}

/// CVE-2025-52565, CVE-2025-31133: terminals while the pod exchanges what /dev holds.
#[tokio::test]
async fn privileged_escape_terminals_come_from_no_racing_directory() {
    attack!("privileged_escape_terminals_come_from_no_racing_directory");
    for (kind, change) in KINDS {
        let decoys = Decoys::plant();
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("terminals-{kind}"), change).await;
        let raced = Raced::prepare(&host, &decoys);
        fs::write(raced.volume.join("dir/ptmx"), "").unwrap();
        fs::write(raced.volume.join("dir/console"), "").unwrap();
        // The pod's /dev is the volume; its pts is a directory, or a link to the host's.
        let mut racer = host.attacker("racer", &["race", "/v/pts", "/v/link", "/v/count"]);
        fs::rename(raced.volume.join("dir"), raced.volume.join("pts")).unwrap();
        racer.mounts = vec![volume(&raced.volume, "", "/v")];
        let raced = Raced { racer, ..raced };
        raced.begin(&host, &id).await;
        let mut main = host.attacker("main", &["idle"]);
        main.mounts = vec![volume(&raced.volume, "", "/dev")];
        host.begin(&id, &main).await;
        let before = raced.count();
        let rounds = iterations().min(3000);
        in_time(async {
            for round in 0..rounds {
                let mut exec = exec_spec("main", &["/bin/attacker", "fds"]);
                exec.tty = Some((80, 25));
                let result = host.sandboxes().exec(&id, &exec, Stdio::default()).await;
                assert!(result.is_err(), "{kind}: a terminal came from a pod's own directory");
                if round % 10 == 0 {
                    let mut spec = host.attacker("target", &["fds"]);
                    spec.attempt = u32::try_from(round).unwrap();
                    spec.tty = true;
                    spec.mounts = vec![volume(&raced.volume, "", "/dev")];
                    host.attack(&id, &spec).await;
                    let _ = fs::remove_dir_all(spec.rootfs.writable.unwrap());
                }
            }
        })
        .await;
        assert!(raced.count() - before >= rounds as u64 / 2, "{} exchanges", raced.count() - before);
        host.close().await;
        decoys.untouched();
    }
}

/// CVE-2018-15664, CVE-2019-10152: the directory and the program of an exec, while a container exchanges them.
#[tokio::test]
async fn privileged_escape_racing_paths_of_an_exec_stay_inside() {
    attack!("privileged_escape_racing_paths_of_an_exec_stay_inside");
    for (kind, change) in KINDS {
        let decoys = Decoys::plant();
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("exec-{kind}"), change).await;
        let raced = Raced::prepare(&host, &decoys);
        // Outside of the container the link leads to the decoys; inside there is nothing, or another directory.
        raced.begin(&host, &id).await;
        let before = raced.count();
        let rounds = iterations().min(3000);
        in_time(async {
            for round in 0..rounds {
                let cwd = ["/v/dir", "/v/link/..", "/v/dir/../dir", "/proc/self/root/v/dir"][round % 4];
                let program = if round % 8 < 4 { "/bin/busybox" } else { "../dir/program" };
                let words = [program, "sh", "-c", "cat secret data/secret ../../secret 2>/dev/null; pwd"];
                let spec = ExecSpec { cwd: Some(cwd.into()), ..exec_spec("racer", &words) };
                let out = host.path().join("out");
                let stdio = Stdio { stdout: Some(fs::File::create(&out).unwrap().into()), ..Stdio::default() };
                if let Ok(mut process) = host.sandboxes().exec(&id, &spec, stdio).await {
                    process.wait().await.unwrap();
                    let text = fs::read_to_string(&out).unwrap();
                    assert!(!text.contains(decoys.mark()) && !text.contains("unreachable"), "{kind} {cwd}: {text}");
                }
            }
        })
        .await;
        assert!(raced.count() - before >= rounds as u64, "{} exchanges", raced.count() - before);
        host.close().await;
        decoys.untouched();
    }
}

/// CVE-2025-52881, CVE-2019-19921: a container that has put traps over /proc and /dev, joined again and again.
#[tokio::test]
async fn privileged_escape_nothing_is_written_through_a_containers_own_proc() {
    attack!("privileged_escape_nothing_is_written_through_a_containers_own_proc");
    let decoys = Decoys::plant();
    // Only in its own user namespace may a container mount; without one that is the host's power.
    let host = Host::new().await;
    let id = host.sandbox("covered").await;
    let mut spec = host.attacker("main", &["cover", "/bin/attacker", "idle"]);
    spec.security.capabilities.push("CAP_SYS_ADMIN".into());
    spec.security.seccomp = Seccomp::Unconfined;
    spec.resources.oom_score_adj = Some(500);
    host.begin(&id, &spec).await;
    until("traps are set", || host.log(&id, "main", 0).contains("SEEN traps")).await;
    in_time(async {
        for round in 0..iterations().min(2000) {
            let mut exec = exec_spec("main", &["/bin/busybox", "true"]);
            exec.tty = (round % 10 == 9).then_some((80, 25));
            match host.sandboxes().exec(&id, &exec, Stdio::default()).await {
                Ok(mut process) => assert!(exec.tty.is_none() && process.wait().await.unwrap().code == 0),
                Err(error) => assert!(exec.tty.is_some(), "{error}"),
            }
        }
    })
    .await;
    host.close().await;
    decoys.untouched();
}

/// The racer's layer and the link of a rootfs, too: a race in the writable part of a container that is started again.
#[tokio::test]
async fn privileged_escape_a_restarted_container_finds_its_traps_sprung_inside() {
    attack!("privileged_escape_a_restarted_container_finds_its_traps_sprung_inside");
    for (kind, change) in KINDS {
        let decoys = Decoys::plant();
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("again-{kind}"), change).await;
        let writable = host.path().join("again");
        let aim = decoys.path().display();
        let traps = layer(&format!("traps-{kind}"), |root| fs::create_dir(root.join("mnt")).unwrap());
        let script = format!(
            "rm -rf /etc /var /data /mnt; for name in etc var data mnt work upper; do ln -s {aim}/data /$name; done; \
             rmdir /proc /sys /dev 2>/dev/null; mv /proc /p 2>/dev/null; ln -s {aim} /tmp/cwd"
        );
        let data = host.path().join("volume");
        fs::create_dir(&data).unwrap();
        for attempt in 0..3 {
            let mut spec = host.shell("main", &script);
            spec.rootfs.layers.push(traps.clone());
            spec.rootfs.writable = Some(writable.clone());
            spec.attempt = attempt;
            if attempt > 0 {
                spec.mounts = vec![volume(&data, "", "/etc/new"), volume(&data, "", "/mnt")];
                spec.cwd = "/tmp/cwd/new".into();
            }
            // Links that lead to nothing inside are refused; the container's /proc, /sys and /dev are what they were.
            if host.sandboxes().start(&id, &spec).await.is_ok() {
                let mut events = host.sandboxes().events(&id).await.unwrap();
                exit_of(&mut events, "main", attempt).await;
            }
        }
        host.close().await;
        decoys.untouched();
    }
}

/// Takes the prey away, which ends the exchanges, and lays the bait again: whether the prey was there.
fn set_again(place: &Path, bait: &fs::File) -> bool {
    let taken = place.join("taken");
    if fs::rename(place.join("prey"), &taken).is_err() {
        return false;
    }
    if fs::metadata(&taken).unwrap().ino() == bait.metadata().unwrap().ino() {
        fs::remove_dir(place.join("bait")).unwrap();
        fs::rename(&taken, place.join("bait")).unwrap();
    } else {
        fs::remove_dir(&taken).unwrap();
    }
    true
}
