//! What became of a sequence's tokens in the mixtures of experts.

use crate::compile::Mixture;

/// Counts of one mixture. They stop at the largest number they can hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many tokens each expert got.
    pub tokens: Vec<u32>,
    /// How often an expert's weights were read: once a step for all of the sequence's tokens.
    pub reads: u32,
    /// How many of these reads found the weights missing from memory.
    pub misses: u32,
}

/// A tally for each of a plan's mixtures, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing(pub Vec<Tally>);

impl Routing {
    /// All zero.
    pub fn new(mixtures: &[Mixture]) -> Self {
        let tally = |mixture: &Mixture| Tally { tokens: vec![0; mixture.count], ..Tally::default() };
        Self(mixtures.iter().map(tally).collect())
    }

    /// All zero again.
    pub fn clear(&mut self) {
        for tally in &mut self.0 {
            tally.tokens.fill(0);
            (tally.reads, tally.misses) = (0, 0);
        }
    }

    pub fn add(&mut self, other: &Self) {
        for (tally, other) in self.0.iter_mut().zip(&other.0) {
            for (sum, &count) in tally.tokens.iter_mut().zip(&other.tokens) {
                *sum = sum.saturating_add(count);
            }
            tally.reads = tally.reads.saturating_add(other.reads);
            tally.misses = tally.misses.saturating_add(other.misses);
        }
    }
}

impl Tally {
    /// Counts one step's routes of a sequence, where nothing is counted yet.
    pub fn count(&mut self, experts: impl Iterator<Item = u32>, is_missing: impl Fn(u32) -> bool) {
        for expert in experts {
            let count = &mut self.tokens[expert as usize];
            *count = count.saturating_add(1);
        }
        for (expert, count) in self.tokens.iter().enumerate() {
            if *count > 0 {
                self.reads = self.reads.saturating_add(1);
                self.misses = self.misses.saturating_add(is_missing(expert as u32) as u32);
            }
        }
    }
}
