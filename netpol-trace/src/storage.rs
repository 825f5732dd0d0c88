//! Folders and files that the agent writes.
//!
//! The agent writes as root to folders of the node (hostPath) that other workloads may write to as well. So it follows no symbolic link in any
//! part of a path, and refuses what is not a regular file with one name. Only its own user can read what it makes, and a group if one is named.
//! The umask does not matter.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

/// Why a folder or file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("{0} is a symbolic link, which the agent does not follow: name what it points to, or remove it")]
    SymbolicLink(String),
    #[error("{path} is {what}, not a regular file: remove it, or name another path")]
    NotAFile { path: String, what: &'static str },
    #[error("{0} is not a folder: remove it, or name another path")]
    NotAFolder(String),
    #[error(
        "{0} has several names (hard links), so it may be another program's file too: remove it, or name another path"
    )]
    HardLinks(String),
    #[error(
        "{path} can't be given to group {group}: {error}; without CAP_CHOWN the agent's user has to own it and be in the group \
         (supplementalGroups in a pod's securityContext)"
    )]
    Group { path: String, group: u32, error: io::Error },
    #[error("{path}: {error}")]
    Io { path: String, error: io::Error },
}

impl StorageError {
    fn io(path: &Path, error: Errno) -> StorageError {
        StorageError::Io { path: path.display().to_string(), error: error.into() }
    }
}

impl From<StorageError> for io::Error {
    fn from(error: StorageError) -> io::Error {
        let kind = match &error {
            StorageError::Io { error, .. } | StorageError::Group { error, .. } => error.kind(),
            StorageError::NotAFolder(_) => io::ErrorKind::NotADirectory,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// Returns true if `path` still names this open file. Another process may have removed or replaced it, and what is written to a file without a
/// name is lost.
pub fn still_names(path: &Path, file: &File) -> io::Result<bool> {
    let open = file.metadata()?;
    Ok(path.symlink_metadata().is_ok_and(|there| (there.dev(), there.ino()) == (open.dev(), open.ino())))
}

/// Who may read the files of the agent, besides its own user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readers {
    /// A group, by its number: an image has no /etc/group.
    pub group: Option<u32>,
}

/// A folder's modes or a file's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EntryKind {
    Folder,
    File,
}

impl Readers {
    fn mode(self, kind: EntryKind) -> u32 {
        match (kind, self.group) {
            (EntryKind::Folder, None) => 0o700,
            (EntryKind::Folder, Some(_)) => 0o750,
            (EntryKind::File, None) => 0o600,
            (EntryKind::File, Some(_)) => 0o640,
        }
    }

    /// Sets group and mode.
    fn grant(self, fd: impl AsFd, path: &Path, kind: EntryKind) -> Result<(), StorageError> {
        if let Some(group) = self.group
            && fs::fstat(&fd).map_err(|error| StorageError::io(path, error))?.st_gid != group
        {
            let given = fs::fchown(&fd, None, Some(Gid::from_raw(group)));
            given.map_err(|error| StorageError::Group {
                path: path.display().to_string(),
                group,
                error: error.into(),
            })?;
        }
        fs::fchmod(fd, Mode::from_raw_mode(self.mode(kind))).map_err(|error| StorageError::io(path, error))
    }

    /// Returns true if the mode of an existing file or folder gives access to others, or denies it to the group.
    fn differ(self, stat: &Stat, kind: EntryKind) -> bool {
        let (mode, wanted) = (mode(stat), self.mode(kind));
        let open_to_others = mode & 0o777 & !wanted != 0;
        let closed_to_group = self.group.is_some_and(|group| stat.st_gid != group || mode & wanted != wanted);
        open_to_others || closed_to_group
    }
}

fn mode(stat: &Stat) -> u32 {
    stat.st_mode & 0o7777
}

fn is_own(stat: &Stat) -> bool {
    stat.st_uid == rustix::process::geteuid().as_raw()
}

/// An open folder. File names are resolved in this folder, even if its path names another one later.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    path: PathBuf,
    readers: Readers,
}

const WALK: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Does not block on a FIFO, and does not take a controlling terminal.
const PLAIN: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

impl Folder {
    /// Opens a folder that exists. `readers` may read the files that are made in it.
    pub fn open(path: &Path, readers: Readers) -> Result<Folder, StorageError> {
        Folder::walk(path, readers, false)
    }

    /// Opens a folder, and makes it and those above it where they are missing.
    pub fn create(path: &Path, readers: Readers) -> Result<Folder, StorageError> {
        Folder::walk(path, readers, true)
    }

    /// Opens a folder for reading, and follows symbolic links: for a user who names the folder.
    pub fn follow(path: &Path) -> io::Result<Folder> {
        Ok(Folder { fd: fs::open(path, WALK, Mode::empty())?, path: path.to_owned(), readers: Readers::default() })
    }

