//! Finding and executing the container's program; the words of a refusal are those of runc, which people search for.

use std::ffi::{CStr, CString};

use rustix::io::Errno;

use crate::protocol::Refusal;
use crate::sys::image::{self, Image};

/// Searched when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Changes to the working directory, which must be inside the root (CVE-2024-21626).
/// Allocates nothing unless it fails.
pub(crate) fn change_directory(cwd: &CStr) -> Result<(), Refusal> {
    let refused = |reason: String| Refusal::Exec {
        message: format!("chdir to cwd ({cwd:?}) set in config.json failed: {reason}"),
        code: 128,
    };
    rustix::process::chdir(cwd).map_err(|errno| refused(words(errno).to_lowercase()))?;
    match image::is_in_root() {
        true => Ok(()),
        false => Err(refused("current working directory is outside of container mount namespace root".into())),
    }
}

/// A program, and where it may be found: all that executing it needs, so that it needs no memory of its own.
#[derive(Debug)]
pub(crate) struct Program {
    name: String,
    /// The paths that are tried, in their order.
    candidates: Vec<CString>,
    image: Image,
}

impl Program {
    /// Looks for nothing yet.
    pub(crate) fn new(args: &[String], env: &[(String, String)]) -> Result<Self, Refusal> {
        let Some(name) = args.first().filter(|name| !name.is_empty()) else {
            return Err(Refusal::Exec { message: "no command specified".into(), code: 128 });
        };
        let argv = args.iter().map(|arg| terminated(arg)).collect::<Result<_, _>>()?;
        let envp = env.iter().map(|(key, value)| terminated(&format!("{key}={value}"))).collect::<Result<_, _>>()?;
        let candidates = if named(name) {
            vec![terminated(name)?]
        } else {
            let path =
                env.iter().rev().find(|(key, _)| key == "PATH").map_or(DEFAULT_PATH, |(_, value)| value.as_str());
            let below = |directory: &str| match directory {
                "" => terminated(&format!("./{name}")),
                directory => terminated(&format!("{directory}/{name}")),
            };
            path.split(':').map(below).collect::<Result<_, _>>()?
        };
        Ok(Self { name: name.clone(), candidates, image: Image::new(argv, envp) })
    }

    /// Replaces this process by the program. Returns only when that failed: why. Until `failed` is set nothing is allocated.
    pub(crate) fn execute(&self, failed: &mut bool) -> Refusal {
        let (errno, named) = self.try_all();
        *failed = true;
        refusal(&self.name, errno, named)
    }

    /// Why the last that said more than that it is not there could not be executed, and whether it was named by its path.
    fn try_all(&self) -> (Errno, bool) {
        let named = named(&self.name);
        let mut worst = Errno::NOENT;
        for candidate in &self.candidates {
            match self.image.execute(candidate) {
                errno if named => return (errno, true),
                Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::LOOP => {}
                // A directory of that name, or a file that may not be executed: something later may do.
                Errno::ACCESS => worst = Errno::ACCESS,
                errno => return (errno, false),
            }
        }
        (worst, false)
    }
}

/// A path, not to be searched for.
fn named(name: &str) -> bool {
    name.contains('/')
}

pub(crate) fn terminated(text: &str) -> Result<CString, Refusal> {
    CString::new(text)
        .map_err(|_| Refusal::Exec { message: "argument or variable holds a zero byte".into(), code: 128 })
}

fn refusal(name: &str, errno: Errno, named: bool) -> Refusal {
    let (reason, code) = match errno {
        Errno::NOENT if named => (format!("stat {name}: no such file or directory"), 127),
        Errno::NOENT => ("executable file not found in $PATH".to_owned(), 127),
        Errno::ACCESS => ("permission denied".to_owned(), 126),
        Errno::NOEXEC => ("exec format error".to_owned(), 126),
        Errno::ISDIR => ("is a directory".to_owned(), 126),
        other => (words(other).to_lowercase(), 126),
    };
    Refusal::Exec { message: format!("exec: {name:?}: {reason}"), code }
}

/// An errno's description without the number that the standard library appends.
fn words(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(args: &[&str], env: &[(&str, &str)]) -> (String, i32) {
        let args: Vec<String> = args.iter().map(|s| (*s).to_owned()).collect();
        let env: Vec<_> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        match Program::new(&args, &env).map_or_else(|refusal| refusal, |program| program.execute(&mut false)) {
            Refusal::Exec { message, code } => (message, code),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_found_is_127_and_says_where_it_was_looked_for() {
        assert_eq!(
            refused(&["/no/such"], &[]),
            ("exec: \"/no/such\": stat /no/such: no such file or directory".into(), 127)
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        assert_eq!(
            refused(&["no-such"], &[("PATH", path)]),
            ("exec: \"no-such\": executable file not found in $PATH".into(), 127)
        );
    }

    #[test]
    fn what_may_not_be_executed_is_126() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("plain"), "x").unwrap();
        let path = dir.path().to_str().unwrap();
        assert_eq!(refused(&["plain"], &[("PATH", path)]), ("exec: \"plain\": permission denied".into(), 126));
        assert_eq!(refused(&["/"], &[]).1, 126);
    }

    #[test]
    fn an_empty_command_is_128() {
        assert_eq!(refused(&[], &[]).1, 128);
        assert_eq!(refused(&[""], &[]).1, 128);
        assert_eq!(refused(&["a\0b"], &[]).1, 128);
    }
}
