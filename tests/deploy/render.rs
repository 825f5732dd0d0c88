//! Renders the manifests with kustomize and helm, and makes their output comparable.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};

pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("deploy")
}

/// Objects by kind and name.
pub type Objects = BTreeMap<String, Value>;

pub fn kustomize(kubectl: &Path, folder: &str) -> Result<Objects> {
    objects(&kustomize_text(kubectl, &deploy().join("kustomize").join(folder))?)
}

/// A folder with a kustomization, as kubectl prints it.
pub fn kustomize_text(kubectl: &Path, folder: &Path) -> Result<String> {
    printed(&Command::new(kubectl).arg("kustomize").arg(folder).output()?)
}

/// The chart with values such as `hostNetwork=true`.
pub fn helm(helm: &Path, values: &[&str]) -> Result<Objects> {
    objects(&helm_text(helm, values)?)
}

/// The chart with these values, as helm prints it.
pub fn helm_text(helm: &Path, values: &[&str]) -> Result<String> {
    printed(&template(helm, values)?).with_context(|| values.join(" "))
}

pub fn template(helm: &Path, values: &[&str]) -> Result<Output> {
    template_in(helm, "netpol-trace", values)
}

pub fn template_in(helm: &Path, namespace: &str, values: &[&str]) -> Result<Output> {
    let mut command = Command::new(helm);
    // Without its release script Helm is built with an old default Kubernetes version.
    command
        .args(["template", "netpol-trace", "--namespace", namespace, "--kube-version", "1.36.0"])
        .arg(deploy().join("helm/netpol-trace"));
    command.args(values.iter().map(|value| format!("--set-json={value}")));
    Ok(command.output()?)
}

fn printed(output: &Output) -> Result<String> {
    if !output.status.success() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub fn objects(text: &str) -> Result<Objects> {
    let mut objects = Objects::new();
    for object in documents(text)? {
        let name = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let (kind, name) = (name("/kind").context("a kind")?, name("/metadata/name").context("a name")?);
        let key = format!("{kind} {name}");
        if objects.insert(key.clone(), object).is_some() {
            bail!("{key} twice");
        }
    }
    Ok(objects)
}

pub fn documents(text: &str) -> Result<Vec<Value>> {
    let documents = Yaml::load_from_str(text).context("YAML")?;
    Ok(documents.iter().map(json).filter(|value| !value.is_null()).collect())
}

fn json(yaml: &Yaml<'_>) -> Value {
    match yaml {
        Yaml::Value(Scalar::Boolean(value)) => Value::Bool(*value),
        Yaml::Value(Scalar::Integer(value)) => (*value).into(),
        Yaml::Value(Scalar::FloatingPoint(value)) => (**value).into(),
        Yaml::Value(Scalar::String(text)) => text.as_ref().into(),
        Yaml::Sequence(items) => items.iter().map(json).collect(),
        Yaml::Mapping(entries) => {
            let entry = |(key, value): (&Yaml<'_>, &Yaml<'_>)| Some((key.as_str()?.to_owned(), json(value)));
            Value::Object(entries.iter().filter_map(entry).collect::<Map<_, _>>())
        }
        Yaml::Tagged(_, value) => json(value),
        _ => Value::Null,
    }
}
