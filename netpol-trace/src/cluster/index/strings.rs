//! One copy of each label and name: thousands of pods share them.

use std::collections::HashSet;

use super::super::model::Str;

#[derive(Debug, Clone, Default)]
pub(super) struct Strings {
    known: HashSet<Str>,
    /// Sweep when there are this many.
    sweep_at: usize,
}

impl Strings {
    pub(super) const FIRST_SWEEP: usize = 4096;

    /// The shared copy of `text`.
    pub(super) fn share(&mut self, text: &Str) -> Str {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at.max(Self::FIRST_SWEEP) {
            // What nobody else holds came from objects that are gone.
            self.known.retain(|text| Str::strong_count(text) > 1);
            self.sweep_at = self.known.len() * 2;
        }
        self.known.insert(text.clone());
        text.clone()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}
