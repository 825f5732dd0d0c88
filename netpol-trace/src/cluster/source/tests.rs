use std::fs;
use std::time::Duration;

use super::*;

const PODS: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: x}\n";

fn policy(name: &str, port: u16) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: x}}\nspec:\n  podSelector: {{}}\n  ingress: [{{ports: [{{port: {port}}}]}}]\n"
    )
}

/// Waits for the next change that `ready` takes.
async fn until(cluster: &Cluster, changes: &mut watch::Receiver<u64>, ready: impl Fn(&SourceStatus) -> bool) {
    let wait = async {
        while !cluster.sources().iter().all(&ready) {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the change is seen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_files_are_read_again_and_broken_ones_leave_the_last_good_state() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.yaml");
    fs::write(&file, format!("{PODS}{}{}", policy("old", 80), policy("kept", 81))).unwrap();
    let (cluster, loaded) = Cluster::from_manifests(&[folder.path().to_owned()]);
    assert_eq!(loaded.problems, []);
    assert!(cluster.sources()[0].synced);
    let mut changes = cluster.changes();
    let watcher = cluster.clone();
    let task = tokio::spawn(async move { watcher.watch().await });

    fs::write(&file, format!("{PODS}{}{}", policy("old", 8080), policy("kept", 81))).unwrap();
    let first = cluster.sources()[0].loaded_at;
    until(&cluster, &mut changes, |status| status.loaded_at > first).await;
    {
        // Changes wait for this lock.
        let index = cluster.read();
        assert_eq!(index.policy("x", "kept").unwrap().changed, None, "an unchanged policy keeps what is known");
        assert_eq!(index.policy("x", "old").unwrap().changed, Some(cluster.sources()[0].loaded_at));
    }

    fs::write(&file, format!("{PODS}{}---\nkind: [", policy("old", 9090))).unwrap();
    until(&cluster, &mut changes, |status| !status.synced).await;
    let status = &cluster.sources()[0];
    assert!(status.error.as_deref().is_some_and(|e| e.contains("all.yaml:12 (document 3)")), "{status:?}");
    assert_eq!(status.objects.get("NetworkPolicy"), Some(&2), "the last good state is in force");
    assert!(cluster.read().policy("x", "kept").is_some());

    fs::remove_file(&file).unwrap();
    fs::write(
        folder.path().join("new.json"),
        "{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"z\"}}",
    )
    .unwrap();
    until(&cluster, &mut changes, |status| status.synced).await;
    assert!(cluster.read().namespace("z").is_some() && cluster.read().namespace("x").is_none());
    task.abort();
}

#[test]
fn a_first_load_with_errors_is_not_synced() {
    let (cluster, loaded) = Cluster::from_manifests(&["/does/not/exist".into()]);
    assert_eq!(loaded.problems.len(), 1);
    let status = &cluster.sources()[0];
    assert!(!status.synced);
    assert_eq!(status.error.as_deref(), Some("/does/not/exist: No such file or directory (os error 2)"));
}

#[test]
fn a_mounted_config_map_is_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("..2026_11_21");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("pods.yaml"), PODS).unwrap();
    std::os::unix::fs::symlink("..2026_11_21", folder.path().join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/pods.yaml", folder.path().join("pods.yaml")).unwrap();
    let (cluster, loaded) = Cluster::from_manifests(&[folder.path().to_owned()]);
    assert_eq!(loaded.problems, []);
    assert_eq!((loaded.files, loaded.counts.get("Pod")), (1, Some(&1)));

    // kubelet swaps `..data`: the link's own file name stays.
    let next = folder.path().join("..2026_11_22");
    fs::create_dir(&next).unwrap();
    fs::write(next.join("pods.yaml"), PODS.replace("name: a", "name: b")).unwrap();
    std::os::unix::fs::symlink("..2026_11_22", folder.path().join("..data_tmp")).unwrap();
    fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
    let signature = cluster.check(None);
    cluster.check(signature);
    assert!(cluster.read().pod("x", "b").is_some() && cluster.read().pod("x", "a").is_none());
}
