//! Choosing keys by content: what a layer's policy needs of earlier keys, and its choice for one block of
//! queries. The state of a KV head holds nothing but what follows from its sequence's keys, so neither
//! chunks nor threads change a choice.

use crate::error::{Error, Result};
use crate::plan::Policy;
use crate::sparse::Choice;
use kernels::kernels::attention::BLOCK;
use kernels::select::{
    Bounds, Budget, Hashes, Keys, MAX_ROUNDS, Queries, Rotations, SmallKeys, add_highest, antidiagonal,
    bounds, choose, kept_mass, lsh, vertical_slash,
};
use kernels::table::KernelTable;
use std::ops::Range;
use std::sync::Arc;

/// A policy that looks at keys and queries.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    Antidiagonal {
        stride: usize,
        mass: f32,
        share: Share,
    },
    VerticalSlash(Share),
    Lsh {
        rotations: Arc<Rotations>,
        share: Share,
    },
    Bounds(Share),
    /// Dense before `from` positions; then as few blocks as keep `quality` of the mass, and dense again where
    /// sampled queries show that they do not.
    Auto {
        quality: f32,
        from: usize,
    },
}

/// How much of the earlier blocks may be kept: a share of them, but no fewer than hold so many tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    keep: f32,
    tokens: usize,
}

impl Share {
    fn budget(self, blocks: usize, mass: f32) -> Budget {
        let share = (self.keep * blocks as f32).ceil() as usize;
        Budget { blocks: share.max(self.tokens.div_ceil(BLOCK)), mass, lone: 0 }
    }

    /// With a part for keys that few of the queries look for.
    fn with_lone(self, blocks: usize, mass: f32) -> Budget {
        let budget = self.budget(blocks, mass);
        Budget { lone: budget.blocks / LONE, ..budget }
    }
}

/// Of the blocks that may be kept, one in so many goes to the highest page bounds where the others are chosen by what
/// all queries of a block look at together, or the last of them.
const LONE: usize = 4;
/// The stride of the automatic policy, and the most that it keeps without being dense.
const AUTO_STRIDE: usize = 16;
const AUTO_SHARE: Share = Share { keep: 0.5, tokens: 1024 };
/// And what it keeps beside, by page bounds: a single query of a block has too little of the mass to count.
const AUTO_LONE: usize = 16;
/// The automatic policy's budget for single queries, and how often it measures what that keeps.
const AUTO_DECODE: Share = Share { keep: 0.125, tokens: 2048 };
const AUTO_CHECK: usize = 16;

impl Method {
    /// Whether the budget holds all of so many blocks, so that there is nothing to choose.
    fn allows_all(&self, blocks: usize) -> bool {
        match *self {
            Self::Antidiagonal { mass, .. } if mass < 1.0 => false,
            Self::Antidiagonal { share, .. }
            | Self::VerticalSlash(share)
            | Self::Lsh { share, .. }
            | Self::Bounds(share) => share.budget(blocks, 1.0).blocks >= blocks,
            Self::Auto { .. } => false,
        }
    }

    pub fn new(policy: &Policy, head_dim: usize) -> Result<Self> {
        let share = |keep: f32, tokens: usize| {
            if (0.0..=1.0).contains(&keep) {
                Ok(Share { keep, tokens })
            } else {
                Err(Error::plan(format!("a policy keeps {keep} of the keys")))
            }
        };
        Ok(match *policy {
            Policy::Antidiagonal { stride, mass, keep, tokens } => {
                if ![4, 8, 16].contains(&stride) || !(0.0..=1.0).contains(&mass) {
                    return Err(Error::plan(format!("a stride of {stride} and a mass of {mass}")));
                }
                Self::Antidiagonal { stride, mass, share: share(keep, tokens)? }
            }
            Policy::VerticalSlash { keep, tokens } => Self::VerticalSlash(share(keep, tokens)?),
            Policy::Lsh { rounds, seed, keep, tokens } => {
                if !(1..=MAX_ROUNDS).contains(&rounds) {
                    return Err(Error::plan(format!(
                        "{rounds} rounds of hashing, 1 to {MAX_ROUNDS} are possible"
                    )));
                }
                let rotations = Arc::new(Rotations::new(seed, rounds, head_dim));
                Self::Lsh { rotations, share: share(keep, tokens)? }
            }
            Policy::Bounds { keep, tokens } => Self::Bounds(share(keep, tokens)?),
            Policy::Auto { quality, from } => {
                if !(0.0..=1.0).contains(&quality) {
                    return Err(Error::plan(format!("a quality of {quality}")));
                }
                Self::Auto { quality, from }
            }
            Policy::Dense | Policy::Pattern { .. } => {
                return Err(Error::internal("a policy without content"));
            }
        })
    }
}

