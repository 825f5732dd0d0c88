//! An empty `from` or `to` list, which allows everybody.

use crate::model::cluster::Direction;
use crate::policy::lint::Severity;
use crate::policy::lint::catalogue::Lint;

pub static LINT: Lint = Lint {
    id: "empty-peers",
    severity: Severity::Warning,
    title: "An empty peer list allows everybody",
    what: "An empty from or to list is no restriction. From a template it usually means that a value was missing.",
    fix: "Leave out the rule when the list is empty; leave out the field when everybody is meant.",
    check: |context, findings| {
        for rule in context.rules() {
            let path = rule.peers_path();
            // An absent field is how "everybody" is written; a field with nothing in it is how a template fails.
            if rule.peers().next().is_some() || !rule.policy.located.has(&path) {
                continue;
            }
            let field = rule.direction.peers_field();
            let written = match rule.rule.peers {
                Some(_) => format!("`{field}: []`"),
                None => format!("`{field}:` with nothing in it"),
            };
            let effect = match rule.direction {
                Direction::Ingress => "lets everybody in",
                Direction::Egress => "lets these pods connect everywhere",
            };
            let message = format!("{written} is no restriction: the rule {effect}");
            let fix = format!(
                "if nobody is meant, remove the whole rule; if everybody is meant, leave `{field}` out so that it shows"
            );
            findings.push(LINT.finding(rule.policy, &path, message, fix));
        }
    },
};

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::case;

    #[test]
    fn nothing_in_the_list() {
        case(
            "{podSelector: {}, ingress: [{from: []}]}",
            expect![[r#"
            warning[empty-peers] spec.ingress[0].from: `from: []` is no restriction: the rule lets everybody in
              if nobody is meant, remove the whole rule; if everybody is meant, leave `from` out so that it shows
        "#]],
        );
        case(
            "\n  podSelector: {}\n  ingress:\n  - from:\n    ports:\n    - port: 80",
            expect![[r#"
            warning[empty-peers] spec.ingress[0].from: `from:` with nothing in it is no restriction: the rule lets everybody in
              if nobody is meant, remove the whole rule; if everybody is meant, leave `from` out so that it shows
            warning[svc-port] spec.ingress[0].ports[0].port: 80 is the port of service shop/web; its pods (shop/web) listen on 8080, and policy sees the pod's port
              write `port: 8080`
        "#]],
        );
        case("{podSelector: {}, ingress: [{}]}", expect![[""]]);
    }
}
