//! Pins the maps and the hook in a bpf file system, so that they outlive the agent (`--survive-restart`).
//!
//! An agent takes over only pins of an agent with the same programs and settings: the name of the folder is a hash of both. It removes all
//! other pins.

use std::ffi::CString;
use std::fs::{self, File, TryLockError};
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The default folder of pins, in a bpf file system.
pub const FOLDER: &str = "/sys/fs/bpf/netpol-trace";

/// The maps that are pinned.
pub(super) const MAPS: [&str; 18] = [
    "EVENTS",
    "PER_CPU",
    "LOCATIONS",
    "IGNORED_SITES",
    "FAST_0",
    "FAST_1",
    "INDEX_0",
    "INDEX_1",
    // A program that stays attached goes on with these maps.
    "BITMAP_0",
    "BITMAP_1",
    "FINE_0",
    "FINE_1",
    "COARSE_0",
    "COARSE_1",
    "WIDE_0",
    "WIDE_1",
    "AGGREGATE_STATE",
    "HANDOVER",
];
/// What to do if nothing can be pinned.
const MOUNT_ONE: &str = "--survive-restart needs a bpf file system there: mount one (mount -t bpf bpf /sys/fs/bpf; in a pod a hostPath \
                         volume of /sys/fs/bpf), or set pin-dir in the config file to a folder in one";
/// The prefix of a hook's link; the name of its program follows.
const LINK: &str = "link-";
const PROGRAM: &str = "program-";

/// The folder of this build and these settings.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
    /// Held while the agent runs: two agents with the same maps would take each other's counts.
    _lock: File,
    /// An agent with the same programs and settings left its maps here.
    pub(super) found: bool,
    /// This agent removed the pins of an agent with other programs or settings.
    pub(super) removed_others: bool,
}

impl Pins {
    /// `same`: what must be equal for pins to be taken over. Removes all other pins in `above`, with a warning.
    pub(super) fn open(above: &Path, same: impl Hash) -> io::Result<Pins> {
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        same.hash(&mut hasher);
        let name = format!("{:016x}", hasher.finish());
        let folder = above.join(&name);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).and_then(|()| is_bpf(above));
        let is_bpf = made.map_err(|error| io::Error::other(format!("{}: {error}; {MOUNT_ONE}", above.display())))?;
        if !is_bpf {
            fs::remove_dir(&folder)?;
            return Err(io::Error::other(format!("{} is in no bpf file system; {MOUNT_ONE}", above.display())));
        }
        let lock = lock(above)?;
        let mut removed_others = false;
        for other in fs::read_dir(above)?.filter_map(Result::ok).filter(|entry| *entry.file_name() != *name) {
            tracing::warn!(
                pins = %other.path().display(),
                "an agent of another version or with other options left its hook or its counts: removed, the counts are lost"
            );
            let path = other.path();
            remove(&path).map_err(|error| io::Error::other(format!("remove {}: {error}", path.display())))?;
            removed_others = true;
        }
        let found = folder.join("HANDOVER").exists();
        Ok(Pins { folder, _lock: lock, found, removed_others })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.path(&format!("{LINK}{program}"))
    }

    pub(super) fn program(&self, program: &str) -> PathBuf {
        self.path(&format!("{PROGRAM}{program}"))
    }

    /// Removes the pins of the hook. The hook stays attached while a process holds its link.
    pub(super) fn forget_hook(&self, program: &str) -> io::Result<()> {
        for path in [self.link(program), self.program(program)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The name of the program whose link is pinned, if there is one.
    pub(super) fn attached(&self) -> Option<String> {
        let entries = fs::read_dir(&self.folder).ok()?.filter_map(Result::ok);
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix(LINK).map(str::to_owned)).next()
    }
}

/// True if the folder is in a bpf file system; pins are possible only there.
fn is_bpf(folder: &Path) -> io::Result<bool> {
    const BPF_FS_MAGIC: u32 = 0xcafe_4a11;
    let path = CString::new(folder.as_os_str().as_bytes())?;
    let mut found = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: a NUL-terminated string, and room for the result; zeros are a valid statfs.
    let (result, found) = unsafe { (libc::statfs(path.as_ptr(), found.as_mut_ptr()), found.assume_init()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(found.f_type as u32 == BPF_FS_MAGIC)
}

fn lock(above: &Path) -> io::Result<File> {
    let folder = File::open(above)?;
    folder.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::Error::other(format!(
            "{} is in use by a running agent: stop that agent, or give each agent a pin-dir of its own in its config file",
            above.display()
        )),
        TryLockError::Error(error) => error,
    })?;
    Ok(folder)
}

/// Removes the pins of an earlier agent with `--survive-restart`, for an agent without: no agent would read the counts of a hook that stays
/// attached. Returns true if there were pins.
pub(super) fn clear(above: &Path) -> bool {
    if !above.exists() {
        return false;
    }
    // A running agent's pins stay.
    let Ok(_lock) = lock(above) else { return false };
    let had_pins = fs::read_dir(above).is_ok_and(|mut entries| entries.next().is_some());
    match remove(above) {
        Ok(()) if had_pins => {
            tracing::warn!(
                pins = %above.display(),
                "an agent with --survive-restart left its hook or its counts: removed, the counts are lost"
            );
            true
        }
        Ok(()) => false,
        Err(error) => {
            tracing::warn!(pins = %above.display(), %error, "the hook or counts that an earlier agent left can't be removed");
            false
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Removes every pin, which detaches hooks that nothing else holds. Returns a description of what it removed.
pub fn cleanup(folder: &Path) -> io::Result<Vec<String>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let _lock = lock(folder)?;
    remove(folder)?;
    Ok(vec![format!("pinned maps and hooks under {}", folder.display())])
}
