//! What a record of an unanswered connection rests on.

use super::closed_set::closed_set;

closed_set! {
    /// What a record of an unanswered connection rests on.
    pub enum UnansweredBasis {
        /// No reply came, and this node dropped no packet of the connection.
        NoAnswerAndNoDropSeen = "no_answer_and_no_drop_seen",
        /// No reply came. Drops are not watched, so one may explain it.
        NoAnswerSeen = "no_answer_seen",
    }
}
