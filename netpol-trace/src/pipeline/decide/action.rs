//! Drop or reject.

use super::context::DropContext;
use crate::inventory::products::{ProductId, Role};
use crate::model::{Action, Cause, Hook, Mechanism, PolicyRelevance};

/// Decides what was done with the packet.
///
/// A rule that rejects frees the packet as a rule that drops does. An answer of the kernel to the sender distinguishes them where the
/// agent can see it. Otherwise the action is known only if every rule that can have ended the packet does the same.
pub(super) fn action(cause: Cause, context: &DropContext<'_>) -> Action {
    match context.site.mechanism {
        Mechanism::Tc | Mechanism::Xdp | Mechanism::Cgroup => return Action::Drop,
        // The queue's listener can only drop. A packet that it accepts and that a later legacy rule ends is freed there too.
        Mechanism::Nfqueue if context.inventory.is_none() && !context.rejected => return Action::Drop,
        // A packet that a flow rejects goes to the switch's daemon, which answers: only what it drops is freed.
        Mechanism::Ovs if context.site.relevance == PolicyRelevance::Likely => return Action::Drop,
        Mechanism::Ovs | Mechanism::Unknown => return Action::Unknown,
        Mechanism::Nfqueue | Mechanism::Nftables | Mechanism::IptablesLegacy | Mechanism::Netfilter => {}
    }
    if context.rejected {
        return Action::Reject;
    }
    // Bridges and devices send their answers by functions that the agent does not hook.
    let by_ip = matches!(
        context.site.hook,
        Some(Hook::Prerouting | Hook::Input | Hook::Forward | Hook::Output | Hook::Postrouting)
    );
    if by_ip && context.visible_rejects.covers(context.family, context.headers) {
        return Action::Drop;
    }
    let Some(inventory) = context.inventory.filter(|inventory| inventory.ruleset.complete) else {
        return Action::Unknown;
    };
    let mechanism = match context.site.mechanism {
        Mechanism::Nfqueue => Mechanism::IptablesLegacy,
        other => other,
    };
    let found = inventory.at(mechanism, context.site.hook, context.family);
    let policy_made = found.has_policy();
    let terminals = found.terminals(|product| match cause {
        Cause::Policy | Cause::Disagrees if policy_made => product.is_none_or(|product| !product.is_enforcer()),
        // kube-proxy drops packets to services without endpoints; such drops have causes of their own.
        Cause::Policy | Cause::Disagrees => is_service_proxy(product),
        _ => false,
    });
    match (terminals.drop || context.site.mechanism == Mechanism::Nfqueue, terminals.reject) {
        (true, false) => Action::Drop,
        (false, true) => Action::Reject,
        _ => Action::Unknown,
    }
}

fn is_service_proxy(product: Option<ProductId>) -> bool {
    product.is_some_and(|product| product.product().role == Role::ServiceProxy)
}
