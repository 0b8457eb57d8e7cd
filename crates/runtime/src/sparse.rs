//! Which keys sparse attention keeps: for each layer, KV head and block of 64 queries (by absolute
//! position) an ascending list of blocks of 64 keys. A choice depends on these alone, so neither
//! chunks nor threads nor other sequences change it.

use crate::choose::Method;
use crate::error::{Error, Result};
use crate::plan::{Plan, Policy};
use kernels::kernels::attention::{BLOCK, Kept, KeyBlock};

/// Whose keys are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub layer: usize,
    pub kv_head: usize,
    /// The queries' positions / 64.
    pub block: usize,
}

/// How one layer of one sequence chooses.
#[derive(Clone, Debug, PartialEq)]
pub enum BlockSource {
    /// All keys.
    Dense,
    Fixed(Pattern),
    /// By what keys and queries hold.
    Chosen(Method),
    /// For each block of queries (those beyond the last: the last) the blocks of keys; its own is
    /// kept in any case.
    Listed(Vec<Vec<u32>>),
}

/// A fixed pattern: the union of what its fields keep.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    /// The sequence's first positions (Xiao et al., 2024, arXiv:2309.17453).
    pub sinks: usize,
    /// The last positions before each query, its own included; at least 1.
    pub recent: usize,
    /// So many blocks before the queries' own, each as many before the next (Beltagy et al., 2020,
    /// arXiv:2004.05150).
    pub dilated: usize,
    pub dilation: usize,
    /// Blocks that all queries see.
    pub global: Vec<u32>,
    /// Every so manieth block (Child et al., 2019, arXiv:1904.10509); 0: none.
    pub stride: usize,
    /// So many earlier blocks, drawn for each place (Zaheer et al., 2020, arXiv:2007.14062).
    pub random: usize,
    pub seed: u64,
}

impl Pattern {
    pub fn recent(recent: usize) -> Self {
        let (global, none) = (Vec::new(), 0);
        Self { sinks: 0, recent, dilated: none, dilation: 1, global, stride: 0, random: none, seed: 0 }
    }

    fn choose(&self, place: Place) -> Choice {
        let own = place.block;
        let first_recent = (own * BLOCK + 1).saturating_sub(self.recent.max(1)) / BLOCK;
        let first = 0..self.sinks.div_ceil(BLOCK).min(own + 1);
        let limited = first.chain(first_recent..own + 1);
        let dilated = (1..=self.dilated).map_while(|i| own.checked_sub(i.checked_mul(self.dilation)?));
        let strided = (1..).map_while(|i| self.stride.checked_mul(i)?.checked_sub(1));
        let strided = strided.take_while(|&block| self.stride > 0 && block <= own);
        let global = self.global.iter().map(|&block| block as usize);
        let whole = dilated.chain(strided).chain(global).chain(self.draw(place));
        let limited = limited.map(|block| (block, false));
        Choice::new(own, limited.chain(whole.map(|block| (block, true))), self.sinks, self.recent.max(1))
    }

    /// Distinct blocks before the queries' own.
    fn draw(&self, place: Place) -> Vec<usize> {
        if self.random >= place.block {
            return (0..place.block).collect();
        }
        let parts = [place.layer, place.kv_head, place.block].map(|part| part as u64);
        let key = parts.into_iter().fold(self.seed, |key, part| mix(key ^ part));
        let mut is_drawn = vec![false; place.block];
        let draws = (0..).map(|i| (mix(key.wrapping_add(i)) % place.block as u64) as usize);
        draws.filter(|&block| !std::mem::replace(&mut is_drawn[block], true)).take(self.random).collect()
    }
}

/// A step of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What was chosen for one place; see [`Kept`].
#[derive(Debug, PartialEq)]
pub struct Choice {
    blocks: Vec<KeyBlock>,
    sinks: usize,
    recent: usize,
}

impl Choice {
    /// Whole blocks, and the queries' own.
    pub(crate) fn whole(own: usize, blocks: &[u32]) -> Self {
        let blocks = blocks.iter().map(|&block| (block as usize, true));
        Self::new(own, blocks.chain([(own, true)]), 0, 1)
    }

