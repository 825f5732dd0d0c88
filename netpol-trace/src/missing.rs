//! Messages for a name that does not exist, with the most similar names that do.

/// Names that a message lists.
const SHOWN: usize = 8;

/// `no pod staging/db-9; staging has db-0`
pub fn named(what: &str, namespace: &str, name: &str, known: &[String]) -> String {
    match known {
        [] => format!("no {what} {namespace}/{name}; {namespace} has none"),
        known => format!("no {what} {namespace}/{name}; {namespace} has {}", nearest(name, known)),
    }
}

/// `no namespace stagin; the namespaces are qa-test, staging`
pub fn namespace(name: &str, known: &[String]) -> String {
    match known {
        [] => format!("no namespace {name}"),
        [only] => format!("no namespace {name}; the only one is {only}"),
        known => format!("no namespace {name}; the namespaces are {}", nearest(name, known)),
    }
}

/// Lists a few names.
pub fn few(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        names if names.len() <= SHOWN => names.join(", "),
        names => format!("{} and {} more", names[..SHOWN].join(", "), names.len() - SHOWN),
    }
}

/// Lists a few names, those most similar to `name` first.
pub fn nearest(name: &str, known: &[String]) -> String {
    if known.len() <= SHOWN {
        return few(known);
    }
    let mut known = known.to_vec();
    // A name in Kubernetes has at most 253 characters.
    known.sort_by_cached_key(|other| match other.len() {
        ..=253 => strsim::damerau_levenshtein(name, other),
        _ => usize::MAX,
    });
    few(&known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_similar_of_many_come_first() {
        let known: Vec<String> = (0..20).map(|n| format!("web-{n}")).chain(["db-0".to_owned()]).collect();
        let text = named("pod", "staging", "db-9", &known);
        assert!(text.starts_with("no pod staging/db-9; staging has db-0, web-"), "{text}");
        assert!(text.ends_with(" and 13 more"), "{text}");
        assert_eq!(named("pod", "a", "b", &[]), "no pod a/b; a has none");
        assert_eq!(namespace("b", &["a".to_owned()]), "no namespace b; the only one is a");
    }
}
