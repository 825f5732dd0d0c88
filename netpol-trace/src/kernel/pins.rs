//! What outlives the agent, by option only: maps under /sys/fs/bpf (`--pin`), and the hook itself (`--keep-attached`).
//!
//! Pins are of use only to an agent with the same programs and the same settings of them; their folder is named after both.

use std::ffi::CString;
use std::fs::{self, File, TryLockError};
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Where pins lie by default: in a bpf file system.
pub const FOLDER: &str = "/sys/fs/bpf/netpol-trace";

/// Maps that are pinned.
pub(super) const MAPS: [&str; 18] = [
    "EVENTS",
    "PER_CPU",
    "LOCATIONS",
    "DULL",
    "FAST_0",
    "FAST_1",
    "PLACES_0",
    "PLACES_1",
    // A kept program goes on with those that it has: they are emptied with the rest.
    "KNOWN_0",
    "KNOWN_1",
    "FOLDS_0",
    "FOLDS_1",
    "COARSE_0",
    "COARSE_1",
    "WIDE_0",
    "WIDE_1",
    "FOLD_STATE",
    "CARRY",
];
/// The hook's link begins with this, its program's name follows.
const LINK: &str = "link-";
const PROGRAM: &str = "program-";

/// What an agent leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    #[default]
    Nothing,
    /// Counts and unread records.
    Maps,
    /// And the hook goes on counting without it.
    Attached,
}

/// The folder of this build and these settings.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
    /// Held as long as the agent runs: two with the same maps would take each other's counts.
    _lock: File,
    /// Something is there from the run before.
    pub(super) found: bool,
}

impl Pins {
    /// `same`: what must be equal for pins to be taken over. Pins of others are removed, with a warning.
    pub(super) fn open(above: &Path, same: impl Hash) -> io::Result<Pins> {
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        same.hash(&mut hasher);
        let name = format!("{:016x}", hasher.finish());
        let folder = above.join(&name);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        if !is_bpf(above)? {
            fs::remove_dir(&folder)?;
            return Err(io::Error::other(format!(
                "{} is in no bpf file system: mount one (mount -t bpf bpf /sys/fs/bpf), or give a --pin-dir in it",
                above.display()
            )));
        }
        let lock = lock(above)?;
        for other in fs::read_dir(above)?.filter_map(Result::ok).filter(|entry| *entry.file_name() != *name) {
            tracing::warn!(
                pins = %other.path().display(),
                "pins of an agent of another version or with other options are removed: what they held is not told"
            );
            remove(&other.path())?;
        }
        let found = folder.join("CARRY").exists();
        Ok(Pins { folder, _lock: lock, found })
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

    /// Removes the pins of the hook. What holds its link goes on holding it.
    pub(super) fn forget_hook(&self, program: &str) -> io::Result<()> {
        for path in [self.link(program), self.program(program)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The program whose link is pinned, when one is.
    pub(super) fn attached(&self) -> Option<String> {
        let entries = fs::read_dir(&self.folder).ok()?.filter_map(Result::ok);
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix(LINK).map(str::to_owned)).next()
    }
}

/// Whether the folder is in a bpf file system, where alone there can be pins.
fn is_bpf(folder: &Path) -> io::Result<bool> {
    const BPF_FS_MAGIC: u32 = 0xcafe_4a11;
    let path = CString::new(folder.as_os_str().as_bytes())?;
    let mut found = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: a string with its end, and room for the answer; zeros are a valid statfs, whatever the call leaves of it.
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
            "{} is in use by a running agent: give each agent a --pin-dir of its own",
            above.display()
        )),
        TryLockError::Error(error) => error,
    })?;
    Ok(folder)
}

/// Removes what an agent with `--pin` has left, for one without: a hook that was kept would go on for nobody.
pub(super) fn clear(above: &Path) {
    if !above.exists() || lock(above).is_err() {
        return;
    }
    match remove(above) {
        Ok(()) => {
            tracing::warn!(pins = %above.display(), "pins of an agent before this one are removed: what they held is not told")
        }
        Err(error) => {
            tracing::warn!(pins = %above.display(), %error, "pins of an agent before this one can't be removed")
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Removes every pin, which detaches what only they kept. Says what was there.
///
/// # Errors
/// That a pin can't be removed.
pub fn cleanup(folder: &Path) -> io::Result<Vec<String>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let _lock = lock(folder)?;
    remove(folder)?;
    Ok(vec![format!("pins under {}", folder.display())])
}
