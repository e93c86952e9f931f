//! Finding and executing the container's program; the words of a refusal are those of runc, which people search for.

use std::convert::Infallible;
use std::ffi::CString;

use rustix::io::Errno;

use crate::protocol::Refusal;

/// Searched when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Changes to the working directory, which must be inside the root (CVE-2024-21626).
pub(crate) fn change_directory(cwd: &str) -> Result<(), Refusal> {
    let refused = |reason: String| Refusal::Exec {
        message: format!("chdir to cwd ({cwd:?}) set in config.json failed: {reason}"),
        code: 128,
    };
    rustix::process::chdir(cwd).map_err(|errno| refused(words(errno).to_lowercase()))?;
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
        _ => Err(refused("current working directory is outside of container mount namespace root".into())),
    }
}

/// Replaces this process by the program. Returns only a refusal.
pub(crate) fn execute(args: &[String], env: &[(String, String)]) -> Result<Infallible, Refusal> {
    let Some(name) = args.first().filter(|name| !name.is_empty()) else {
        return Err(Refusal::Exec { message: "no command specified".into(), code: 128 });
    };
    let argv = args.iter().map(|arg| terminated(arg)).collect::<Result<Vec<_>, _>>()?;
    let envp = env.iter().map(|(key, value)| terminated(&format!("{key}={value}"))).collect::<Result<Vec<_>, _>>()?;
    if name.contains('/') {
        let errno = try_execute(name, &argv, &envp)?;
        return Err(refusal(name, errno, true));
    }
    let path = env.iter().rev().find(|(key, _)| key == "PATH").map_or(DEFAULT_PATH, |(_, value)| value.as_str());
    let mut worst = Errno::NOENT;
    for directory in path.split(':') {
        let candidate = if directory.is_empty() { format!("./{name}") } else { format!("{directory}/{name}") };
        match try_execute(&candidate, &argv, &envp)? {
            Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::LOOP => {}
            // A directory of that name, or a file that may not be executed: something later may do.
            Errno::ACCESS => worst = Errno::ACCESS,
            errno => return Err(refusal(name, errno, false)),
        }
    }
    Err(refusal(name, worst, false))
}

fn try_execute(path: &str, argv: &[CString], envp: &[CString]) -> Result<Errno, Refusal> {
    let path = terminated(path)?;
    match nix::unistd::execve(&path, argv, envp) {
        Ok(never) => match never {},
        Err(errno) => Ok(Errno::from_raw_os_error(errno as i32)),
    }
}

fn terminated(text: &str) -> Result<CString, Refusal> {
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
        match execute(&args, &env) {
            Err(Refusal::Exec { message, code }) => (message, code),
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
