//! Which of the agents that were asked have answered, and why others have not.

use std::collections::BTreeMap;
use std::fmt;

use crate::cluster::agents::Agent;

/// Nodes that the closing line names.
const NAMED: usize = 3;
/// Characters of a reason there; the whole reason has a line of its own before.
const REASON: usize = 100;

/// The agents that were asked, by pod.
#[derive(Debug, Default, Clone)]
pub(in crate::cli::tail) struct Answers {
    asked: BTreeMap<String, State>,
    /// Agents that were not asked.
    pub(super) others: usize,
}

#[derive(Debug, Default, Clone)]
struct State {
    node: String,
    /// It has answered at least once.
    answered: bool,
    /// Why it does not answer now, or did not to the end.
    silent: Option<String>,
}

impl Answers {
    fn of(&mut self, agent: &Agent) -> &mut State {
        self.asked.entry(agent.pod.clone()).or_insert_with(|| State { node: agent.node.clone(), ..State::default() })
    }

    pub(super) fn asked(&mut self, agent: &Agent) {
        self.of(agent);
    }

    pub(super) fn answered(&mut self, agent: &Agent) {
        let state = self.of(agent);
        (state.answered, state.silent) = (true, None);
    }

    pub(super) fn silent(&mut self, agent: &Agent, why: &str) {
        self.of(agent).silent = Some(why.to_owned());
    }

    /// The agent's pod is gone, so that it can't answer; what it answered before counts.
    pub(super) fn gone(&mut self, agent: &Agent) {
        if self.asked.get(&agent.pod).is_some_and(|state| !state.answered) {
            self.asked.remove(&agent.pod);
        } else {
            self.of(agent).silent = None;
        }
    }

    /// 0: all have answered, 1: none has, 3: some have not.
    pub(in crate::cli::tail) fn exit_code(&self) -> u8 {
        if self.asked.values().all(State::is_silent) {
            1
        } else if self.asked.values().any(State::is_silent) {
            3
        } else {
            0
        }
    }
}

impl State {
    fn is_silent(&self) -> bool {
        !self.answered || self.silent.is_some()
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = self.asked.len();
        let silent: Vec<&State> = self.asked.values().filter(|state| state.is_silent()).collect();
        match asked {
            0 => f.write_str("no agent was asked")?,
            1 => write!(f, "{} of 1 agent answered", 1 - silent.len())?,
            _ => write!(f, "{} of {asked} agents answered", asked - silent.len())?,
        }
        for (at, state) in silent.iter().take(NAMED).enumerate() {
            let why = state.silent.as_deref().unwrap_or("its answer was not waited for");
            let cut: String = why.chars().take(REASON).collect();
            let dots = if cut.len() < why.len() { "…" } else { "" };
            let before = if at == 0 { "; no answer from" } else { "," };
            write!(f, "{before} {} ({cut}{dots})", state.node)?;
        }
        if silent.len() > NAMED {
            write!(f, " and {} more", silent.len() - NAMED)?;
        }
        match self.others {
            0 => Ok(()),
            1 => f.write_str("; 1 other agent was not asked (--all-nodes asks it)"),
            others => write!(f, "; {others} other agents were not asked (--all-nodes asks them)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(node: &str) -> Agent {
        Agent::for_test(&format!("pod-of-{node}"), node)
    }

    #[test]
    fn who_answered_is_counted_and_who_did_not_is_named() {
        let mut answers = Answers::default();
        assert_eq!((answers.to_string(), answers.exit_code()), ("no agent was asked".to_owned(), 1));
        answers.silent(&agent("a"), "its agent does not run");
        assert_eq!(answers.to_string(), "0 of 1 agent answered; no answer from a (its agent does not run)");
        assert_eq!(answers.exit_code(), 1);
        answers.answered(&agent("b"));
        answers.others = 58;
        let expected = "1 of 2 agents answered; no answer from a (its agent does not run); 58 other agents were not asked (--all-nodes asks them)";
        assert_eq!((&*answers.to_string(), answers.exit_code()), (expected, 3));
        answers.answered(&agent("a"));
        answers.others = 0;
        assert_eq!((&*answers.to_string(), answers.exit_code()), ("2 of 2 agents answered", 0));
        // One that broke off has not answered to the end.
        answers.silent(&agent("b"), &"x".repeat(500));
        assert!(
            answers.to_string().contains("; no answer from b (xxx") && answers.to_string().len() < 200,
            "{answers}"
        );
        assert_eq!(answers.exit_code(), 3);
        answers.gone(&agent("b"));
        assert_eq!(answers.exit_code(), 0);
    }
}
