use super::*;

fn files(folder: &Path, names: &[&str]) {
    for name in names {
        fs::write(folder.join(name), "").unwrap();
    }
}

fn found(folder: &Path, arguments: &[&str]) -> Result<Vec<String>, String> {
    let arguments: Vec<PathBuf> = arguments.iter().map(|argument| folder.join(argument)).collect();
    let inputs = inputs(&arguments).map_err(|error| error.to_string())?;
    let name = |input: &LogInput| input.name.strip_prefix(&format!("{}/", folder.display())).unwrap().to_owned();
    Ok(inputs.iter().map(name).collect())
}

#[test]
fn patterns_match_files_in_order_and_each_file_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path(), &["b.jsonl", "a.jsonl", "a.jsonl.1.gz", "odd[1].jsonl", "other", ".a.jsonl.swp"]);
    fs::create_dir(dir.path().join("c.jsonl")).unwrap();
    let found = |arguments: &[&str]| found(dir.path(), arguments);
    assert_eq!(found(&["*.jsonl", "a.jsonl*"]).unwrap(), ["a.jsonl", "b.jsonl", "odd[1].jsonl", "a.jsonl.1.gz"]);
    assert_eq!(found(&[".a*"]).unwrap(), [".a.jsonl.swp"]);
    assert_eq!(found(&["a.jsonl", "./a.jsonl"]).unwrap(), ["a.jsonl"], "by whatever path");
    // A file's own name is no pattern.
    assert_eq!(found(&["odd[1].jsonl"]).unwrap(), ["odd[1].jsonl"]);
    let no_match = found(&["nothing*"]).unwrap_err();
    assert!(no_match.starts_with("no file matches ") && no_match.ends_with("/nothing*"), "{no_match}");
    let folder = found(&["c.jsonl"]).unwrap_err();
    assert!(folder.contains("is a folder without records") && folder.contains("c.jsonl/*'"), "{folder}");
    assert!(found(&["[a"]).unwrap_err().contains("attern"));
}

#[test]
fn what_can_not_be_read_is_named_with_the_reason() {
    let error = inputs(&[PathBuf::from("staging/db-0")]).unwrap_err().to_string();
    assert_eq!(
        error,
        "staging/db-0 cannot be read: no such file (a pod's drops: netpol-trace tail --pod staging/db-0)"
    );
    for name in ["db-0", "pod/db-0"] {
        let error = inputs(&[PathBuf::from(name)]).unwrap_err().to_string();
        assert!(error.ends_with(" (a pod's drops: netpol-trace tail --pod db-0 -n NAMESPACE)"), "{error}");
    }
    let error = inputs(&[PathBuf::from("/nonexistent/x.jsonl")]).unwrap_err().to_string();
    assert_eq!(error, "/nonexistent/x.jsonl cannot be read: no such file");
}