    fn walk(path: &Path, readers: Readers, make: bool) -> Result<Folder, StorageError> {
        let start = if path.is_absolute() { "/" } else { "." };
        let mut fd = fs::open(start, WALK, Mode::empty()).map_err(|error| StorageError::io(Path::new(start), error))?;
        let mut walked = PathBuf::from(if path.is_absolute() { "/" } else { "" });
        for component in path.components() {
            if let Component::Normal(_) | Component::ParentDir = component {
                walked.push(component);
                fd = step(&fd, component.as_os_str(), &walked, make.then_some(readers))?;
            }
        }
        Ok(Folder { fd, path: path.to_owned(), readers })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn whole(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a new file to append to. Fails if it exists.
    pub fn create_new(&self, name: &OsStr) -> Result<File, StorageError> {
        self.make(name, OFlags::WRONLY | OFlags::APPEND).map_err(|error| match error {
            CreateError::Refused(error) => error,
            CreateError::Exists => StorageError::io(&self.whole(name), Errno::EXIST),
        })
    }

    /// Opens a file to append to and to read, and makes it where it is missing.
    pub fn append(&self, name: &OsStr) -> Result<File, StorageError> {
        self.open_or_make(name, OFlags::RDWR | OFlags::APPEND)
    }

    /// Opens a file to read and to write anywhere in it, and makes it where it is missing.
    pub fn update(&self, name: &OsStr) -> Result<File, StorageError> {
        self.open_or_make(name, OFlags::RDWR)
    }

    /// Opens a file to read.
    pub fn read(&self, name: &OsStr) -> Result<File, StorageError> {
        self.regular(name, OFlags::RDONLY).map(|(file, _)| file)
    }

    fn make(&self, name: &OsStr, how: OFlags) -> Result<File, CreateError> {
        let flags = how | PLAIN | OFlags::CREATE | OFlags::EXCL;
        let path = self.whole(name);
        match fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => {
                self.readers.grant(&fd, &path, EntryKind::File).map_err(CreateError::Refused)?;
                Ok(fd.into())
            }
            Err(Errno::EXIST) => Err(CreateError::Exists),
            Err(error) => Err(CreateError::Refused(StorageError::io(&path, error))),
        }
    }

    fn open_or_make(&self, name: &OsStr, how: OFlags) -> Result<File, StorageError> {
        match self.make(name, how) {
            Ok(file) => return Ok(file),
            Err(CreateError::Refused(error)) => return Err(error),
            Err(CreateError::Exists) => {}
        }
        let (file, stat) = self.regular(name, how)?;
        let path = self.whole(name);
        if stat.st_nlink > 1 {
            return Err(StorageError::HardLinks(path.display().to_string()));
        }
        self.check(&file, &stat, &path)?;
        Ok(file)
    }

    /// Opens an existing regular file. Checks the type first, because opening has effects on some devices.
    fn regular(&self, name: &OsStr, how: OFlags) -> Result<(File, Stat), StorageError> {
        let path = self.whole(name);
        let failed = |error| StorageError::io(&path, error);
        must_be_regular(&fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?, &path)?;
        let fd = fs::openat(&self.fd, name, how | PLAIN, Mode::empty()).map_err(failed)?;
        let stat = fs::fstat(&fd).map_err(failed)?;
        must_be_regular(&stat, &path)?;
        Ok((fd.into(), stat))
    }

    /// Gives an existing file the mode for the group, if one is named. Without one, the file keeps its mode. Logs who else can read it: its owner
    /// can, whatever its mode.
    fn check(&self, file: &File, stat: &Stat, path: &Path) -> Result<(), StorageError> {
        let (path_shown, mode) = (path.display(), mode(stat));
        let (owner, group) = (stat.st_uid, stat.st_gid);
        let differs = self.readers.differ(stat, EntryKind::File);
        if differs && self.readers.group.is_some() {
            self.readers.grant(file, path, EntryKind::File)?;
            tracing::info!("{path_shown} had mode {mode:04o} and group {group}: set to 0640 as its group= asks");
        }
        if !is_own(stat) {
            tracing::warn!(
                "{path_shown} belongs to user {owner}, who can read and change it: chown {} {path_shown}, or remove it and have \
                 the agent make it",
                rustix::process::geteuid().as_raw()
            );
        } else if differs && self.readers.group.is_none() {
            tracing::warn!(
                "{path_shown} exists with mode {mode:04o}, owner {owner} and group {group}, so others than the agent can read or change \
                 it: chmod 0600 {path_shown}; to let one group read it, set group=GID"
            );
        }
        Ok(())
    }

    /// Takes the rights of others off a folder of the agent's own, which a kubelet makes with mode 0755, and off the files in it that
    /// `is_ours` knows. A folder that also has other files, or another owner, stays as it is, and the log names it.
    pub fn keep_private(&self, is_ours: impl Fn(&OsStr) -> bool) -> Result<(), StorageError> {
        let failed = |error| StorageError::io(&self.path, error);
        let (shown, readers) = (self.path.display(), self.readers);
        let readable = fs::openat(&self.fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let readable = readable.map_err(failed)?;
        let stat = fs::fstat(&readable).map_err(failed)?;
        let names = names(&readable).map_err(failed)?;
        if readers.differ(&stat, EntryKind::Folder) {
            let (mode, wanted) = (mode(&stat), readers.mode(EntryKind::Folder));
            // A sticky or setgid bit was set on purpose.
            if is_own(&stat) && mode & 0o7000 == 0 && names.iter().all(|name| is_ours(name)) {
                readers.grant(&readable, &self.path, EntryKind::Folder)?;
                tracing::info!("{shown} had mode {mode:04o}: set to {wanted:04o}");
            } else {
                tracing::warn!(
                    "{shown} has mode {mode:04o}, owner {} and group {}, and is not the agent's alone, so it stays as it is: chmod \
                     {wanted:04o} {shown}, or give the agent a folder of its own",
                    stat.st_uid,
                    stat.st_gid
                );
            }
        }
        let mut wider = None;
        for name in names.iter().filter(|name| is_ours(name)) {
            // Skips files that cannot be opened, such as one that another agent has removed.
            let Ok((file, stat)) = self.regular(name, OFlags::RDONLY) else { continue };
            if readers.differ(&stat, EntryKind::File) && is_own(&stat) && stat.st_nlink == 1 {
                readers.grant(&file, &self.whole(name), EntryKind::File)?;
                let (count, first) = wider.unwrap_or((0, mode(&stat)));
                wider = Some((count + 1, first));
            }
        }
        if let Some((count, mode)) = wider {
            let wanted = readers.mode(EntryKind::File);
            tracing::warn!(
                "{shown}: {count} files of earlier runs had other rights, such as {mode:04o}: set to {wanted:04o}"
            );
        }
        Ok(())
    }

    /// Returns the regular files in it, without symbolic links.
    pub fn files(&self) -> io::Result<Vec<(OsString, Stat)>> {
        let readable = fs::openat(&self.fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut files = Vec::new();
        for name in names(&readable)? {
            // The file may have been removed in the meantime.
            let Ok(stat) = fs::statat(&self.fd, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                files.push((name, stat));
            }
        }
        Ok(files)
    }

    /// Renames a file in it, and replaces a file of the new name. A symbolic link is itself renamed or replaced.
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(fs::renameat(&self.fd, from, &self.fd, to)?)
    }

    /// Exchanges two names in one step, if the file system supports that.
    pub fn exchange(&self, one: &OsStr, other: &OsStr) -> io::Result<()> {
        Ok(fs::renameat_with(&self.fd, one, &self.fd, other, RenameFlags::EXCHANGE)?)
    }

    /// Removes a file, if it is there.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        match fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Why no file was made.
enum CreateError {
    Exists,
    Refused(StorageError),
}

/// Opens the next folder of a path. Makes it if it is missing and `make` is given.
fn step(above: &OwnedFd, name: &OsStr, path: &Path, make: Option<Readers>) -> Result<OwnedFd, StorageError> {
    let open =
        |how| fs::openat(above, name, how | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let opened = match (open(OFlags::PATH), make) {
        (Err(Errno::NOENT), Some(readers)) => match fs::mkdirat(above, name, Mode::RWXU) {
            Ok(()) => {
                let fd = open(OFlags::RDONLY).map_err(|error| StorageError::io(path, error))?;
                readers.grant(&fd, path, EntryKind::Folder)?;
                Ok(fd)
            }
            // Another agent has made it.
            Err(Errno::EXIST) => open(OFlags::PATH),
            Err(error) => Err(error),
        },
        (opened, _) => opened,
    };
    opened.map_err(|error| match error {
        Errno::NOTDIR | Errno::LOOP => {
            let stat = fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW);
            let is_link = stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
            let path = path.display().to_string();
            if is_link { StorageError::SymbolicLink(path) } else { StorageError::NotAFolder(path) }
        }
        error => StorageError::io(path, error),
    })
}

fn must_be_regular(stat: &Stat, path: &Path) -> Result<(), StorageError> {
    let path = path.display().to_string();
    let what = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok(()),
        FileType::Symlink => return Err(StorageError::SymbolicLink(path)),
        FileType::Directory => "a folder",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "something else",
    };
    Err(StorageError::NotAFile { path, what })
}

fn names(readable: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(readable)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
