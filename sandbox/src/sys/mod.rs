//! The kernel calls that neither rustix nor nix offers safely, each behind a function that is safe to call, and the
//! file-descriptor idioms built on them.
//!
//! * [`failpoint`]: named steps at which a test kills; nothing in the shipped programs.
//! * [`clone`]: `clone3` into new namespaces and a cgroup.
//! * [`mount`]: the new mount API; mounts are made detached and attached by descriptor.
//! * `owner`: making files as whom they are for.
//! * [`paths`]: opening and making paths inside a root that a hostile image or container controls.
//! * [`device_filter`]: eBPF device programs of control groups.
//! * [`filter`]: installing a seccomp filter without also setting `no_new_privs`.
//! * [`hold`]: namespaces made and held by a process that does nothing else.
//! * [`lend`]: a child on memory that another child lends it.
//! * [`keyring`]: leaving the session keyring behind.
//! * `loop_device`: binding a file to a block device.
//! * [`link`]: bringing the loopback interface up.
//! * [`place`]: on which processors a process runs.
//! * [`process`]: descriptors and signals before `execve`.
//! * `quota`: limits of the bytes that a directory's files take together.
//! * [`say`]: words on standard error that can neither fail nor wait.
//! * [`spread`]: where a file system puts the directories of a directory.
//! * [`title`]: what `ps` shows of a process.
//! * `watch`: descriptors for tokio.
//! * [`clock`]: the two clocks of the contract.

pub mod clock;
pub mod clone;
pub mod device_filter;
pub mod failpoint;
pub mod filter;
pub mod hold;
pub mod image;
pub mod keyring;
pub mod lend;
pub mod link;
pub(crate) mod loop_device;
pub mod mount;
pub(crate) mod owner;
pub mod paths;
pub mod place;
pub mod process;
pub(crate) mod quota;
pub mod say;
pub mod spread;
pub mod title;
pub(crate) mod watch;
