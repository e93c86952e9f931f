//! Images from directories, and from Debian's own tools and registry.
#![allow(clippy::unwrap_used)] // A test program throughout.

mod support;

use std::{
    io::Write as _,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use image_snapshot::{ErrorKind, ImageError, Images, LocalAccess, LocalSources, PullPolicy};
use support::{
    config,
    images::{File, Made, Packing, tar},
    open, pull, request,
};

#[tokio::test]
async fn a_layout_is_read_by_tag_or_alone() {
    let (root, layout) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let made = Made::new(&[(tar(&[File("etc/passwd", b"root:x:0:0")]), Packing::Zstd)], |_, _| {});
    made.write_layout(layout.path(), "v1");
    let images = open(root.path());
    for suffix in ["", ":v1"] {
        let name = format!("oci-layout:{}{suffix}", layout.path().display());
        let image = pull(&images, &name).await.unwrap();
        assert_eq!(image.repo_digest, made.config, "no repository: the image id");
        assert_eq!(image.rootfs.read_file("etc/passwd", 100).unwrap().unwrap(), b"root:x:0:0");
    }
    let error = pull(&images, &format!("oci-layout:{}:v2", layout.path().display())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.chain().contains("v1"), "{}", error.chain());
    assert_eq!(pull(&images, "oci-layout:/no/such/dir").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(pull(&images, "docker-archive:/no/such.tar").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn of_a_layout_with_several_images_one_must_be_named() {
    let (root, layout) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let one = |content: &[u8]| Made::new(&[(tar(&[File("content", content)]), Packing::Gzip)], |_, _| {});
    let (first, second) = (one(b"first"), one(b"second"));
    let images = open(root.path());
    let written = |named: &[(&Made, &str)]| {
        let mut entries = Vec::new();
        for (made, tag) in named {
            made.write_layout(layout.path(), tag);
            let index = std::fs::read(layout.path().join("index.json")).unwrap();
            let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
            entries.extend(index["manifests"].as_array().unwrap().clone());
        }
        let index = serde_json::json!({"schemaVersion": 2, "manifests": entries});
        std::fs::write(layout.path().join("index.json"), index.to_string()).unwrap();
        format!("oci-layout:{}", layout.path().display())
    };
    let name = written(&[(&first, "v1"), (&second, "v2")]);
    let error = pull(&images, &name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.chain().contains("say which: v1, v2"), "{}", error.chain());
    let image = pull(&images, &format!("{name}:v2")).await.unwrap();
    assert_eq!(image.rootfs.read_file("content", 100).unwrap().unwrap(), b"second");
    // Two names of one image leave no choice.
    let name = written(&[(&first, "v1"), (&first, "latest")]);
    let image = pull(&images, &name).await.unwrap();
    assert_eq!(image.rootfs.read_file("content", 100).unwrap().unwrap(), b"first");
}

#[tokio::test]
async fn archives_by_skopeo_hold_the_same_image() {
    if !Path::new("/usr/bin/skopeo").exists() {
        eprintln!("SKIPPED archives_by_skopeo_hold_the_same_image: /usr/bin/skopeo is missing");
        return;
    }
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let layers = [(tar(&[File("a", b"1")]), Packing::Gzip), (tar(&[File("b", &[2; 300_000])]), Packing::Gzip)];
    Made::new(&layers, |_, _| {}).write_layout(&dir.path().join("layout"), "v1");
    let from = dir.path().join("layout").display().to_string();
    let images = open(root.path());
    let want = pull(&images, &format!("oci-layout:{from}:v1")).await.unwrap();
    for (scheme, name) in [("oci-archive", "v1"), ("docker-archive", "example.com/app:v1")] {
        let path = dir.path().join(scheme).display().to_string();
        let output = Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--insecure-policy",
                &format!("oci:{from}:v1"),
                &format!("{scheme}:{path}:{name}"),
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for suffix in [String::new(), format!(":{name}")] {
            let image = pull(&images, &format!("{scheme}:{path}{suffix}")).await.unwrap();
            assert_eq!(image.rootfs, want.rootfs, "{scheme}{suffix}");
        }
        let error = pull(&images, &format!("{scheme}:{path}:other")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.chain());
        assert!(error.chain().contains(name), "{}", error.chain());
    }
    let path = dir.path().join("noise");
    std::fs::write(&path, vec![7; 5000]).unwrap();
    let error = pull(&images, &format!("docker-archive:{}", path.display())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidImage, "{}", error.chain());
}

#[tokio::test]
async fn a_pod_may_name_only_the_directories_that_the_host_allows() {
    let (root, allowed, other) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&allowed, &other] {
        Made::simple(b"x").write_layout(&dir.path().join("image"), "1");
    }
    std::os::unix::fs::symlink(other.path(), allowed.path().join("way-out")).unwrap();
    let mut config = config(root.path());
    config.local_sources = LocalSources::Under(vec![allowed.path().to_owned()]);
    let images = Images::open(config).unwrap();
    let ensure = |path: std::path::PathBuf| {
        let mut wish = request(&format!("oci-layout:{}", path.display()), PullPolicy::IfNotPresent);
        wish.local = LocalAccess::AllowList;
        images.ensure(wish, |_| {})
    };
    ensure(allowed.path().join("image")).await.unwrap();
    for path in [other.path().join("image"), allowed.path().join("way-out/image"), allowed.path().join("missing")] {
        let error = ensure(path).await.unwrap_err();
        assert!(matches!(error, ImageError::LocalRefused { .. }), "{error:?}");
    }
    // Even what the host's operator pulled before.
    let name = format!("oci-layout:{}", other.path().join("image").display());
    pull(&images, &name).await.unwrap();
    let mut wish = request(&name, PullPolicy::Never);
    wish.local = LocalAccess::AllowList;
    assert!(matches!(images.ensure(wish, |_| {}).await, Err(ImageError::LocalRefused { .. })));
}

#[tokio::test]
async fn links_and_pipes_in_a_layout_are_not_followed_or_waited_for() {
    let (root, layout) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let made = Made::simple(b"x");
    made.write_layout(layout.path(), "1");
    let blob = layout.path().join("blobs/sha256").join(&made.config["sha256:".len()..]);
    let name = format!("oci-layout:{}", layout.path().display());
    let images = open(root.path());
    std::fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &blob).unwrap();
    assert!(pull(&images, &name).await.is_err());
    std::fs::remove_file(&blob).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &blob, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let waiting = tokio::time::timeout(Duration::from_secs(10), pull(&images, &name));
    assert!(waiting.await.expect("hangs on a pipe").is_err());
}

#[tokio::test]
async fn verify_finds_a_rotten_layer_and_the_next_pull_mends_it() {
    let (root, layout) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let layers = [b"one", b"two"].map(|c| (tar(&[File(std::str::from_utf8(c).unwrap(), c)]), Packing::Gzip));
    Made::new(&layers, |_, _| {}).write_layout(layout.path(), "1");
    let name = format!("oci-layout:{}", layout.path().display());
    let images = open(root.path());
    let image = pull(&images, &name).await.unwrap();
    let path = image.rootfs.layers[0].path.clone();
    let sound = std::fs::read(&path).unwrap();
    let mut rotten = sound.clone();
    rotten[5000] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &rotten).unwrap();
    let verdicts = images.verify().await.unwrap();
    let damaged: Vec<_> = verdicts
        .iter()
        .filter(|(_, v)| *v != image_snapshot::store::Verdict::Sound)
        .map(|(id, _)| id.clone())
        .collect();
    assert_eq!(damaged.len(), 1);
    assert!(!images.discard(&damaged[0]).await.unwrap(), "in use");
    drop(image);
    assert!(images.discard(&damaged[0]).await.unwrap());
    assert!(images.get_local(&name).await.unwrap().is_none());
    images.ensure(request(&name, PullPolicy::IfNotPresent), |_| {}).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), sound, "byte for byte what it was");
}

