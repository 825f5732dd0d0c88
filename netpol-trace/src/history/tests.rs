use std::io::Write as _;

use super::*;

fn line(run: &str, number: u64) -> String {
    format!(
        "{{\"schema\":\"netpol-trace/v1\",\"id\":\"{run}/{number}\",\"run\":\"{run}\",\"seq\":{number},\"time\":\"2026-11-21T04:30:11.{:09}Z\",\
         \"kind\":\"loss\",\"stage\":\"sink\",\"reason\":\"{}\",\"count\":1}}\n",
        number % 1_000_000_000,
        "x".repeat(1000)
    )
}

fn folder(path: &Path) -> Folder {
    Folder::open(path, Readers::default()).unwrap()
}

fn all(follower: &mut Follower) -> Vec<String> {
    let mut lines = Vec::new();
    let mut each = |line: &[u8]| lines.push(String::from_utf8_lossy(line).into_owned() + "\n");
    while follower.read(&mut each).unwrap() {}
    lines
}

#[test]
fn the_ring_holds_the_newest_and_never_more_than_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let mut ring = HistoryRing::open(dir.path(), Readers::default(), "a", SMALLEST_SIZE).unwrap();
    for number in 1..=5000 {
        ring.append(line("a", number).as_bytes()).unwrap();
        if number % 100 == 0 {
            let total: u64 = segments(&folder(dir.path())).unwrap().iter().map(|segment| segment.length).sum();
            assert!(total <= SMALLEST_SIZE + 2000, "{total}");
        }
    }
    let lines = all(&mut Follower::new(folder(dir.path()), None));
    assert!(lines.len() > 700, "{}", lines.len());
    let first = 5000 - lines.len() as u64 + 1;
    assert!(lines.iter().zip(first..).all(|(found, number)| *found == line("a", number)), "a gap or a double");
    let oldest = reaches_back_to(&folder(dir.path())).unwrap().unwrap();
    assert_eq!(oldest.subsec_nanosecond(), i32::try_from(first).unwrap());
}

/// Lines written to a removed file would be lost.
#[test]
fn a_ring_whose_folder_was_removed_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history");
    let mut ring = HistoryRing::open(&path, Readers::default(), "a", DEFAULT_SIZE).unwrap();
    ring.append(line("a", 1).as_bytes()).unwrap();
    std::fs::remove_dir_all(&path).unwrap();
    ring.append(line("a", 2).as_bytes()).unwrap();
    assert_eq!(all(&mut Follower::new(folder(&path), None)), [line("a", 2)]);
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    assert!(ring.append(line("a", 3).as_bytes()).is_err());
    std::fs::remove_file(&path).unwrap();
    ring.append(line("a", 4).as_bytes()).unwrap();
    assert_eq!(all(&mut Follower::new(folder(&path), None)), [line("a", 4)]);
}

#[test]
fn a_torn_line_hides_nothing_and_a_new_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut ring = HistoryRing::open(dir.path(), Readers::default(), "a", DEFAULT_SIZE).unwrap();
    ring.append(line("a", 1).as_bytes()).unwrap();
    // A killed agent may leave half a line.
    let torn = dir.path().join(segments(&folder(dir.path())).unwrap().remove(0).name);
    File::options().append(true).open(torn).unwrap().write_all(b"{\"schema\":\"netpol-tr").unwrap();
    let mut ring = HistoryRing::open(dir.path(), Readers::default(), "b", DEFAULT_SIZE).unwrap();
    ring.append(line("b", 1).as_bytes()).unwrap();
    assert_eq!(all(&mut Follower::new(folder(dir.path()), None)), [line("a", 1), line("b", 1)]);
}

#[test]
fn a_follower_gets_each_line_once_while_files_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let mut ring = HistoryRing::open(dir.path(), Readers::default(), "a", SMALLEST_SIZE).unwrap();
    let mut follower = Follower::new(folder(dir.path()), None);
    let mut got = Vec::new();
    for number in 1..=4000 {
        ring.append(line("a", number).as_bytes()).unwrap();
        if number % 50 == 0 {
            got.extend(all(&mut follower));
        }
    }
    assert_eq!(got.len(), 4000);
    assert!(got.iter().zip(1..).all(|(found, number)| *found == line("a", number)));
}

#[test]
fn a_folder_that_is_a_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(HistoryRing::open(&file, Readers::default(), "a", DEFAULT_SIZE).is_err());
}

/// With the modes that a kubelet gives to a hostPath folder and that earlier versions gave to files. Other files stay and are not read.
#[test]
fn records_are_for_the_agent_and_one_group() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let own = rustix::process::getegid().as_raw();
    for (readers, modes) in [(Readers::default(), (0o700, 0o600)), (Readers { group: Some(own) }, (0o750, 0o640))] {
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("history");
        std::fs::create_dir(&dir).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let set = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        let earlier = dir.join("1790000000000-aaaa-000001.jsonl");
        std::fs::write(&earlier, line("aaaa", 1)).unwrap();
        set(&earlier, 0o644);
        set(&dir, 0o755);
        let mut ring = HistoryRing::open(&dir, readers, "bbbb", DEFAULT_SIZE).unwrap();
        ring.append(line("bbbb", 1).as_bytes()).unwrap();
        assert_eq!((mode(&dir), mode(&earlier)), modes);
        let all_segments = segments(&folder(&dir)).unwrap();
        assert_eq!(all_segments.len(), 2);
        assert!(all_segments.iter().all(|segment| mode(&dir.join(&segment.name)) == modes.1));
        // A symbolic link with a segment's name is not followed.
        let secret = above.path().join("secret");
        std::fs::write(&secret, line("cccc", 1)).unwrap();
        symlink(&secret, dir.join("1790000000000-cccc-000001.jsonl")).unwrap();
        assert_eq!(all(&mut Follower::new(folder(&dir), None)), [line("aaaa", 1), line("bbbb", 1)]);
        // Nor is one in the folder's place.
        let link = above.path().join("link");
        symlink(&dir, &link).unwrap();
        let error = HistoryRing::open(&link, readers, "dddd", DEFAULT_SIZE).unwrap_err().to_string();
        assert!(error.contains("link is a symbolic link"), "{error}");
    }
}
