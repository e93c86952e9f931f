//! Images as a host's operator sees and mends them, through the client and a real registry.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::registry::{DebianRegistry, Registry};
use tests::stack::{Programs, Stack, is_root, items, run, wait};

/// An address of this test's own network, for documents (RFC 5737): no loopback address to anybody.
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

/// What `statfs` calls an EROFS.
const EROFS: u64 = 0xE0F5_E1E2;

fn pod(namespace: &str, name: &str, image: &str, policy: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": image, "imagePullPolicy": policy,
                "command": ["sh", "-c", "sha256sum /bin/busybox; sleep 1000"],
            }],
        },
    })
}

fn status(stack: &Stack, name: &str) -> Result<Value> {
    let pods = stack.client(&["ps"])?;
    let found = items(&pods).iter().find(|pod| pod["name"] == name).map(|pod| pod["status"].clone());
    found.with_context(|| format!("no pod {name} in {pods}"))
}

fn until_running(stack: &Stack, name: &str) -> Result<()> {
    wait(&format!("pod {name} runs"), || {
        let status = status(stack, name)?;
        ensure!(status["phase"] == "Running", "{status}");
        Ok(true)
    })
}

/// Waits until a pod waits for this reason, with this in the message.
fn until_waiting(stack: &Stack, name: &str, reason: &str, words: &[&str]) -> Result<()> {
    wait(&format!("pod {name} waits: {reason}, {words:?}"), || {
        let status = status(stack, name)?;
        let why = &status["containerStatuses"][0]["state"]["waiting"];
        let message = why["message"].as_str().unwrap_or_default();
        let is_so = why["reason"] == reason && words.iter().all(|word| message.contains(word));
        ensure!(is_so, "{status}");
        Ok(true)
    })
}

fn end(stack: &Stack, name: &str) -> Result<()> {
    stack.remove_manifest(name)?;
    wait(&format!("pod {name} is gone"), || Ok(status(stack, name).is_err()))
}

/// The files of all layers.
fn layers(stack: &Stack) -> Result<Vec<PathBuf>> {
    let dir = stack.path("agent-state/images/layers/sha256");
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        found.extend(path.extension().is_some_and(|is| is == "erofs").then_some(path));
    }
    Ok(found)
}

/// The domains that have a copy of an image, each of them in use or not.
fn copies(stack: &Stack, image: &str) -> Result<BTreeSet<(String, bool)>> {
    let list = stack.client(&["images", "ls"])?;
    let of = |item: &Value| {
        (item["domain"].as_str().unwrap_or_default().to_owned(), item["in_use"].as_bool().unwrap_or_default())
    };
    Ok(items(&list).iter().filter(|item| item["references"][0] == image).map(of).collect())
}

fn are(domains: &[(&str, bool)]) -> BTreeSet<(String, bool)> {
    domains.iter().map(|(domain, in_use)| ((*domain).to_owned(), *in_use)).collect()
}