#[tokio::test]
async fn a_pull_killed_at_any_moment_leaves_whole_layers_or_none() {
    let (layout, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let layers: Vec<_> = (0..6_u8)
        .map(|i| (tar(&[File(&format!("f{i}"), &vec![i; 400_000]), File("same", &[i; 5000])]), Packing::Gzip))
        .collect();
    Made::new(&layers, |_, _| {}).write_layout(layout.path(), "1");
    let name = format!("oci-layout:{}", layout.path().display());
    let program = example("pull");
    let (mut killed, mut partial) = (0, 0);
    for round in 0..40_u64 {
        let mut pull = Command::new(&program);
        pull.arg(root.path()).arg(&name).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = pull.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_millis(round * 3);
        let done = loop {
            if let Some(status) = child.try_wait().unwrap() {
                if status.success() {
                    break true;
                }
                // A program that another test of this process is about to execute has a copy of our own lock until then.
                let said = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
                assert!(said.contains("is in use by another process"), "{status}: {said}");
                child = pull.spawn().unwrap();
            }
            if Instant::now() >= deadline {
                break false;
            }
            std::thread::yield_now();
        };
        // It is our own child and not waited for yet, so the kill cannot hit another.
        let _ = child.kill();
        child.wait().unwrap();
        killed += u32::from(!done);
        let images = open(root.path());
        let verdicts = images.verify().await.unwrap();
        assert!(verdicts.iter().all(|(_, v)| *v == image_snapshot::store::Verdict::Sound), "{verdicts:?}");
        assert!(std::fs::read_dir(root.path().join("ingest")).unwrap().next().is_none());
        partial += u32::from(!verdicts.is_empty() && verdicts.len() < 6);
        if let Some(image) = images.get_local(&name).await.unwrap() {
            assert_eq!(image.rootfs.read_file("same", 10_000).unwrap().unwrap(), [5; 5000]);
        }
        if done {
            // Begin again from nothing.
            images.remove(&name).await.unwrap();
            images.allow_gc();
            images.gc().await.unwrap();
            assert_eq!(support::leftovers(root.path()), [""; 0]);
        }
    }
    eprintln!("killed {killed} of 40 pulls, {partial} times between the first layer and the last");
    assert!(killed > 5, "the pulls were too quick to be killed: {killed}");
    let image = pull(&open(root.path()), &name).await.unwrap();
    assert_eq!(image.rootfs.layers.len(), 6);
}

#[tokio::test]
async fn a_full_disk_is_told_and_leaves_nothing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED a_full_disk_is_told_and_leaves_nothing: needs root to mount a small tmpfs");
        return;
    }
    let (root, layout) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mounted = Mounted::tmpfs(root.path(), "size=4m");
    Made::simple(&vec![7; 16 << 20]).write_layout(layout.path(), "1");
    let images = open(root.path());
    let error = pull(&images, &format!("oci-layout:{}", layout.path().display())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{}", error.chain());
    assert_eq!(support::leftovers(root.path()), [""; 0]);
    drop((images, mounted));
}