/// What is known of one KV head's keys, and what was kept so far.
#[derive(Default)]
pub struct HeadState {
    bounds: Bounds,
    hashes: Hashes,
    so_far: SoFar,
    /// The same at the end of the last step that did not fail.
    settled: SoFar,
    /// Every choice, where somebody wants them; see [`Self::take_recorded`].
    recorded: Option<Vec<u32>>,
}

#[derive(Clone, Copy, Default)]
struct SoFar {
    /// The automatic policy's last measurement of single queries was good.
    trusted: bool,
    kept: Tally,
    /// How much there is of what is recorded.
    recorded: usize,
}

/// What was kept of the blocks that queries could see, each query counted.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub struct Tally {
    pub kept: u64,
    pub seen: u64,
    /// Sum of the measured shares of the attention mass, and of how many.
    pub mass: f64,
    pub measured: u64,
}

impl Tally {
    pub fn numbers(&self) -> [f64; 4] {
        [self.kept as f64, self.seen as f64, self.mass, self.measured as f64]
    }

    pub fn add(&mut self, other: Self) {
        self.kept += other.kept;
        self.seen += other.seen;
        self.mass += other.mass;
        self.measured += other.measured;
    }
}

/// Queries of one block of one KV head, and where they are.
pub struct Asked<'a> {
    pub keys: Keys<'a>,
    pub queries: Queries,
    pub scale: f32,
    pub softcap: Option<f32>,
    /// The first block that a layer's own window leaves to them.
    pub first: usize,
    /// The queries' positions / 64, and that of the last.
    pub own: usize,
    pub position: usize,
}

impl Asked<'_> {
    /// The blocks to choose among.
    fn earlier(&self) -> Range<usize> {
        self.first..self.own
    }

    /// A choice among these, counted from the first of them.
    fn choice(&self, blocks: &[u32]) -> Choice {
        let blocks: Vec<u32> = blocks.iter().map(|&block| block + self.first as u32).collect();
        Choice::whole(self.own, &blocks)
    }

    /// The mass that each block has of the longest query's attention: the longer one is, the fewer keys it looks at, and of
    /// so few the others' estimates and bounds of ordinary keys tell too little. Nothing for single queries.
    fn mass_of_longest(&self, table: &KernelTable, small: &mut SmallKeys) -> Vec<f32> {
        if self.queries.tokens == 1 {
            return Vec::new();
        }
        let values = self.queries.longest_of_all().to_vec();
        small.update(table, self.keys, self.earlier());
        let longest = Queries { values, heads: 1, tokens: 1, head_dim: self.queries.head_dim };
        antidiagonal(table, small, &longest, self.scale, self.earlier(), 1)
    }

    /// What blocks, counted from the first, keep of the mass of some queries: one of each head, from all parts of the block.
    fn mass(&self, table: &KernelTable, kept: &[u32]) -> f32 {
        let Queries { heads, tokens, .. } = self.queries;
        let some = heads.max(tokens.min(2));
        let row = |i: usize| self.queries.row(i % heads, ((i + 1) * tokens).div_ceil(some) - 1);
        let rows: Vec<f32> = (0..some).flat_map(row).copied().collect();
        let keys = self.keys.from(self.first);
        kept_mass(table, keys, &rows, (self.scale, self.softcap), self.earlier().len(), kept)
    }
}

