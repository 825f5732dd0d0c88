//! The direction of a rule, and the side of a connection whose policy decides.

use std::fmt;

use super::closed_set::closed_set;

closed_set! {
    /// The side whose policy decides.
    pub enum Direction {
        /// The destination's side.
        Ingress = "ingress",
        /// The source's side.
        Egress = "egress",
    }
}

impl Direction {
    /// The field that holds a rule's peers: `from` or `to`.
    pub fn peers_field(self) -> &'static str {
        match self {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
