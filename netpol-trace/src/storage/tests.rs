//! Modes of new files and folders, and everything that a name may be other than a file.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use super::*;

const OWNER: Readers = Readers { group: None };

/// A group that this process may give files to: any as root, else its own.
fn group() -> Readers {
    let own = rustix::process::getegid().as_raw();
    Readers { group: Some(if rustix::process::geteuid().is_root() { 4711 } else { own }) }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

#[test]
fn new_files_are_for_the_agent_and_one_group() {
    for (readers, folder_mode, file_mode) in [(OWNER, 0o700, 0o600), (group(), 0o750, 0o640)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one/two");
        let folder = Folder::create(&path, readers).unwrap();
        folder.create_new(name("new")).unwrap();
        folder.append(name("log")).unwrap().write_all(b"line\n").unwrap();
        folder.update(name("state")).unwrap();
        for made in [path.parent().unwrap(), &path] {
            assert_eq!(mode(made), folder_mode, "{}", made.display());
        }
        for made in ["new", "log", "state"].map(|name| path.join(name)) {
            assert_eq!(mode(&made), file_mode, "{}", made.display());
            assert!(readers.group.is_none_or(|group| fs::metadata(&made).unwrap().gid() == group));
        }
    }
}

#[test]
fn no_link_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    fs::create_dir(place("real")).unwrap();
    fs::create_dir(place("real/below")).unwrap();
    fs::write(place("target"), "untouched").unwrap();
    symlink("real", place("link")).unwrap();
    symlink(place("nowhere"), place("dangling")).unwrap();
    for path in ["link", "link/below", "link/new", "dangling", "dangling/new", "real/../link/below"].map(place) {
        for folder in [Folder::open(&path, OWNER), Folder::create(&path, OWNER)] {
            let error = folder.unwrap_err();
            assert!(matches!(error, StorageError::SymbolicLink(_)), "{}: {error}", path.display());
            assert!(error.to_string().contains("is a symbolic link"), "{error}");
        }
    }
    symlink(place("target"), place("real/log")).unwrap();
    symlink(place("nowhere"), place("real/dangling")).unwrap();
    let folder = Folder::open(&place("real"), OWNER).unwrap();
    for link in ["log", "dangling"] {
        for error in
            [folder.append(name(link)), folder.update(name(link)), folder.read(name(link))].map(Result::unwrap_err)
        {
            let link = place("real").join(link).display().to_string();
            assert!(matches!(&error, StorageError::SymbolicLink(path) if *path == link), "{error}");
        }
        assert!(folder.create_new(name(link)).is_err());
    }
    assert_eq!(fs::read_to_string(place("target")).unwrap(), "untouched");
    assert!(!place("nowhere").exists());
    assert!(folder.files().unwrap().is_empty(), "a link is no file");
    // Removing and renaming are about the link itself.
    folder.rename(name("log"), name("log.1")).unwrap();
    folder.remove(name("log.1")).unwrap();
    assert!(place("target").exists());
}

#[test]
fn other_than_regular_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    fs::create_dir(place("folder")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, place("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let _socket = UnixListener::bind(place("socket")).unwrap();
    fs::write(place("log"), "").unwrap();
    fs::hard_link(place("log"), place("other")).unwrap();
    let folder = Folder::open(dir.path(), OWNER).unwrap();
    for (file, what) in [("folder", "a folder"), ("fifo", "a FIFO"), ("socket", "a socket")] {
        for error in
            [folder.append(name(file)), folder.update(name(file)), folder.read(name(file))].map(Result::unwrap_err)
        {
            assert_eq!(
                error.to_string(),
                format!("{} is {what}, not a regular file: remove it, or name another path", place(file).display())
            );
        }
    }
    let linked = folder.append(name("log")).unwrap_err().to_string();
    assert!(linked.contains("log has several names (hard links)"), "{linked}");
    let device = Folder::open(Path::new("/dev"), OWNER).unwrap().append(name("null")).unwrap_err().to_string();
    assert!(device.contains("/dev/null is a device"), "{device}");
    let file = Folder::create(&place("other/below"), OWNER).unwrap_err().to_string();
    assert!(file.contains("other is not a folder"), "{file}");
}

/// A kubelet makes a hostPath folder with mode 0755, and earlier versions of the agent made files that everybody could read.
#[test]
fn a_folder_of_the_agents_own_is_closed_to_others() {
    for (readers, folder_mode, file_mode) in [(OWNER, 0o700, 0o600), (group(), 0o750, 0o640)] {
        let dir = tempfile::tempdir().unwrap();
        set_mode(dir.path(), 0o755);
        fs::write(dir.path().join("ours"), "").unwrap();
        set_mode(&dir.path().join("ours"), 0o644);
        Folder::open(dir.path(), readers).unwrap().keep_private(|name| name == "ours").unwrap();
        assert_eq!((mode(dir.path()), mode(&dir.path().join("ours"))), (folder_mode, file_mode));
    }
}

/// `--history-dir /var/log` must not lock others out of /var/log.
#[test]
fn a_folder_that_others_use_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    for (folder, mode_before, file) in [("log", 0o755, Some("syslog")), ("tmp", 0o1777, None)] {
        let path = dir.path().join(folder);
        fs::create_dir(&path).unwrap();
        if let Some(file) = file {
            fs::write(path.join(file), "").unwrap();
        }
        fs::write(path.join("ours"), "").unwrap();
        set_mode(&path.join("ours"), 0o644);
        set_mode(&path, mode_before);
        Folder::open(&path, OWNER).unwrap().keep_private(|name| name == "ours").unwrap();
        assert_eq!(mode(&path), mode_before);
        assert_eq!(mode(&path.join("ours")), 0o600, "what is ours is closed all the same");
        assert!(file.is_none_or(|file| mode(&path.join(file)) & 0o044 != 0), "what is not ours is left alone");
    }
}

/// An administrator may have set a file's mode on purpose; a group that is named as an option counts for more.
#[test]
fn an_existing_file_keeps_its_mode_unless_a_group_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "").unwrap();
    set_mode(&path, 0o644);
    Folder::open(dir.path(), OWNER).unwrap().append(name("log")).unwrap();
    assert_eq!(mode(&path), 0o644);
    let readers = group();
    Folder::open(dir.path(), readers).unwrap().append(name("log")).unwrap();
    assert_eq!((mode(&path), Some(fs::metadata(&path).unwrap().gid())), (0o640, readers.group));
}

#[test]
fn a_group_that_cannot_be_given_is_named() {
    if rustix::process::geteuid().is_root() {
        // Root with CAP_CHOWN may give files to any group. tests/deploy/options.rs tests it without.
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path(), Readers { group: Some(0) }).unwrap();
    let error = folder.append(name("log")).unwrap_err().to_string();
    assert!(error.contains("can't be given to group 0") && error.contains("supplementalGroups"), "{error}");
}