impl HeadState {
    /// Takes in the keys of the blocks up to `blocks`, all of them whole; forgets those beyond, which may change.
    pub fn update(&mut self, table: &KernelTable, keys: Keys, method: &Method, blocks: usize) {
        match method {
            Method::Lsh { rotations, .. } => self.hashes.update(table, rotations, keys, blocks),
            Method::Bounds(_)
            | Method::Auto { .. }
            | Method::Antidiagonal { .. }
            | Method::VerticalSlash(_) => self.bounds.update(table, keys, blocks),
        }
    }

    /// Begins a step after so many positions: what one that failed, or was given up, has left is forgotten.
    pub fn begin(&mut self, positions: usize) {
        self.bounds.forget(positions / BLOCK);
        self.hashes.forget(positions / BLOCK);
        self.so_far = self.settled;
        if let Some(lists) = &mut self.recorded {
            lists.truncate(self.settled.recorded);
        }
    }

    /// Ends a step that has not failed.
    pub fn settle(&mut self) {
        self.so_far.recorded = self.recorded.as_ref().map_or(0, Vec::len);
        self.settled = self.so_far;
    }

    /// Forgets the measurements of single queries that came later than what the sequence holds now.
    pub fn distrust(&mut self) {
        self.settled.trusted = false;
    }

    /// What was kept since this was last asked, between steps.
    pub fn take_kept(&mut self) -> Tally {
        std::mem::take(&mut self.settled.kept)
    }

    /// Records choices from now on.
    pub fn record(&mut self) {
        (self.recorded, self.settled.recorded) = (Some(Vec::new()), 0);
    }

    /// Ends recording: for each choice the queries' block, how many blocks of keys are kept, and these; 0 and none where
    /// that is all of them.
    pub fn take_recorded(&mut self) -> Option<Vec<u32>> {
        let mut lists = self.recorded.take()?;
        lists.truncate(self.settled.recorded);
        Some(lists)
    }

    /// None: all keys are kept. `small`: what earlier choices among the same keys left, or none.
    pub fn choose(
        &mut self,
        table: &KernelTable,
        method: &Method,
        asked: &Asked,
        small: &mut SmallKeys,
    ) -> Option<Choice> {
        let &Asked { keys, ref queries, scale, first, own, position, .. } = asked;
        let (earlier, count) = (asked.earlier(), own - first);
        if method.allows_all(count) {
            self.measure(asked, || 1.0);
            return None;
        }
        let blocks = match *method {
            Method::Antidiagonal { stride, mass, share } => {
                small.update(table, keys, earlier.clone());
                // A single query has every lane to itself: all its keys are scored in the time of some.
                let stride = if queries.tokens == 1 { 1 } else { stride };
                let mass_of = antidiagonal(table, small, queries, scale, earlier, stride);
                let of_longest = asked.mass_of_longest(table, small);
                self.with_lone(table, asked, &of_longest, &mass_of, share.with_lone(count, mass))
            }
            Method::VerticalSlash(share) => {
                let scores = vertical_slash(table, keys.from(first), queries, scale, count);
                self.with_lone(table, asked, &[], &scores, share.with_lone(count, 1.0))
            }
            Method::Lsh { ref rotations, share } => {
                choose(&lsh(table, rotations, &self.hashes, queries, earlier), share.budget(count, 1.0))
            }
            Method::Bounds(share) => {
                let mut budget = share.budget(count, 1.0);
                budget.lone = if queries.tokens == 1 { 0 } else { budget.blocks / (2 * LONE) };
                let mut kept = choose(&bounds(table, &self.bounds, queries, earlier), budget);
                add_highest(&mut kept, &asked.mass_of_longest(table, small), budget.lone);
                kept
            }
            Method::Auto { from, .. } if position < from => return None,
            Method::Auto { quality, .. } if queries.tokens == 1 => {
                return self.auto_single(table, asked, quality);
            }
            Method::Auto { quality, .. } => {
                let (budget, lone) = (AUTO_SHARE.budget(count, quality), count / AUTO_LONE);
                small.update(table, keys, earlier.clone());
                let mass_of = antidiagonal(table, small, queries, scale, earlier, AUTO_STRIDE);
                let budget = Budget { blocks: budget.blocks + lone, lone, ..budget };
                let of_longest = asked.mass_of_longest(table, small);
                let blocks = self.with_lone(table, asked, &of_longest, &mass_of, budget);
                // The budget may be spent before the estimate for all queries is reached, which few measured ones may not tell.
                let estimated = share_of(&mass_of, &blocks) >= quality;
                let mass = if estimated { asked.mass(table, &blocks) } else { 0.0 };
                let enough = mass >= quality;
                self.measured(if enough { mass } else { 1.0 });
                return enough.then(|| asked.choice(&blocks));
            }
        };
        self.measure(asked, || asked.mass(table, &blocks));
        Some(asked.choice(&blocks))
    }