fn converter() -> std::path::PathBuf {
    example("layer-converter")
}

/// An example program, beside this test's own.
fn example(name: &str) -> std::path::PathBuf {
    let exe = std::env::current_exe().unwrap();
    let path = exe.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(path.exists(), "{path:?} is missing: a run of all of this package's tests builds it");
    path
}

fn helped(root: &Path) -> Images {
    let mut config = config(root);
    config.converter = image_snapshot::Converter::Program { program: converter(), args: vec![] };
    Images::open(config).unwrap()
}

#[tokio::test]
async fn a_confined_helper_makes_the_same_bytes() {
    let layout = tempfile::tempdir().unwrap();
    let layers = [
        (tar(&[File("lib/a", &[1; 3_000_000]), File("b", b"2")]), Packing::Gzip),
        (tar(&[File("lib/c", b"3")]), Packing::Zstd),
        (tar(&[File(".wh.b", b"")]), Packing::Plain),
    ];
    Made::new(&layers, |_, _| {}).write_layout(layout.path(), "1");
    let name = format!("oci-layout:{}", layout.path().display());
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let one = pull(&open(here.path()), &name).await.unwrap();
    let other = pull(&helped(there.path()), &name).await.unwrap();
    assert_eq!(one.rootfs.layers.len(), 3);
    for (a, b) in one.rootfs.layers.iter().zip(&other.rootfs.layers) {
        assert!(std::fs::read(&a.path).unwrap() == std::fs::read(&b.path).unwrap());
    }
}

