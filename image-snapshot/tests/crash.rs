//! A process that uses a store dies at every named step, and the power with it: what is found afterwards is whole or gone.

#![allow(clippy::unwrap_used)] // A test program throughout.

#[path = "crash/power.rs"]
mod power;
mod support;

use std::{
    collections::BTreeMap,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use image_snapshot::{
    Copies, Images,
    store::{
        Verdict,
        faults::{Point, TRACE, VARIABLE},
    },
};
use power::{CUTS, cut};
use support::{
    images::{File, Made, Packing, tar},
    leftovers, open,
};

/// Deaths per step; `NODELESS_CRASH_DEATHS` says otherwise.
const DEATHS: u32 = 2;
/// No child may take longer.
const PATIENCE: Duration = Duration::from_secs(300);

/// Built here: a test's own build makes no examples that have not all the features.
fn program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let exe = std::env::current_exe().unwrap();
        let profile = exe.parent().and_then(Path::parent).unwrap();
        let what = [
            "build",
            "--quiet",
            "--package",
            "image-snapshot",
            "--features",
            "failpoints",
            "--example",
            "store-worker",
        ];
        let mut build = Command::new(env!("CARGO"));
        build.args(what).arg("--target-dir").arg(profile.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR"));
        let built = build.output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        profile.join("examples/store-worker")
    })
}

/// Two images on one base.
fn layouts(dir: &Path) {
    let layer = |name: &str| (tar(&[File(name, &[b'x'; 30_000]), File("same", name.as_bytes())]), Packing::Gzip);
    for image in ["a", "b"] {
        Made::new(&[layer("base"), layer(image)], |_, _| {}).write_layout(&dir.join(image), "1");
    }
    Made::new(&[(b"no archive".repeat(100), Packing::Gzip)], |_, _| {}).write_layout(&dir.join("bad"), "1");
}

fn worker(args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove(VARIABLE).env_remove(TRACE);
    command
}