    /// The blocks of the highest scores, and beside them some that the longest query looks at, where that is known, and some
    /// of the highest bounds.
    fn with_lone(
        &self,
        table: &KernelTable,
        asked: &Asked,
        of_longest: &[f32],
        scores: &[f32],
        budget: Budget,
    ) -> Vec<u32> {
        let mut kept = choose(scores, budget);
        if kept.len() < scores.len() && budget.lone > 0 {
            let some = if of_longest.is_empty() { 0 } else { budget.lone / 2 };
            add_highest(&mut kept, of_longest, some);
            let standing_out = bounds(table, &self.bounds, &asked.queries, asked.earlier());
            add_highest(&mut kept, &standing_out, budget.lone - some);
        }
        kept
    }

    fn auto_single(&mut self, table: &KernelTable, asked: &Asked, quality: f32) -> Option<Choice> {
        let check = asked.position.is_multiple_of(AUTO_CHECK);
        if !check && !self.so_far.trusted {
            return None;
        }
        let budget = AUTO_DECODE.budget(asked.earlier().len(), 1.0);
        let blocks = choose(&bounds(table, &self.bounds, &asked.queries, asked.earlier()), budget);
        if check {
            let mass = asked.mass(table, &blocks);
            self.so_far.trusted = mass >= quality;
            self.measured(if self.so_far.trusted { mass } else { 1.0 });
        }
        self.so_far.trusted.then(|| asked.choice(&blocks))
    }

    fn measured(&mut self, mass: f32) {
        self.so_far.kept.mass += f64::from(mass);
        self.so_far.kept.measured += 1;
    }

    /// Counts, and records, what a choice keeps of the blocks from `first` to `own` that so many queries see.
    pub fn count(&mut self, choice: Option<&Choice>, first: usize, own: usize, queries: usize) {
        let all = own - first + 1;
        let kept = choice.map_or(all, |choice| choice.from(first).count());
        self.so_far.kept.seen += (all * queries) as u64;
        self.so_far.kept.kept += (kept * queries) as u64;
        let Some(lists) = &mut self.recorded else { return };
        let all_before = choice.is_none() && first == 0;
        lists.extend([own as u32, if all_before { 0 } else { kept as u32 }]);
        match choice {
            Some(choice) => lists.extend(choice.from(first)),
            None if all_before => {}
            None => lists.extend(first as u32..=own as u32),
        }
    }

    /// Now and then, by position: the mass that chosen blocks keep of all earlier ones.
    fn measure(&mut self, asked: &Asked, mass: impl FnOnce() -> f32) {
        if !asked.earlier().is_empty() && asked.position % MEASURE == MEASURE - 1 {
            self.measured(mass());
        }
    }
}

/// Of all blocks' mass that of some.
fn share_of(mass: &[f32], blocks: &[u32]) -> f32 {
    blocks.iter().map(|&block| mass[block as usize]).sum::<f32>() / mass.iter().sum::<f32>()
}

/// Of so many positions one is measured.
const MEASURE: usize = 4 * BLOCK;
