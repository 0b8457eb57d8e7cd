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
    /// The automatic policy's last measurement of single queries was good.
    trusted: bool,
    pub kept: Tally,
    /// Every choice, where somebody wants them: the queries' block, how many blocks of keys are kept, and
    /// these; 0 and none where that is all of them.
    pub recorded: Option<Vec<u32>>,
}

/// What was kept of the blocks that queries could see.
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
    /// The queries' positions / 64, and that of the last.
    pub own: usize,
    pub position: usize,
}

impl Asked<'_> {
    /// Of each head's last query.
    fn mass(&self, table: &KernelTable, kept: &[u32]) -> f32 {
        let last = self.queries.tokens - 1;
        let rows: Vec<f32> =
            (0..self.queries.heads).flat_map(|head| self.queries.row(head, last)).copied().collect();
        kept_mass(table, self.keys, &rows, self.scale, self.own, kept)
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

    /// None: all keys are kept. `small`: what earlier choices among the same keys left, or none.
    pub fn choose(
        &mut self,
        table: &KernelTable,
        method: &Method,
        asked: &Asked,
        small: &mut SmallKeys,
    ) -> Option<Choice> {
        let Asked { keys, queries, scale, own, position } = asked;
        let (keys, scale, own) = (*keys, *scale, *own);
        let blocks = match *method {
            Method::Antidiagonal { stride, mass, share } => {
                small.update(table, keys, own);
                let mass_of = antidiagonal(table, small, queries, scale, own, stride);
                self.with_lone(table, asked, &mass_of, share.with_lone(own, mass))
            }
            Method::VerticalSlash(share) => {
                let scores = vertical_slash(table, keys, queries, scale, own);
                self.with_lone(table, asked, &scores, share.with_lone(own, 1.0))
            }
            Method::Lsh { ref rotations, share } => {
                choose(&lsh(table, rotations, &self.hashes, queries, own), share.budget(own, 1.0))
            }
            Method::Bounds(share) => {
                choose(&bounds(table, &self.bounds, queries, own), share.budget(own, 1.0))
            }
            Method::Auto { from, .. } if *position < from => return None,
            Method::Auto { quality, .. } if queries.tokens == 1 => {
                return self.auto_single(table, asked, quality);
            }
            Method::Auto { quality, .. } => {
                let (budget, lone) = (AUTO_SHARE.budget(own, quality), own / AUTO_LONE);
                small.update(table, keys, own);
                let mass_of = antidiagonal(table, small, queries, scale, own, AUTO_STRIDE);
                let budget = Budget { blocks: budget.blocks + lone, lone, ..budget };
                let blocks = self.with_lone(table, asked, &mass_of, budget);
                let mass = asked.mass(table, &blocks);
                self.measured(mass);
                if mass < quality {
                    return None;
                }
                return Some(Choice::whole(own, &blocks));
            }
        };
        self.measure(table, asked, &blocks);
        Some(Choice::whole(own, &blocks))
    }

    /// The blocks of the highest scores, and beside them some of the highest bounds.
    fn with_lone(&self, table: &KernelTable, asked: &Asked, scores: &[f32], budget: Budget) -> Vec<u32> {
        let mut kept = choose(scores, budget);
        if kept.len() < scores.len() && budget.lone > 0 {
            let standing_out = bounds(table, &self.bounds, &asked.queries, asked.own);
            add_highest(&mut kept, &standing_out, budget.lone);
        }
        kept
    }

    fn auto_single(&mut self, table: &KernelTable, asked: &Asked, quality: f32) -> Option<Choice> {
        let check = asked.position.is_multiple_of(AUTO_CHECK);
        if !check && !self.trusted {
            return None;
        }
        let budget = AUTO_DECODE.budget(asked.own, 1.0);
        let blocks = choose(&bounds(table, &self.bounds, &asked.queries, asked.own), budget);
        if check {
            let mass = asked.mass(table, &blocks);
            self.measured(mass);
            self.trusted = mass >= quality;
        }
        self.trusted.then(|| Choice::whole(asked.own, &blocks))
    }

    fn measured(&mut self, mass: f32) {
        self.kept.mass += f64::from(mass);
        self.kept.measured += 1;
    }

    /// Counts, and records, what a choice keeps of the `own` + 1 blocks that its queries see.
    pub fn count(&mut self, choice: Option<&Choice>, own: usize) {
        self.kept.seen += own as u64 + 1;
        self.kept.kept += choice.map_or(own + 1, Choice::len) as u64;
        if let Some(lists) = &mut self.recorded {
            lists.extend([own as u32, choice.map_or(0, Choice::len) as u32]);
            lists.extend(choice.into_iter().flat_map(|choice| choice.kept().blocks).map(|block| block.index));
        }
    }

    /// Now and then, by position: the mass that chosen blocks keep of all earlier ones.
    fn measure(&mut self, table: &KernelTable, asked: &Asked, blocks: &[u32]) {
        if asked.own > 0 && asked.position % MEASURE == MEASURE - 1 {
            let mass = asked.mass(table, blocks);
            self.measured(mass);
        }
    }
}

/// Of so many positions one is measured.
const MEASURE: usize = 4 * BLOCK;
