//! The cluster's programs: the Go module that pins each, and its path once built.

use std::path::{Path, PathBuf};

/// A program that `cargo xtask setup` builds with Go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoProgram {
    pub name: &'static str,
    /// The Go package to build.
    pub package: &'static str,
    pub module: Module,
}

/// A folder under `tests/cluster` with a go.mod of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Module {
    pub folder: &'static str,
    /// The dependency whose version names the folder in the cache.
    main: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
    /// The folder's own source, if it has one.
    source: &'static str,
}

const KUBERNETES: Module = Module {
    folder: "kubernetes",
    main: "k8s.io/kubernetes",
    go_mod: include_str!("../../cluster/kubernetes/go.mod"),
    go_sum: include_str!("../../cluster/kubernetes/go.sum"),
    source: "",
};
const KUBE_ROUTER_MODULE: Module = Module {
    folder: "kube-router",
    main: "github.com/cloudnativelabs/kube-router/v2",
    go_mod: include_str!("../../cluster/kube-router/go.mod"),
    go_sum: include_str!("../../cluster/kube-router/go.sum"),
    source: "",
};

const HELM_MODULE: Module = Module {
    folder: "helm",
    main: "helm.sh/helm/v3",
    go_mod: include_str!("../../cluster/helm/go.mod"),
    go_sum: include_str!("../../cluster/helm/go.sum"),
    source: "",
};

const COLLECTOR_MODULE: Module = Module {
    folder: "collector",
    main: "go.opentelemetry.io/collector/otelcol",
    go_mod: include_str!("../../cluster/collector/go.mod"),
    go_sum: include_str!("../../cluster/collector/go.sum"),
    source: include_str!("../../cluster/collector/main.go"),
};

const CRI_MODULE: Module = Module {
    folder: "cri",
    main: "k8s.io/cri-api",
    go_mod: include_str!("../../cluster/cri/go.mod"),
    go_sum: include_str!("../../cluster/cri/go.sum"),
    source: include_str!("../../cluster/cri/main.go"),
};

pub const ETCD: GoProgram = GoProgram { name: "etcd", package: "go.etcd.io/etcd/server/v3", module: KUBERNETES };
pub const API_SERVER: GoProgram =
    GoProgram { name: "kube-apiserver", package: "k8s.io/kubernetes/cmd/kube-apiserver", module: KUBERNETES };
pub const KUBECTL: GoProgram =
    GoProgram { name: "kubectl", package: "k8s.io/kubernetes/cmd/kubectl", module: KUBERNETES };
pub const KUBE_ROUTER: GoProgram = GoProgram {
    name: "kube-router",
    package: "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",
    module: KUBE_ROUTER_MODULE,
};

pub const HELM: GoProgram = GoProgram { name: "helm", package: "helm.sh/helm/v3/cmd/helm", module: HELM_MODULE };

/// Makes one of a kubelet's calls to a container runtime.
pub const CRI: GoProgram = GoProgram { name: "cri", package: ".", module: CRI_MODULE };

/// The OpenTelemetry Collector, of the parts that the tests use. Not in [`PROGRAMS`]: it takes minutes to build, for one test.
pub const COLLECTOR: GoProgram = GoProgram { name: "otelcol", package: ".", module: COLLECTOR_MODULE };

/// In the order in which they are built: first what others wait for.
pub const PROGRAMS: [GoProgram; 6] = [ETCD, API_SERVER, KUBECTL, KUBE_ROUTER, HELM, CRI];

impl GoProgram {
    /// Its path in the cache, once built.
    pub fn path(&self, cache: &Path) -> PathBuf {
        self.module.cached(cache).join(self.name)
    }
}

impl Module {
    /// Its folder in the cache. The name has the version and a hash of the sources and pinned dependencies, so that a change rebuilds it.
    pub fn cached(&self, cache: &Path) -> PathBuf {
        let pins = fnv1a(self.go_mod.bytes().chain(self.go_sum.bytes()).chain(self.source.bytes()));
        cache.join(format!("cluster-{}-{}-{pins:08x}", self.folder, self.version()))
    }

    /// The version of the module's main dependency.
    pub fn version(&self) -> &'static str {
        let mut lines = self.go_mod.lines().map(|line| line.trim().trim_start_matches("require "));
        let version = lines.find_map(|line| line.strip_prefix(self.main)?.strip_prefix(" v"));
        version.and_then(|version| version.split(' ').next()).unwrap_or("unknown")
    }
}

/// FNV-1a, which is the same in every build.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
