//! Directories, the lock, the client socket and `addresses.json`.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use super::RunError;
use crate::config::Config;

/// Where the client API listens.
pub(super) fn socket_path(config: &Config) -> PathBuf {
    config.run_dir.join("vkubelet.sock")
}

fn addresses_path(config: &Config) -> PathBuf {
    config.run_dir.join("addresses.json")
}

fn place(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunError {
    let path = path.to_owned();
    move |source| RunError::Place { verb, path, source }
}

/// Makes the directories and takes the state directory for us alone. The lock ends with the process.
pub(super) fn prepare(config: &Config) -> Result<File, RunError> {
    for (dir, mode) in [(&config.state_dir, 0o700), (&config.run_dir, 0o755)] {
        DirBuilder::new().recursive(true).mode(mode).create(dir).map_err(place("create directory", dir))?;
    }
    fs::set_permissions(&config.state_dir, Permissions::from_mode(0o700))
        .map_err(place("protect directory", &config.state_dir))?;
    if let Some(dir) = &config.manifest_path
        && dir.parent().is_some_and(Path::is_dir)
        && !config.state_dir.join("manifest").exists()
    {
        // Only at the very first start: a directory that vanished later is not to be replaced by an empty one.
        DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(place("create directory", dir))?;
    }
    let path = config.state_dir.join("LOCK");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(place("open", &path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(RunError::Locked { path: config.state_dir.clone() }),
        Err(TryLockError::Error(source)) => return Err(RunError::Place { verb: "lock", path, source }),
    }
    // Another node's vkubelet, with another state directory: what is in the run directory is its own.
    let socket = socket_path(config);
    if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        return Err(RunError::Place {
            verb: "listen (another vkubelet answers there: give --run-dir) on",
            path: socket,
            source: io::Error::from(io::ErrorKind::AddrInUse),
        });
    }
    // Readers wait for this file: an old one would mislead them.
    let _ = fs::remove_file(addresses_path(config));
    Ok(lock)
}

/// Binds the client socket, 0600.
pub(super) fn client_socket(config: &Config) -> Result<UnixListener, RunError> {
    let path = socket_path(config);
    let _ = fs::remove_file(&path);
    // Bound under a name that nobody knows until it is protected.
    let hidden = path.with_file_name(".vkubelet.sock.new");
    let _ = fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).map_err(place("listen on", &path))?;
    fs::set_permissions(&hidden, Permissions::from_mode(0o600)).map_err(place("protect", &path))?;
    fs::rename(&hidden, &path).map_err(place("listen on", &path))?;
    Ok(listener)
}

/// Tells the addresses that were bound, once everything is up.
pub(super) fn write_addresses(config: &Config, addresses: &BTreeMap<&str, SocketAddr>) -> Result<(), RunError> {
    let path = addresses_path(config);
    let texts: BTreeMap<&str, String> = addresses.iter().map(|(name, address)| (*name, address.to_string())).collect();
    let hidden = path.with_file_name(".addresses.json.new");
    let write = || -> io::Result<()> {
        let mut file = File::create(&hidden)?;
        file.write_all(&serde_json::to_vec(&texts)?)?;
        file.sync_all()?;
        fs::rename(&hidden, &path)
    };
    write().map_err(place("write", &path))
}

/// After the end nobody shall think that we listen.
pub(super) fn clean(config: &Config) {
    let _ = fs::remove_file(socket_path(config));
    let _ = fs::remove_file(addresses_path(config));
}
