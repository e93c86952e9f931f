//! What the kernel must be able to mount before anything else makes sense.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// EROFS for the images' layers, overlayfs for what is written over them.
const NEEDED: [&str; 2] = ["erofs", "overlay"];

/// Why pods cannot run on this kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file system is not there.
    #[error(
        "this kernel has no {name}, without which no image can be mounted: /proc/filesystems does not list it, and \
         `modprobe {name}` did not bring it (kernel option CONFIG_{option})"
    )]
    Lacks {
        /// Which file system.
        name: &'static str,
        /// Its configuration option.
        option: &'static str,
    },
    /// /proc is not readable.
    #[error("could not read {path:?}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Whether the kernel enforces AppArmor.
pub fn enforces_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y")
}

/// Checks that the kernel has every file system that pods need, loading modules where it must. Blocking.
pub fn check() -> Result<(), KernelError> {
    check_with(Path::new("/proc/filesystems"), &|module| {
        let quiet = Command::new("modprobe").arg("-q").arg(module).stdin(Stdio::null()).stderr(Stdio::null()).status();
        // Whether it helped is seen in the list.
        if let Err(error) = quiet {
            tracing::debug!(%error, module, "modprobe could not be run");
        }
    })
}

fn check_with(list: &Path, load: &dyn Fn(&str)) -> Result<(), KernelError> {
    for name in NEEDED {
        if lists(list, name)? {
            continue;
        }
        load(name);
        if !lists(list, name)? {
            let option = if name == "erofs" { "EROFS_FS" } else { "OVERLAY_FS" };
            return Err(KernelError::Lacks { name, option });
        }
    }
    Ok(())
}

fn lists(list: &Path, name: &str) -> Result<bool, KernelError> {
    let text =
        std::fs::read_to_string(list).map_err(|source| KernelError::Unreadable { path: list.to_owned(), source })?;
    Ok(text.lines().any(|line| line.split_ascii_whitespace().next_back() == Some(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_system_is_loaded_once_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("filesystems");
        let with = |text: &str| std::fs::write(&list, text).unwrap();
        let never = |module: &str| panic!("{module} is there");
        with("nodev\toverlay\n\terofs\n");
        check_with(&list, &never).unwrap();

        with("nodev\toverlay\n\text4\n");
        let asked = std::cell::RefCell::new(Vec::new());
        check_with(&list, &|module| {
            asked.borrow_mut().push(module.to_owned());
            with("nodev\toverlay\n\terofs\n");
        })
        .unwrap();
        assert_eq!(*asked.borrow(), ["erofs"]);

        with("nodev\toverlay\n\tnoterofs\n");
        let error = check_with(&list, &|_| ()).unwrap_err().to_string();
        assert!(error.contains("no erofs") && error.contains("CONFIG_EROFS_FS"), "{error}");
        with("\terofs\n");
        let error = check_with(&list, &|_| ()).unwrap_err().to_string();
        assert!(error.contains("no overlay") && error.contains("CONFIG_OVERLAY_FS"), "{error}");

        let error = check_with(&dir.path().join("none"), &|_| ()).unwrap_err();
        assert!(matches!(error, KernelError::Unreadable { .. }), "could not ask is not a no: {error}");
    }
}