    /// The blocks that are kept of those from `first` on.
    pub(crate) fn from(&self, first: usize) -> impl Iterator<Item = u32> + '_ {
        self.blocks.iter().map(|block| block.index).filter(move |&index| index as usize >= first)
    }

    /// In order, each block once, none after the queries' own.
    fn new(own: usize, blocks: impl Iterator<Item = (usize, bool)>, sinks: usize, recent: usize) -> Self {
        let blocks = blocks.filter(|&(index, _)| index <= own);
        let mut blocks: Vec<KeyBlock> =
            blocks.map(|(index, whole)| KeyBlock { index: index as u32, whole }).collect();
        // Of the same block the whole one comes first, and stays.
        blocks.sort_unstable_by_key(|block| (block.index, !block.whole));
        blocks.dedup_by_key(|block| block.index);
        Self { blocks, sinks, recent }
    }

    pub fn kept(&self) -> Kept<'_> {
        Kept { blocks: &self.blocks, sinks: self.sinks, recent: self.recent }
    }
}

impl BlockSource {
    /// The choice where it does not depend on keys and queries. None: all keys are kept.
    pub fn choose(&self, place: Place) -> Option<Choice> {
        match self {
            Self::Dense | Self::Chosen(_) => None,
            Self::Fixed(pattern) => Some(pattern.choose(place)),
            Self::Listed(lists) => {
                let list = lists.get(place.block).or(lists.last()).map_or(&[][..], Vec::as_slice);
                Some(Choice::whole(place.block, list))
            }
        }
    }
}

/// How a sequence's layers choose: blocks with one query of the step, and those with several. Empty: all
/// keys are kept.
#[derive(Clone, Default)]
pub struct Sources {
    pub prefill: Vec<BlockSource>,
    pub decode: Vec<BlockSource>,
}

impl Sources {
    /// As the plan says.
    pub fn of_plan(plan: &Plan) -> Result<Self> {
        let Some(sparse) = &plan.sparse else { return Ok(Self::default()) };
        let layers = plan.kv_layers.len();
        let all = |policies: &[Policy]| -> Result<Vec<BlockSource>> {
            if policies.len() != 1 && policies.len() != layers {
                return Err(Error::plan(format!(
                    "{} attention policies for {layers} layers",
                    policies.len()
                )));
            }
            (0..layers)
                .map(|layer| source(&policies[layer % policies.len()], plan.kv_layers[layer].head_dim))
                .collect()
        };
        Ok(Self { prefill: all(&sparse.prefill)?, decode: all(&sparse.decode)? })
    }

    /// Of a layer, for so many queries of one block.
    pub fn of(&self, layer: usize, queries: usize) -> Option<&BlockSource> {
        if queries == 1 { self.decode.get(layer) } else { self.prefill.get(layer) }
    }
}

fn source(policy: &Policy, head_dim: usize) -> Result<BlockSource> {
    Ok(match policy {
        Policy::Dense => BlockSource::Dense,
        &Policy::Pattern { sinks, recent, dilated, dilation, ref global, stride, random, seed } => {
            let global = global.clone();
            BlockSource::Fixed(Pattern { sinks, recent, dilated, dilation, global, stride, random, seed })
        }
        content => BlockSource::Chosen(Method::new(content, head_dim)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(pattern: &Pattern, block: usize) -> Vec<(u32, bool)> {
        let choice = pattern.choose(Place { layer: 1, kv_head: 2, block });
        choice.blocks.iter().map(|block| (block.index, block.whole)).collect()
    }

    #[test]
    fn patterns_keep_what_they_say() {
        let window = Pattern { sinks: 4, ..Pattern::recent(100) };
        assert_eq!(chosen(&window, 9), [(0, false), (7, false), (8, false), (9, false)]);
        assert_eq!(chosen(&window, 0), [(0, false)]);
        // More than any sequence has: these blocks are not gone through.
        let all = Pattern { sinks: usize::MAX, ..Pattern::recent(1) };
        assert_eq!(chosen(&all, 1), [(0, false), (1, false)]);
        let dilated = Pattern { dilated: 2, dilation: 3, global: vec![1, 40], ..Pattern::recent(1) };
        assert_eq!(chosen(&dilated, 9), [(1, true), (3, true), (6, true), (9, false)]);
        let strided = Pattern { stride: 4, ..Pattern::recent(1) };
        assert_eq!(chosen(&strided, 9), [(3, true), (7, true), (9, false)]);
    }

    #[test]
    fn drawn_blocks_are_distinct_and_repeat() {
        let random = Pattern { random: 5, seed: 3, ..Pattern::recent(1) };
        for block in 0..40 {
            let got = chosen(&random, block);
            assert_eq!(got.len(), block.min(5) + 1);
            assert_eq!(got, chosen(&random, block));
        }
        assert_ne!(chosen(&random, 30), chosen(&Pattern { seed: 4, ..random.clone() }, 30));
    }
}
