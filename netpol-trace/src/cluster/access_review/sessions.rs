//! Keeps the API server's results per token: who its owner is, and what they may read.
//!
//! A token is kept as its SHA-256. Answers about a user are kept with the description of the user (name, uid, groups, extra) and
//! the token that the description came with. Another token or another description starts without answers.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::lock::IgnorePoison;

use k8s_openapi::api::authentication::v1::UserInfo;
use ring::digest;
use tokio::time::Instant;

use super::super::budget::RequestBudget;
use super::Audience;

/// A refusal is valid no longer than this, so that a newly granted right takes effect soon.
const REFUSAL_VALID_FOR: Duration = Duration::from_secs(30);
/// A token that the API server refused is not sent to it again within this time.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// Tokens that the API server accepted.
const SESSIONS: usize = 256;
/// Tokens of one user name. `tail` makes a token for each agent and connection.
const SESSIONS_OF_USER: usize = 16;
/// Tokens that the API server refused.
const REFUSED: usize = 256;
/// Answers about one token's owner, most of them about namespaces.
const ANSWERS: usize = 512;
/// Rate and burst of questions about one user name.
const QUESTIONS: (Duration, u32) = (Duration::from_millis(50), 100);

/// A token's SHA-256, with the audiences that it was reviewed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SessionKey([u8; 32]);

impl SessionKey {
    pub fn of(token: &str, audience: Audience) -> SessionKey {
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(&[audience as u8]);
        hash.update(token.as_bytes());
        let mut key = [0; 32];
        key.copy_from_slice(hash.finish().as_ref());
        SessionKey(key)
    }
}

/// A right of a user that the API server is asked about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Question {
    /// Reading a namespace's drops.
    Drops(String),
    /// Reading the agents' logs.
    Logs,
    /// Getting a non-resource path.
    Path(&'static str),
    /// One of the rights that a reader account must not have, by its number.
    Risk(usize),
}

/// The owner of a token, and the answers about them.
#[derive(Debug)]
pub(super) struct Session {
    info: UserInfo,
    answers: Mutex<HashMap<Question, (bool, Instant)>>,
    /// Shared by all sessions of one user name.
    questions: Arc<RequestBudget>,
}

impl Session {
    pub fn name(&self) -> &str {
        self.info.username.as_deref().unwrap_or_default()
    }

    pub fn info(&self) -> &UserInfo {
        &self.info
    }

    /// Waits for the user's budget of requests. Returns `false` at once if the wait would be longer than `most`.
    pub async fn wait_for_budget(&self, most: Duration) -> bool {
        self.questions.take(most).await
    }

    /// The API server's last answer, if it is not older than `valid_for`.
    pub fn answer(&self, question: &Question, now: Instant, valid_for: Duration) -> Option<bool> {
        let (answer, at) = lock(&self.answers).get(question).copied()?;
        let valid_for = if answer { valid_for } else { valid_for.min(REFUSAL_VALID_FOR) };
        (now.duration_since(at) < valid_for).then_some(answer)
    }

    pub fn keep(&self, question: Question, answer: bool, now: Instant) {
        let mut answers = lock(&self.answers);
        make_room(&mut answers, ANSWERS, |(_, at)| *at);
        answers.insert(question, (answer, now));
    }
}

/// The state of a token.
#[derive(Debug)]
pub(super) enum SessionState {
    Fresh(Arc<Session>),
    /// Known, but must be reviewed again.
    Stale(Arc<Session>),
    Refused,
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<SessionTable>);

#[derive(Debug, Default)]
struct SessionTable {
    /// With the time of the last TokenReview.
    known: HashMap<SessionKey, (Arc<Session>, Instant)>,
    /// With the time of the refusal.
    refused: HashMap<SessionKey, Instant>,
}

impl Sessions {
    pub fn find(&self, key: &SessionKey, now: Instant, valid_for: Duration) -> SessionState {
        let state = lock(&self.0);
        match (state.known.get(key), state.refused.get(key)) {
            (Some((session, at)), _) if now.duration_since(*at) < valid_for => SessionState::Fresh(session.clone()),
            (Some((session, _)), _) => SessionState::Stale(session.clone()),
            (None, Some(at)) if now.duration_since(*at) < REFUSED_FOR => SessionState::Refused,
            (None, _) => SessionState::Unknown,
        }
    }

    /// Keeps the result of a TokenReview. Answers of an earlier session of this token stay valid if the description is the same.
    pub fn admit(&self, key: SessionKey, mut info: UserInfo, now: Instant) -> Arc<Session> {
        if let Some(groups) = &mut info.groups {
            groups.sort_unstable();
        }
        let mut state = lock(&self.0);
        if let Some((session, at)) = state.known.get_mut(&key).filter(|(session, _)| session.info == info) {
            *at = now;
            return session.clone();
        }
        state.known.remove(&key);
        let name = info.username.as_deref().unwrap_or_default();
        let known = state.known.values().find(|(session, _)| session.name() == name);
        let questions = known.map(|(session, _)| session.questions.clone());
        state.make_room_for(name);
        let questions = questions.unwrap_or_else(|| Arc::new(RequestBudget::new(QUESTIONS.0, QUESTIONS.1)));
        let session = Arc::new(Session { info, answers: Mutex::default(), questions });
        state.known.insert(key, (session.clone(), now));
        session
    }

    /// Removes the session of a token that the API server refused.
    pub fn refuse(&self, key: SessionKey, now: Instant) {
        let mut state = lock(&self.0);
        state.known.remove(&key);
        make_room(&mut state.refused, REFUSED, |at| *at);
        state.refused.insert(key, now);
    }
}