/// Runs a whole life; `None`: it died as ordered.
fn live(store: &Path, layouts: &Path, die: Option<(&str, u32)>, trace: Option<&Path>) -> Option<BTreeMap<String, u32>> {
    let mut command = worker(&["life", store.to_str().unwrap(), layouts.to_str().unwrap()]);
    if let Some((step, count)) = die {
        command.env(VARIABLE, format!("{step}:{count}"));
    }
    if let Some(trace) = trace {
        command.env(TRACE, trace);
    }
    let out = command.output().unwrap();
    if out.status.signal() == Some(9) {
        assert!(die.is_some(), "killed by somebody else");
        return None;
    }
    assert!(out.status.success(), "{die:?}: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let line = |line: &str| line.split_once(' ').map(|(step, count)| (step.to_owned(), count.parse().unwrap()));
    Some(text.lines().filter_map(line).collect())
}

fn sorted(store: &Path) -> Vec<String> {
    let mut names = leftovers(store);
    names.sort();
    names
}

/// Opens the store as its next owner does and looks at everything in it.
async fn judge(store: &Path, context: &str) {
    let mut config = support::config(store);
    config.copies = Copies::PerDomain;
    let images = Images::open(config).unwrap();
    let mut damaged = Vec::new();
    for (layer, verdict) in images.verify().await.unwrap() {
        // One byte of one layer was changed on purpose, and the death came before its repair.
        if verdict != Verdict::Sound {
            damaged.push(layer);
        }
    }
    assert!(damaged.len() <= 1, "{context}: {damaged:?}");
    for image in images.list().await.unwrap() {
        let found = images.of_domain(&image.domain).get_local(&image.reference).await.unwrap();
        if let Some(found) = found {
            let top = found.rootfs.read_file("same", 100).unwrap().unwrap();
            let name = if image.reference.ends_with("/a") { &b"a"[..] } else { b"b" };
            assert_eq!(top, name, "{context}: {}", image.reference);
        } else {
            // Only where its rotten layer had been taken out, or had the wrong size, and was not there again yet.
            assert!(
                image.reference.ends_with("/b") && !image.complete,
                "{context}: {image:?} is a name without its image"
            );
        }
    }
    drop(images);
    let names = sorted(store);
    assert!(!names.iter().any(|name| name.starts_with("ingest")), "{context}: {names:?}");
    let layers: Vec<&String> = names.iter().filter(|name| name.starts_with("layers")).collect();
    for name in &layers {
        let stem = name.rsplit_once('.').unwrap().0;
        assert_eq!(layers.iter().filter(|other| other.starts_with(stem)).count(), 2, "{context}: {names:?}");
    }
}

#[tokio::test]
async fn a_death_at_any_step_and_a_power_cut_leave_each_layer_whole_or_gone() {
    // In memory, where there is such a place: what is synced is known from the trace, so the disk need not do it.
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
    let layouts_dir = dir.path().join("layouts");
    layouts(&layouts_dir);
    let calm = dir.path().join("calm");
    let counts = live(&calm, &layouts_dir, None, None).unwrap();
    let expected = sorted(&calm);
    let never: Vec<_> = Point::ALL.iter().filter(|point| counts[point.name()] == 0).collect();
    assert_eq!(never, [&Point::LeaseHonoured; 0], "steps that the worker does not take");
    let deaths: u32 = std::env::var("NODELESS_CRASH_DEATHS").map_or(DEATHS, |n| n.parse().unwrap());
    let (mut died, mut undone, mut turn) = (0, 0, 0_usize);
    for point in Point::ALL {
        let passed = counts[point.name()];
        // The first, the last, and some between, each time with another way to lose power, or none.
        let mut at: Vec<u32> =
            (0..deaths.min(passed)).map(|i| 1 + (passed - 1) * i / (deaths.min(passed) - 1).max(1)).collect();
        at.dedup();
        for count in at {
            // Every third time the power stays.
            let how = (turn % 3 != 0).then(|| CUTS[turn % CUTS.len()]);
            turn += 1;
            let (store, trace) = (dir.path().join("store"), dir.path().join("trace"));
            std::fs::create_dir(&trace).unwrap();
            let context = format!("{}:{count} {how:?}", point.name());
            if live(&store, &layouts_dir, Some((point.name(), count)), Some(&trace)).is_none() {
                died += 1;
                if let Some(how) = how {
                    undone += usize::from(cut(&store, &trace, how) > 0);
                }
                judge(&store, &context).await;
                // Whoever goes on from there comes to the same end.
                assert!(live(&store, &layouts_dir, None, None).is_some(), "{context}");
                assert_eq!(sorted(&store), expected, "{context}");
            }
            std::fs::remove_dir_all(&trace).unwrap();
            let _ = std::fs::remove_dir_all(&store);
        }
    }
    eprintln!("{died} deaths at {} steps, {undone} power cuts that changed something", Point::ALL.len());
    assert!(died > Point::ALL.len() && undone > 10, "{died} deaths, {undone} power cuts");
}

/// A child that is killed if the test fails.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Ours, and not waited for yet unless it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn many_processes_that_pull_remove_collect_and_verify_and_die_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, layouts_dir) = (dir.path().join("store"), dir.path().join("layouts"));
    layouts(&layouts_dir);
    let name = |image: &str| format!("oci-layout:{}", layouts_dir.join(image).display());
    let (kept, other) = (name("a"), name("b"));
    drop(support::pull(&open(&store), &kept).await.unwrap());
    let store_text = store.to_str().unwrap();
    let roles: [&[&str]; 5] = [
        &["ensure", store_text, &other],
        &["evict", store_text, &kept],
        &["remove", store_text, &other],
        &["verify", store_text],
        &["ensure", store_text, &kept],
    ];
    let began = Instant::now();
    let (mut ended, mut killed) = (0, 0);
    for round in 0..12_u32 {
        // All at once; every third is killed somewhere on its way.
        let mut processes: Vec<Process> = roles.iter().map(|role| Process(worker(role).spawn().unwrap())).collect();
        for (index, process) in processes.iter_mut().enumerate() {
            if (index as u32 + round).is_multiple_of(3) {
                std::thread::sleep(Duration::from_millis(u64::from(round * 5)));
                let _ = process.0.kill();
            }
        }
        for process in &mut processes {
            let status = loop {
                if let Some(status) = process.0.try_wait().unwrap() {
                    break status;
                }
                assert!(began.elapsed() < PATIENCE, "a process does not end");
                std::thread::sleep(Duration::from_millis(5));
            };
            if status.signal() == Some(9) {
                killed += 1;
            } else {
                let said = std::io::read_to_string(process.0.stderr.take().unwrap()).unwrap();
                assert!(status.success(), "{said}");
                ended += 1;
            }
        }
        drop(processes);
        let images = open(&store);
        assert!(images.verify().await.unwrap().iter().all(|(_, verdict)| *verdict == Verdict::Sound));
        let image = images.get_local(&kept).await.unwrap().expect("the pinned image was lost");
        assert_eq!(image.rootfs.read_file("same", 100).unwrap().unwrap(), b"a");
        for image in images.list().await.unwrap() {
            assert!(image.complete && images.get_local(&image.reference).await.unwrap().is_some(), "{image:?}");
        }
    }
    eprintln!("{ended} processes ended, {killed} were killed");
    assert!(ended > 20 && killed > 0, "{ended}, {killed}");
}