#[test]
fn e2e_namespaces_that_keep_copies_of_their_own_use_and_lose_only_these() -> Result<()> {
    if !is_root("e2e_namespaces_that_keep_copies_of_their_own_use_and_lose_only_these") {
        return Ok(());
    }
    let stack = Stack::up_with("copies", &["--image-copies", "namespace"], &[])?;
    let registry = Registry::start(Path::new(stack.busybox()?.trim_start_matches("oci-layout:")))?;
    let image = registry.image("shared", &[])?;
    for (namespace, name) in [("red", "first"), ("blue", "second")] {
        stack.put_manifest(name, &pod(namespace, name, &image, "IfNotPresent"))?;
        until_running(&stack, name)?;
    }
    ensure!(copies(&stack, &image)? == are(&[("red", true), ("blue", true)]), "{:?}", copies(&stack, &image)?);
    let printed = stack.client_text(&["images"])?;
    ensure!(
        printed.lines().filter(|line| line.ends_with("   red") || line.ends_with("   blue")).count() == 2,
        "{printed}"
    );
    // Each was fetched for itself, and lies in files of its own.
    let blobs: Vec<String> =
        registry.requests("shared").into_iter().filter(|r| r.starts_with("GET") && r.contains("/blobs/")).collect();
    let distinct: BTreeSet<&String> = blobs.iter().collect();
    ensure!(blobs.len() == 2 * distinct.len(), "{blobs:?}");
    let files = layers(&stack)?.len();
    ensure!(files > 0 && files.is_multiple_of(2), "{files} layers");

    // What nobody uses goes; what the other namespace uses stays, though it is the same image.
    stack.client(&["images", "gc", "--unused-for", "0"])?;
    ensure!(layers(&stack)?.len() == files, "a copy in use went");
    end(&stack, "first")?;
    wait("only the copy that is in use is left", || {
        stack.client(&["images", "gc", "--unused-for", "0"])?;
        Ok(copies(&stack, &image)? == are(&[("blue", true)]) && layers(&stack)?.len() == files / 2)
    })?;
    // What is left is no image for the namespace whose copy went …
    let asked = registry.requests("shared").len();
    stack.put_manifest("never", &pod("red", "never", &image, "Never"))?;
    until_waiting(&stack, "never", "ErrImageNeverPull", &[])?;
    ensure!(registry.requests("shared").len() == asked, "the registry was asked");
    end(&stack, "never")?;
    // … and is one for the other, whose pod still runs and reads it.
    stack.put_manifest("third", &pod("blue", "third", &image, "Never"))?;
    until_running(&stack, "third")?;
    let sum = stack.client_text(&["exec", "second", "--namespace", "blue", "--", "sha256sum", "/bin/busybox"])?;
    ensure!(sum.contains("/bin/busybox"), "{sum}");
    ensure!(registry.requests("shared").len() == asked, "the registry was asked");

    // Removed by name: one copy, then every one.
    stack.put_manifest("again", &pod("red", "again", &image, "IfNotPresent"))?;
    until_running(&stack, "again")?;
    end(&stack, "again")?;
    ensure!(copies(&stack, &image)?.len() == 2, "{:?}", copies(&stack, &image)?);
    let said = stack.client_text(&["images", "rm", &image, "--copy-of", "green"])?;
    ensure!(said == "host-1: not there\n", "{said}");
    wait("the layers that nobody uses are gone", || {
        stack.client_text(&["images", "rm", &image, "--copy-of", "red"])?;
        Ok(layers(&stack)?.len() == files / 2)
    })?;
    ensure!(copies(&stack, &image)? == are(&[("blue", true)]), "{:?}", copies(&stack, &image)?);
    stack.client_text(&["images", "rm", &image])?;
    ensure!(copies(&stack, &image)?.is_empty(), "{:?}", copies(&stack, &image)?);
    // Its layers stay for the pods that run on them.
    stack.client_text(&["exec", "third", "--namespace", "blue", "--", "sha256sum", "/bin/busybox"])?;
    for name in ["second", "third"] {
        end(&stack, name)?;
    }
    stack.down()
}

/// Pushes busybox in so many layers.
fn push_busybox(registry: &DebianRegistry, name: &str, layers: u32) -> Result<String> {
    let layout = registry.scratch(&format!("layout-{layers}"));
    let mut make = Command::new(Programs::find()?.xtask);
    run(make.args(["busybox-layout", "--layers", &layers.to_string()]).arg(&layout))?;
    registry.push(&format!("oci:{}:latest", layout.display()), name)
}

/// Changes a byte of the longest layer, as a disk does that forgets; its chain id.
fn damage(stack: &Stack) -> Result<String> {
    let longest = layers(stack)?.into_iter().max_by_key(|path| path.metadata().map_or(0, |is| is.len()));
    let path = longest.context("no layer")?;
    let mut bytes = fs::read(&path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes)?;
    Ok(format!("sha256:{}", path.file_stem().unwrap_or_default().to_string_lossy()))
}