#[cfg(test)]
impl Sessions {
    /// Makes all sessions and answers older.
    pub fn age(&self, by: Duration) {
        let mut state = lock(&self.0);
        for (session, at) in state.known.values_mut() {
            *at = at.checked_sub(by).expect("the clock runs");
            for (_, at) in lock(&session.answers).values_mut() {
                *at = at.checked_sub(by).expect("the clock runs");
            }
        }
    }
}

impl SessionTable {
    /// Removes a session of the same user name if that name has its share, else one of the name with most sessions. A user with
    /// many tokens so evicts their own sessions, not those of others.
    fn make_room_for(&mut self, name: &str) {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for (session, _) in self.known.values() {
            *counts.entry(session.name()).or_default() += 1;
        }
        let count = |name: &str| counts.get(name).copied().unwrap_or_default();
        let has_share = count(name) >= SESSIONS_OF_USER;
        if !has_share && self.known.len() < SESSIONS {
            return;
        }
        let candidates = self.known.iter().filter(|(_, (session, _))| !has_share || session.name() == name);
        let loser = candidates.min_by_key(|(_, (session, at))| (Reverse(count(session.name())), *at));
        if let Some(oldest) = loser.map(|(key, _)| *key) {
            self.known.remove(&oldest);
        }
    }
}

/// Removes the oldest entry of a map that is full.
fn make_room<K: Clone + Eq + Hash, V>(map: &mut HashMap<K, V>, most: usize, time: impl Fn(&V) -> Instant) {
    if map.len() < most {
        return;
    }
    if let Some(oldest) = map.iter().min_by_key(|(_, value)| time(value)).map(|(key, _)| key.clone()) {
        map.remove(&oldest);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().ignore_poison()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID_FOR: Duration = Duration::from_secs(30);

    fn info(name: &str, groups: &[&str]) -> UserInfo {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        UserInfo { username: Some(name.to_owned()), groups: Some(groups), ..UserInfo::default() }
    }

    fn key(token: &str) -> SessionKey {
        SessionKey::of(token, Audience::Own)
    }

    #[test]
    fn an_answer_holds_for_the_same_groups_only() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let question = Question::Drops("staging".to_owned());
        let first = sessions.admit(key("a"), info("dev", &["staging", "all"]), now);
        first.keep(question.clone(), true, now);
        // The order of groups does not matter.
        let again = sessions.admit(key("a"), info("dev", &["all", "staging"]), now);
        assert_eq!(again.answer(&question, now, VALID_FOR), Some(true));
        // The same user left a group: a new token shows it, or a new review of the same token.
        let new_token = sessions.admit(key("b"), info("dev", &["all"]), now);
        assert_eq!(new_token.answer(&question, now, VALID_FOR), None);
        let new_review = sessions.admit(key("a"), info("dev", &["all"]), now);
        assert_eq!(new_review.answer(&question, now, VALID_FOR), None);
        // A token reviewed for other audiences is another one.
        assert!(matches!(
            sessions.find(&SessionKey::of("a", Audience::OwnOrServer), now, VALID_FOR),
            SessionState::Unknown
        ));
    }

    #[test]
    fn answers_expire() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let session = sessions.admit(key("a"), info("dev", &[]), now);
        session.keep(Question::Logs, true, now);
        session.keep(Question::Path("/metrics"), false, now);
        assert_eq!(session.answer(&Question::Path("/metrics"), now, 10 * VALID_FOR), Some(false));
        assert_eq!(session.answer(&Question::Path("/metrics"), now + REFUSAL_VALID_FOR, 10 * VALID_FOR), None);
        let later = now + VALID_FOR;
        assert!(matches!(sessions.find(&key("a"), now, VALID_FOR), SessionState::Fresh(_)));
        assert!(matches!(sessions.find(&key("a"), later, VALID_FOR), SessionState::Stale(_)));
        assert_eq!(session.answer(&Question::Logs, later, VALID_FOR), None);
        sessions.refuse(key("a"), later);
        assert!(matches!(sessions.find(&key("a"), later, VALID_FOR), SessionState::Refused));
        assert!(matches!(sessions.find(&key("a"), later + REFUSED_FOR, VALID_FOR), SessionState::Unknown));
    }

    #[test]
    fn a_user_evicts_only_their_own_sessions() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        sessions.admit(key("victim"), info("victim", &[]), now);
        for account in 0..40 {
            for token in 0..100 {
                let name = format!("attacker-{account}");
                sessions.admit(key(&format!("{name}-{token}")), info(&name, &[]), now + VALID_FOR);
            }
        }
        for token in 0..10_000 {
            sessions.refuse(key(&format!("guess-{token}")), now);
        }
        let state = lock(&sessions.0);
        assert_eq!((state.known.len(), state.refused.len()), (SESSIONS, REFUSED));
        assert!(state.known.contains_key(&key("victim")));
        let of_one = state.known.values().filter(|(session, _)| session.name() == "attacker-39").count();
        assert!(of_one <= SESSIONS_OF_USER, "{of_one}");
    }

    #[test]
    fn answers_about_one_user_are_bounded() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let session = sessions.admit(key("a"), info("dev", &[]), now);
        for number in 0..2 * ANSWERS {
            let at = now + Duration::from_millis(number as u64);
            session.keep(Question::Drops(format!("namespace-{number}")), false, at);
        }
        assert_eq!(lock(&session.answers).len(), ANSWERS);
        let last = Question::Drops(format!("namespace-{}", 2 * ANSWERS - 1));
        assert_eq!(session.answer(&last, now + Duration::from_secs(2), VALID_FOR), Some(false));
    }
}
