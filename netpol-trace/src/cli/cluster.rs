//! Which cluster: the options of kubectl.

use std::path::PathBuf;

use crate::cluster::api::Access;

#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Which cluster")]
pub(super) struct ClusterArgs {
    /// Kubeconfig to use, instead of KUBECONFIG and ~/.kube/config
    #[arg(long, value_name = "PATH")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig to use, instead of its current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl ClusterArgs {
    /// Whether a cluster was named.
    pub fn given(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    pub fn access(&self) -> Access {
        Access { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() }
    }
}
