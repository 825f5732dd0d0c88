//! The options that select a cluster, as kubectl has them.

use std::path::PathBuf;

use crate::cluster::api::Access;

#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct ClusterArgs {
    /// Kubeconfig file. Default: KUBECONFIG, else ~/.kube/config
    #[arg(long, value_name = "PATH", help_heading = "Which cluster")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig. Default: its current context
    #[arg(long, value_name = "NAME", help_heading = "Which cluster")]
    context: Option<String>,
}

impl ClusterArgs {
    /// Returns true if one of the options was given.
    pub fn given(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    pub fn access(&self) -> Access {
        Access { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() }
    }
}