/// Killed and reaped whatever happens.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_helper_has_given_up_its_privileges_before_it_looks_at_anything() {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (_ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let child = Reaped(Command::new(converter()).stdin(Stdio::from(theirs)).spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(10);
    let status = loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.0.id())).unwrap();
        if status.contains("Seccomp:\t2") {
            break status;
        }
        assert!(Instant::now() < deadline, "{status}");
        std::thread::yield_now();
    };
    for wanted in ["NoNewPrivs:\t1", "CapEff:\t0000000000000000", "Threads:\t1"] {
        assert!(status.contains(wanted), "{wanted}: {status}");
    }
    if rustix::process::geteuid().is_root() {
        assert!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
        assert!(status.contains("Groups:\t \n"), "{status}");
    }
}

#[tokio::test]
async fn a_helper_refuses_with_the_same_class_and_leaves_nothing() {
    let layer = || vec![(tar(&[File("x", &[7; 500_000])]), Packing::Gzip)];
    let wrong_diff_id = Made::new(&layer(), |c, _| {
        c["rootfs"]["diff_ids"][0] = image_snapshot::Digest::sha256(b"no").to_string().into();
    });
    let hostile = Made::new(&[(tar(&[File("a", b""), File("a/b", b"")]), Packing::Gzip)], |_, _| {});
    for (made, kind) in [(wrong_diff_id, ErrorKind::Corrupt), (hostile, ErrorKind::InvalidImage)] {
        let (root, layout) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        made.write_layout(layout.path(), "1");
        let error = pull(&helped(root.path()), &format!("oci-layout:{}", layout.path().display())).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{}", error.chain());
        assert_eq!(support::leftovers(root.path()), [""; 0]);
    }
}

#[tokio::test]
async fn a_helper_that_dies_or_does_not_exist_is_told() {
    let layout = tempfile::tempdir().unwrap();
    Made::simple(b"x").write_layout(layout.path(), "1");
    let name = format!("oci-layout:{}", layout.path().display());
    for (program, says) in [("/bin/false", "exit status: 1"), ("/no/such/program", "start")] {
        let root = tempfile::tempdir().unwrap();
        let mut config = config(root.path());
        config.converter = image_snapshot::Converter::Program { program: program.into(), args: vec![] };
        let error = pull(&Images::open(config).unwrap(), &name).await.unwrap_err();
        assert!(error.chain().contains(says), "{}", error.chain());
        assert_eq!(error.kind(), ErrorKind::Store);
        assert_eq!(support::leftovers(root.path()), [""; 0]);
    }
}

struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, options: &str) -> Self {
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).status().unwrap();
        assert!(status.success());
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

struct Registry {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Registry {
    /// Debian's docker-registry on a free port.
    fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yml");
        let mut file = std::fs::File::create(&path).unwrap();
        write!(
            file,
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
            dir.path().join("data").display()
        )
        .unwrap();
        let child = Command::new("/usr/bin/docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { child, port, _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            std::thread::yield_now();
        }
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_through_debians_registry_and_back() {
    for needed in ["/usr/bin/docker-registry", "/usr/bin/skopeo", "/bin/busybox"] {
        if !Path::new(needed).exists() {
            eprintln!("SKIPPED an_image_goes_through_debians_registry_and_back: {needed} is missing");
            return;
        }
    }
    let (root, layout) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let layers = [
        (tar(&[File("bin/busybox", &busybox), File("etc/passwd", b"root:x:0:0")]), Packing::Gzip),
        (tar(&[File("etc/group", b"root:x:0:")]), Packing::Plain),
    ];
    Made::new(&layers, |_, _| {}).write_layout(layout.path(), "1");
    let registry = Registry::start();
    for format in ["oci", "v2s2"] {
        let target = format!("localhost:{}/test/busybox:{format}", registry.port);
        let output = Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", "--format", format])
            .arg(format!("oci:{}:1", layout.path().display()))
            .arg(format!("docker://{target}"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let images = open(root.path());
        let image = pull(&images, &target).await.unwrap();
        assert_eq!(image.rootfs.read_file("bin/busybox", 1 << 24).unwrap().unwrap(), busybox);
        assert!(image.repo_digest.starts_with(&format!("localhost:{}/test/busybox@sha256:", registry.port)));
        let error = pull(&images, &format!("localhost:{}/test/busybox:none", registry.port)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
