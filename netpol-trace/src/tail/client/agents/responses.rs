//! Which of the requested agents have responded, and why others have not.

use std::collections::BTreeMap;
use std::fmt;

use crate::cluster::agents::Agent;

/// Nodes that the closing line names.
const NAMED: usize = 3;
/// Characters of a reason in the closing line. The whole reason was reported before.
const REASON: usize = 100;

/// The requested agents, by pod.
#[derive(Debug, Default, Clone)]
pub struct AgentResponses {
    agents: BTreeMap<String, Response>,
    /// Agents that were not requested.
    pub(super) others: usize,
}

#[derive(Debug, Default, Clone)]
struct Response {
    node: String,
    /// The agent has responded at least once.
    responded: bool,
    /// Why it did not respond, or not to the end.
    failure: Option<String>,
}

impl AgentResponses {
    fn of(&mut self, agent: &Agent) -> &mut Response {
        let response = || Response { node: agent.node.clone(), ..Response::default() };
        self.agents.entry(agent.pod.clone()).or_insert_with(response)
    }

    pub(in crate::tail::client) fn requested(&mut self, agent: &Agent) {
        self.of(agent);
    }

    pub(in crate::tail::client) fn responded(&mut self, agent: &Agent) {
        let response = self.of(agent);
        (response.responded, response.failure) = (true, None);
    }

    pub(in crate::tail::client) fn failed(&mut self, agent: &Agent, why: &str) {
        self.of(agent).failure = Some(why.to_owned());
    }

    /// Notes that the agent's pod no longer exists. A response before that counts.
    pub(in crate::tail::client) fn removed(&mut self, agent: &Agent) {
        if self.agents.get(&agent.pod).is_some_and(|response| !response.responded) {
            self.agents.remove(&agent.pod);
        } else {
            self.of(agent).failure = None;
        }
    }

    /// 0: all agents have responded, 1: none has, 3: some have not.
    pub fn exit_code(&self) -> u8 {
        if self.agents.values().all(Response::is_missing) {
            1
        } else if self.agents.values().any(Response::is_missing) {
            3
        } else {
            0
        }
    }
}

impl Response {
    fn is_missing(&self) -> bool {
        !self.responded || self.failure.is_some()
    }
}

impl fmt::Display for AgentResponses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.agents.len();
        let missing: Vec<&Response> = self.agents.values().filter(|response| response.is_missing()).collect();
        match all {
            0 => f.write_str("no agent was asked")?,
            1 => write!(f, "{} of 1 agent answered", 1 - missing.len())?,
            _ => write!(f, "{} of {all} agents answered", all - missing.len())?,
        }
        for (at, response) in missing.iter().take(NAMED).enumerate() {
            let why = response.failure.as_deref().unwrap_or("stopped before its answer came");
            let cut: String = why.chars().take(REASON).collect();
            let dots = if cut.len() < why.len() { "…" } else { "" };
            let before = if at == 0 { "; no answer from" } else { "," };
            write!(f, "{before} {} ({cut}{dots})", response.node)?;
        }
        if missing.len() > NAMED {
            write!(f, " and {} more", missing.len() - NAMED)?;
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
    fn responses_are_counted_and_missing_ones_named() {
        let mut responses = AgentResponses::default();
        assert_eq!((responses.to_string(), responses.exit_code()), ("no agent was asked".to_owned(), 1));
        responses.failed(&agent("a"), "its agent does not run");
        assert_eq!(responses.to_string(), "0 of 1 agent answered; no answer from a (its agent does not run)");
        assert_eq!(responses.exit_code(), 1);
        responses.responded(&agent("b"));
        responses.others = 58;
        let expected = "1 of 2 agents answered; no answer from a (its agent does not run); 58 other agents were not asked (--all-nodes asks them)";
        assert_eq!((&*responses.to_string(), responses.exit_code()), (expected, 3));
        responses.responded(&agent("a"));
        responses.others = 0;
        assert_eq!((&*responses.to_string(), responses.exit_code()), ("2 of 2 agents answered", 0));
        // A response that broke off did not come to its end.
        responses.failed(&agent("b"), &"x".repeat(500));
        assert!(
            responses.to_string().contains("; no answer from b (xxx") && responses.to_string().len() < 200,
            "{responses}"
        );
        assert_eq!(responses.exit_code(), 3);
        responses.removed(&agent("b"));
        assert_eq!(responses.exit_code(), 0);
    }
}
