//! Files that were left half-written, that are full, and that make room.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::super::queue::Queue;
use super::*;
use crate::model::LossReason;
use crate::sink::tests::{ids, record};

fn records(count: usize) -> Vec<Arc<Record>> {
    let ids = ids();
    (0..count).map(|_| Arc::new(record(&ids))).collect()
}

fn deliver(lines: &mut FileSink, count: usize) -> Delivery {
    lines.deliver(&records(count), Patience(&Queue::default()))
}

#[test]
fn an_unfinished_line_is_ended_before_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "{\"half\":").unwrap();
    let mut lines = FileSink::open(&path, Format::Native, Rotation::default(), Readers::default()).unwrap();
    assert_eq!(deliver(&mut lines, 1).delivered, 1);
    let text = fs::read_to_string(&path).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("{\"half\":"));
    assert!(lines.next().is_some_and(|line| line.starts_with("{\"schema\"") && line.ends_with('}')), "{text}");
}

#[test]
fn a_full_disk_is_an_error_and_takes_no_part_of_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut lines =
        FileSink::open(&dir.path().join("log"), Format::Native, Rotation::default(), Readers::default()).unwrap();
    // Every write to it finds the disk full.
    lines.path = "/dev/full".into();
    lines.file = File::options().write(true).open(&lines.path).unwrap();
    let delivery = deliver(&mut lines, 3);
    assert_eq!((delivery.delivered, delivery.error.map(|error| error.reason())), (0, Some(LossReason::WriteFailed)));
    assert!(lines.buffer.is_empty());
}

/// Rotates by age before every line. The folder then has the file and two older ones.
#[test]
fn an_old_file_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let rotation = Rotation { max_size: None, max_age: Some(Duration::ZERO), keep: 2 };
    let mut lines = FileSink::open(&path, Format::Native, rotation, Readers::default()).unwrap();
    assert_eq!(deliver(&mut lines, 5).delivered, 5);
    let mut names: Vec<String> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into()).collect();
    names.sort();
    assert_eq!(names, ["log", "log.1", "log.2"]);
    let id = |name: &str| {
        let line: Record = serde_json::from_str(&fs::read_to_string(dir.path().join(name)).unwrap()).unwrap();
        line.id
    };
    assert_eq!([id("log"), id("log.1"), id("log.2")], ["a/5", "a/4", "a/3"]);
}

/// A rotation that fails (a folder has the file's name) is an error; records written before it count as written.
#[test]
fn a_rotation_that_fails_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::create_dir_all(dir.path().join("log.1/full")).unwrap();
    let rotation = Rotation { max_age: Some(Duration::ZERO), ..Rotation::default() };
    let mut lines =
        FileSink::open(&path, Format::Native, Rotation { keep: 1, ..rotation }, Readers::default()).unwrap();
    let delivery = deliver(&mut lines, 3);
    assert_eq!((delivery.delivered, delivery.error.is_some()), (1, true));
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
}

/// A rotation replaces symbolic links with the names of its files and follows none. New files are readable for the agent alone, whatever the
/// mode of the first one was.
#[test]
fn a_rotation_follows_no_link_and_makes_private_files() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    fs::write(place("victim"), "untouched").unwrap();
    fs::write(place("log"), "").unwrap();
    fs::set_permissions(place("log"), fs::Permissions::from_mode(0o644)).unwrap();
    for name in ["log.new", "log.1", "log.2"] {
        symlink(place("victim"), place(name)).unwrap();
    }
    let rotation = Rotation { max_age: Some(Duration::ZERO), keep: 2, ..Rotation::default() };
    let mut lines = FileSink::open(&place("log"), Format::Native, rotation, Readers::default()).unwrap();
    assert_eq!(deliver(&mut lines, 4).delivered, 4);
    assert_eq!(fs::read_to_string(place("victim")).unwrap(), "untouched");
    for name in ["log", "log.1", "log.2"] {
        let metadata = fs::symlink_metadata(place(name)).unwrap();
        assert!(metadata.is_file(), "{name}");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_link_in_the_place_of_the_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (link, victim) = (dir.path().join("log"), dir.path().join("victim"));
    fs::write(&victim, "untouched").unwrap();
    symlink(&victim, &link).unwrap();
    let error = FileSink::open(&link, Format::Native, Rotation::default(), Readers::default()).unwrap_err().to_string();
    assert!(error.contains(&format!("{} is a symbolic link", link.display())), "{error}");
    assert_eq!(fs::read_to_string(victim).unwrap(), "untouched");
}

/// After the file or its folder was renamed or removed, later records go to a new file at the path, or are not delivered.
#[test]
fn a_file_that_lost_its_name_is_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    let path = folder.join("log");
    fs::create_dir(&folder).unwrap();
    let mut lines = FileSink::open(&path, Format::Native, Rotation::default(), Readers::default()).unwrap();
    let count = |path: &Path| fs::read_to_string(path).unwrap().lines().count();
    assert_eq!(deliver(&mut lines, 1).delivered, 1);
    fs::rename(&path, folder.join("rotated")).unwrap();
    assert_eq!(deliver(&mut lines, 2).delivered, 2);
    assert_eq!((count(&folder.join("rotated")), count(&path)), (1, 2));
    fs::remove_file(&path).unwrap();
    assert_eq!(deliver(&mut lines, 3).delivered, 3);
    assert_eq!(count(&path), 3);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let fails = |lines: &mut FileSink, named: &str| {
        let delivery = deliver(lines, 1);
        let error = delivery.error.map(|error| error.to_string()).unwrap_or_default();
        assert!(delivery.delivered == 0 && error.contains(named), "{error}");
    };
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fails(&mut lines, "a folder, not a regular file");
    fs::remove_dir(&path).unwrap();
    let elsewhere = dir.path().join("elsewhere");
    fs::write(&elsewhere, "").unwrap();
    symlink(&elsewhere, &path).unwrap();
    fails(&mut lines, "symbolic link");
    fs::remove_dir_all(&folder).unwrap();
    fails(&mut lines, "No such file or directory");
    fs::create_dir(&folder).unwrap();
    assert_eq!(deliver(&mut lines, 4).delivered, 4);
    assert_eq!((count(&path), count(&elsewhere)), (4, 0));
}
