//! `busybox-layout DIR`: an OCI layout of the busybox that Debian's busybox-static installs, for tests and quickstart.
//!
//! The first layer is a small root file system with every applet linked. Each further layer changes the one below in the
//! ways that layers do (adds a file, replaces one, deletes one by a whiteout), so that a reader that stacks them wrongly is
//! seen: `/etc/layer` names the top one, and `/layers/only-N` exists for the top one only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::json;
use tar::{Builder, EntryType, Header};

use crate::layout::{self, Layout};

#[derive(Args)]
pub(crate) struct Options {
    /// Where to write; must not exist yet, or be empty
    dir: PathBuf,
    /// The image's tag in the layout
    #[arg(long, default_value = "latest")]
    tag: String,
    /// How many layers
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    layers: u32,
    /// The static busybox
    #[arg(long, default_value = "/bin/busybox")]
    busybox: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if let Ok(mut entries) = fs::read_dir(&options.dir) {
        ensure!(entries.next().is_none(), "{} is not empty", options.dir.display());
    }
    let layout = Layout::create(&options.dir)?;
    let mut layers = vec![layout.add_layer(&base(&options.busybox)?)?];
    for number in 2..=options.layers {
        layers.push(layout.add_layer(&change(number)?)?);
    }
    let config = json!({
        "Cmd": ["sh"],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "WorkingDir": "/",
    });
    layout.finish(&options.tag, &layers, &config)?;
    println!("{}", layout::reference(&options.dir)?);
    Ok(())
}

fn base(busybox: &Path) -> Result<Vec<u8>> {
    let program = fs::read(busybox)
        .with_context(|| format!("cannot read {} (Debian package busybox-static)", busybox.display()))?;
    let listed = Command::new(busybox).arg("--list-full").output().context("cannot run busybox")?;
    if !listed.status.success() {
        bail!("busybox --list-full ended with {}", listed.status);
    }
    let mut tree = Tree::new();
    for (dir, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("layers", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("sbin", 0o755),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("usr/bin", 0o755),
        ("usr/sbin", 0o755),
        ("var", 0o755),
    ] {
        tree.dir(dir, mode)?;
    }
    tree.file("bin/busybox", 0o755, &program)?;
    for path in String::from_utf8_lossy(&listed.stdout).lines() {
        if path != "bin/busybox" && path.split('/').count() <= 3 && !path.contains("linuxrc") {
            tree.link(path, "/bin/busybox")?;
        }
    }
    tree.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")?;
    tree.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    tree.file("etc/layer", 0o644, b"1\n")?;
    tree.file("layers/only-1", 0o644, b"1\n")?;
    tree.finish()
}

fn change(number: u32) -> Result<Vec<u8>> {
    let mut tree = Tree::new();
    let text = format!("{number}\n");
    tree.file("etc/layer", 0o644, text.as_bytes())?;
    tree.file(&format!("layers/.wh.only-{}", number - 1), 0o644, b"")?;
    tree.file(&format!("layers/only-{number}"), 0o644, text.as_bytes())?;
    tree.finish()
}

/// A tar archive in which nothing depends on when or by whom it was made.
struct Tree(Builder<Vec<u8>>);

impl Tree {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, mode: u32, size: usize) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header
    }

    fn dir(&mut self, path: &str, mode: u32) -> Result<()> {
        let mut header = Self::header(EntryType::Directory, mode, 0);
        self.0.append_data(&mut header, format!("{path}/"), &[][..]).with_context(|| format!("cannot add {path}"))
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = Self::header(EntryType::Regular, mode, content.len());
        self.0.append_data(&mut header, path, content).with_context(|| format!("cannot add {path}"))
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = Self::header(EntryType::Symlink, 0o777, 0);
        self.0.append_link(&mut header, path, target).with_context(|| format!("cannot add {path}"))
    }

    fn finish(self) -> Result<Vec<u8>> {
        self.0.into_inner().context("cannot finish the archive")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_layer_is_made_twice() {
        assert_eq!(change(2).unwrap(), change(2).unwrap());
        assert_ne!(change(2).unwrap(), change(3).unwrap());
    }

    #[test]
    fn a_directory_that_holds_something_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x"), "").unwrap();
        let options =
            Options { dir: dir.path().to_owned(), tag: "t".into(), layers: 1, busybox: "/bin/busybox".into() };
        assert!(run(&options).unwrap_err().to_string().contains("not empty"));
    }

    #[test]
    fn a_layout_names_its_image_and_every_blob_has_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let layers = [layout.add_layer(&change(2).unwrap()).unwrap(), layout.add_layer(&change(3).unwrap()).unwrap()];
        layout.finish("t", &layers, &json!({})).unwrap();
        let reference = layout::reference(dir.path()).unwrap();
        assert_eq!(reference, format!("oci-layout:{}:t", dir.path().canonicalize().unwrap().display()));
        let blobs: Vec<_> = fs::read_dir(dir.path().join("blobs/sha256")).unwrap().flatten().collect();
        assert_eq!(blobs.len(), 4, "two layers, a config, a manifest");
        for blob in blobs {
            let content = fs::read(blob.path()).unwrap();
            let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&content));
            assert_eq!(blob.file_name().to_string_lossy(), digest);
        }
    }
}