#[test]
fn e2e_a_damaged_layer_is_named_by_verify_and_brought_anew_by_repair() -> Result<()> {
    if !is_root("e2e_a_damaged_layer_is_named_by_verify_and_brought_anew_by_repair") {
        return Ok(());
    }
    let registry = DebianRegistry::plain(Ipv4Addr::LOCALHOST.into())?;
    let image = push_busybox(&registry, "team/busybox:1", 3)?;
    let stack = Stack::up("repair")?;
    let said = stack.client_text(&["images", "pull", &image])?;
    ensure!(said == format!("host-1: {image} is ready\n"), "{said}");
    let listed = |stack: &Stack| -> Result<String> {
        let printed = stack.client_text(&["images", "ls"])?;
        let (head, row) = printed.split_once('\n').context("a table")?;
        let head: Vec<&str> = head.split("   ").map(str::trim).filter(|word| !word.is_empty()).collect();
        ensure!(head == ["HOST", "IMAGE", "DIGEST", "SIZE", "LAYERS", "USED", "KEPT", "COPY OF"], "{printed}");
        let row: Vec<&str> = row.split_whitespace().collect();
        ensure!(row.len() == 6 && row[..2] == ["host-1", &image], "{printed}");
        ensure!(row[2].len() == 12 && row[3].ends_with("Mi") && row[4] == "3" && row[5].ends_with('s'), "{printed}");
        Ok(row[2].to_owned())
    };
    let digest = listed(&stack)?;
    ensure!(stack.client_text(&["images", "verify"])? == "3 of 3 layers are sound\n");

    let layer = damage(&stack)?;
    let (code, said) = stack.client_fails(&["images", "verify"])?;
    ensure!(code == 1, "{code}: {said}");
    ensure!(said == format!("host-1: {layer} of {image} is damaged\n2 of 3 layers are sound\n"), "{said}");
    // What the tag means by now is another image; what was here is brought back.
    push_busybox(&registry, "team/busybox:1", 2)?;
    let said = stack.client_text(&["images", "verify", "--repair"])?;
    ensure!(said == format!("host-1: {layer} of {image} is damaged: repaired\n2 of 3 layers are sound\n"), "{said}");
    ensure!(stack.client_text(&["images", "verify"])? == "3 of 3 layers are sound\n");
    ensure!(listed(&stack)? == digest, "another image under its name");

    stack.put_manifest("mended", &pod("default", "mended", &image, "Never"))?;
    until_running(&stack, "mended")?;
    // While a pod runs on it, it stays.
    let layer = damage(&stack)?;
    let (code, said) = stack.client_fails(&["images", "verify", "--repair"])?;
    ensure!(code == 1 && said.contains(&format!("{layer} of {image} is damaged: in use: a pod runs on it")), "{said}");
    end(&stack, "mended")?;
    // Without its registry it stays as it is, and whoever runs the host is told what to do.
    registry.down()?;
    wait("the layer is in use no longer", || {
        let (code, said) = stack.client_fails(&["images", "verify", "--repair"])?;
        ensure!(code == 1, "{code}: {said}");
        if said.contains("is damaged: in use: ") {
            return Ok(false);
        }
        ensure!(said.contains(&format!("{layer} of {image} is damaged: failed: ")), "{said}");
        ensure!(said.contains("nothing was removed; ") && said.contains("(nodeless images rm)"), "{said}");
        Ok(true)
    })?;
    let (code, said) = stack.client_fails(&["images", "verify"])?;
    ensure!(code == 1 && said == format!("host-1: {layer} of {image} is damaged\n2 of 3 layers are sound\n"), "{said}");
    stack.client_text(&["images", "rm", &image])?;
    stack.put_manifest("gone", &pod("default", "gone", &image, "Never"))?;
    until_waiting(&stack, "gone", "ErrImageNeverPull", &[])?;
    end(&stack, "gone")?;
    stack.down()
}

/// The devices of the layers that a process holds mounted.
fn mounted_by(process: u32) -> Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        let path = entry?.path();
        // What is closed meanwhile is none.
        let Ok(of) = rustix::fs::statfs(&path) else { continue };
        if u64::try_from(of.f_type) == Ok(EROFS) {
            found.insert(fs::metadata(&path)?.dev());
        }
    }
    Ok(found)
}

