//! What outlives the agent, by option only: maps under /sys/fs/bpf (`--pin`), and the hook itself (`--keep-attached`).
//!
//! Pins are of use only to an agent with the same programs and the same settings of them; their folder is named after both.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

/// Where pins lie by default: in a bpf file system.
pub const FOLDER: &str = "/sys/fs/bpf/netpol-trace";

/// Maps that are pinned.
pub(super) const MAPS: [&str; 10] =
    ["EVENTS", "PER_CPU", "LOCATIONS", "DULL", "FOLDS_0", "FOLDS_1", "COARSE_0", "COARSE_1", "FOLD_STATE", "CARRY"];
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
#[derive(Debug, Clone)]
pub struct Pins {
    folder: PathBuf,
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
        fs::create_dir_all(&folder)?;
        for other in fs::read_dir(above)?.filter_map(Result::ok).filter(|entry| *entry.file_name() != *name) {
            tracing::warn!(
                pins = %other.path().display(),
                "pins of an agent of another version or with other options are removed: what they held is not told"
            );
            remove(&other.path())?;
        }
        let found = folder.join("CARRY").exists();
        Ok(Pins { folder, found })
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

    /// The program whose link is pinned, when one is.
    pub(super) fn attached(&self) -> Option<String> {
        let entries = fs::read_dir(&self.folder).ok()?.filter_map(Result::ok);
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix(LINK).map(str::to_owned)).next()
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
    remove(folder)?;
    Ok(vec![format!("pins under {}", folder.display())])
}
