//! Seccomp profiles of the operator's own: found below one directory, compiled for a container.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use sandbox::seccomp::profile::{self, ProfileError};
use sandbox::spec::Seccomp;

/// Largest profile that is read; the largest known ones have 20 KiB.
const LARGEST: u64 = 1 << 20;

/// Why a container cannot have the profile; worded as the runtimes word it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is not there, or not to be read.
    #[error("cannot load seccomp profile \"{path}\": open {path}: {reason}", path = path.display())]
    Open {
        /// Where it should be.
        path: PathBuf,
        /// The kernel's words.
        reason: String,
    },
    /// It is no profile that can be enforced.
    #[error("cannot load seccomp profile \"{path}\"", path = path.display())]
    Profile {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: ProfileError,
    },
}

/// Reads and compiles `root/name` for a container with these capabilities. No link and no `..` of `name` leads out of `root`.
pub fn load(root: &Path, name: &str, capabilities: &[String]) -> Result<Seccomp, LoadError> {
    let path = root.join(name);
    let text = read(root, name).map_err(|error| LoadError::Open { path: path.clone(), reason: words(&error) })?;
    let compiled = profile::compile(&text, capabilities, kernel_version());
    compiled.map(Seccomp::Custom).map_err(|source| LoadError::Profile { path, source })
}

fn read(root: &Path, name: &str) -> io::Result<String> {
    let directory = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(openat2(directory, name, flags, Mode::empty(), resolve)?);
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = String::new();
    if file.take(LARGEST + 1).read_to_string(&mut text)? as u64 > LARGEST {
        return Err(io::Error::other(format!("it has more than {LARGEST} bytes")));
    }
    Ok(text)
}

/// An error's description as the runtimes write it: lower case, without the number that the standard library appends.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// Major and minor version of the running kernel.
fn kernel_version() -> (u32, u32) {
    let uname = rustix::system::uname();
    parse_version(&uname.release().to_string_lossy())
}

fn parse_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|text| text.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors::chain;

    #[test]
    fn a_profile_is_found_below_its_directory_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("seccomp");
        std::fs::create_dir_all(root.join("team")).unwrap();
        let good = r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#;
        std::fs::write(root.join("team/open.json"), good).unwrap();
        std::fs::write(dir.path().join("outside.json"), good).unwrap();
        std::os::unix::fs::symlink("team/open.json", root.join("inner.json")).unwrap();
        std::os::unix::fs::symlink("../outside.json", root.join("outer.json")).unwrap();
        for name in ["team/open.json", "inner.json"] {
            assert!(matches!(load(&root, name, &[]), Ok(Seccomp::Custom(program)) if !program.is_empty()), "{name}");
        }
        for name in ["../outside.json", "outer.json", "/etc/passwd", "team"] {
            assert!(matches!(load(&root, name, &[]), Err(LoadError::Open { .. })), "{name}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_in_a_runtimes_words() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let shown = |name: &str| chain(&load(root, name, &[]).unwrap_err());
        let path = root.join("none.json");
        let path = path.display();
        assert_eq!(
            shown("none.json"),
            format!("cannot load seccomp profile \"{path}\": open {path}: no such file or directory")
        );
        std::fs::write(root.join("bad.json"), "{").unwrap();
        assert!(shown("bad.json").contains("bad.json\": decoding seccomp profile failed"), "{}", shown("bad.json"));
        std::fs::write(root.join("notify.json"), r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#).unwrap();
        assert!(shown("notify.json").ends_with("\"SCMP_ACT_NOTIFY\" is not supported"), "{}", shown("notify.json"));
        let file = File::create(root.join("huge.json")).unwrap();
        file.set_len(LARGEST + 1).unwrap();
        assert!(shown("huge.json").contains("more than"));
    }

    #[test]
    fn kernel_versions_are_read() {
        assert_eq!(parse_version("6.18.44-fc-v669"), (6, 18));
        assert_eq!(parse_version("6.1"), (6, 1));
        assert_eq!(parse_version(""), (0, 0));
    }
}