#[test]
fn e2e_a_new_agent_finds_layers_mounted_and_mounts_none_of_them_again() -> Result<()> {
    if !is_root("e2e_a_new_agent_finds_layers_mounted_and_mounts_none_of_them_again") {
        return Ok(());
    }
    let mut stack = Stack::up("mounts")?;
    let registry = Registry::start(Path::new(stack.busybox()?.trim_start_matches("oci-layout:")))?;
    let image = registry.image("mounts", &[])?;
    stack.put_manifest("before", &pod("default", "before", &image, "IfNotPresent"))?;
    until_running(&stack, "before")?;
    let keeper = stack.keeper().context("a keeper")?;
    // A second mount of a layer would have a second copy of its pages.
    let mounted = mounted_by(keeper)?;
    ensure!(mounted.len() == layers(&stack)?.len(), "{mounted:?}: {:?}", layers(&stack)?);
    stack.agent.take().context("the agent runs")?.kill()?;
    stack.start_agent()?;
    stack.put_manifest("after", &pod("default", "after", &image, "Never"))?;
    until_running(&stack, "after")?;
    ensure!(stack.keeper() == Some(keeper), "another keeper");
    ensure!(mounted_by(keeper)? == mounted, "{:?}, not {mounted:?}", mounted_by(keeper)?);
    for name in ["before", "after"] {
        end(&stack, name)?;
    }
    stack.down()
}

/// Does it in a network of its own, in which [`OUTSIDE`] is an address of this machine.
fn in_a_network_of_its_own(work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    let alone = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("leave the host's network")?;
        run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        run(Command::new("ip").args(["address", "add", &format!("{OUTSIDE}/32"), "dev", "lo"]))?;
        work()
    };
    // What it starts, threads and processes, is in its network.
    std::thread::scope(|scope| scope.spawn(alone).join()).map_err(|_| anyhow::anyhow!("it panicked"))?
}

#[test]
fn e2e_registries_are_trusted_as_far_as_the_operator_says() -> Result<()> {
    if !is_root("e2e_registries_are_trusted_as_far_as_the_operator_says") {
        return Ok(());
    }
    in_a_network_of_its_own(|| {
        let plain = DebianRegistry::plain(OUTSIDE)?;
        let (known, unknown) = (DebianRegistry::over_tls(OUTSIDE)?, DebianRegistry::over_tls(OUTSIDE)?);
        let mut stack = Stack::up("reach")?;
        let mut images = Vec::new();
        for (name, registry, layers) in [("plain", &plain, 1), ("known", &known, 2), ("unknown", &unknown, 3)] {
            let image = push_busybox(registry, &format!("{name}:1"), layers)?;
            stack.put_manifest(name, &pod("default", name, &image, "IfNotPresent"))?;
            images.push((name, registry.address.clone(), image));
        }
        // Nobody has said anything: each is refused, and the pod is told which setting would help.
        for (name, address, image) in &images {
            let speaks = format!("{address} speaks plain HTTP, not HTTPS");
            let untrusted = format!("the certificate of {address} is not trusted");
            let words: [&str; 2] =
                if *name == "plain" { [&speaks, "insecure-registry"] } else { [&untrusted, "the setting registries"] };
            until_waiting(&stack, name, "ImagePullBackOff", &words)?;
            let (code, said) = stack.client_fails(&["images", "pull", image])?;
            ensure!(code == 1 && words.iter().all(|word| said.contains(word)), "{code}: {said}");
        }
        // The operator says it: one in plain HTTP, one by its certificate, one by its name alone.
        let file = stack.path("registries.toml");
        let [_, (_, known_address, _), (_, unknown_address, _)] = images.as_slice() else { unreachable!() };
        let text = format!(
            "[{known_address:?}]\nca = [{:?}]\n[{unknown_address:?}]\nunverified = true\n",
            known.certificate()
        );
        fs::write(&file, text)?;
        stack.agent.take().context("the agent runs")?.terminate(tests::stack::PATIENCE)?;
        let settings = ["--insecure-registry", &plain.address, "--registries", &file.display().to_string()];
        stack.agent_flags.extend(settings.map(str::to_owned));
        stack.start_agent()?;
        for (name, _, _) in &images {
            until_running(&stack, name)?;
        }
        for (name, _, _) in &images {
            end(&stack, name)?;
        }
        stack.down()?;
        [plain, known, unknown].into_iter().try_for_each(DebianRegistry::down)
    })
}
