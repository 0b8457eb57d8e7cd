//! Top-k expert routing (Shazeer et al., 2017, arXiv:1701.06538; Jiang et al., 2024, arXiv:2401.04088), limited to
//! groups (DeepSeek-AI, 2024, arXiv:2405.04434) and balanced by a bias (DeepSeek-AI, 2024, arXiv:2412.19437).

use crate::acts::NonFinite;
use crate::exp::exp;
use crate::kernels::tree_sum;
use crate::simd::LANES;

/// One chosen expert of a token.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
#[repr(C)]
pub struct Route {
    pub expert: u32,
    /// What the expert's output is multiplied by.
    pub weight: f32,
}

/// How gates become the scores that experts are chosen by, and their weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scoring {
    /// Softmax over all experts.
    Softmax,
    Sigmoid,
    /// The gates choose; the weights are the softmax over the chosen ones alone.
    Chosen,
}

/// Experts are chosen from the best groups only: equal runs of experts, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Groups {
    pub count: usize,
    /// How many of them are used.
    pub used: usize,
    /// A group is as good as its best expert, or as its best two together.
    pub best: usize,
}

/// How gate logits become routes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Router {
    pub top_k: usize,
    pub scoring: Scoring,
    pub groups: Option<Groups>,
    /// Divide the chosen weights by their sum.
    pub normalise: bool,
    /// Multiplies the weights, after that.
    pub scale: f32,
}

/// The least sum that weights are divided by: sigmoids may all be zero.
pub const LEAST_SUM: f32 = 1.0 / 16384.0;

impl Router {
    /// Whether it can choose from so many experts.
    pub fn fits(&self, experts: usize) -> bool {
        let choice = match self.groups {
            None => experts,
            Some(Groups { count, used, best }) => {
                let even = count > 0 && experts.is_multiple_of(count) && (1..=count).contains(&used);
                let size = if even { experts / count } else { 0 };
                if (1..=2).contains(&best) && best <= size { size * used } else { 0 }
            }
        };
        (1..=choice).contains(&self.top_k)
    }

    /// Numbers of working memory that routing a token takes.
    pub fn scratch(&self, experts: usize) -> usize {
        experts + self.groups.map_or(0, |groups| groups.count)
    }

    /// The `top_k` experts of the highest scores, best first and of equal ones the lower index first.
    /// `bias` `[experts]` is added to the scores that choose, not to those that weigh. `gates` `[experts]` is
    /// overwritten, `scratch` has [`Self::scratch`] numbers, and `routes` is `[top_k]`.
    ///
    /// # Errors
    /// [`NonFinite`] when a gate or a biased score is infinite or NaN.
    ///
    /// # Panics
    /// If the router does not [fit](Self::fits) the experts, or a slice has another length.
    pub fn route(
        &self,
        gates: &mut [f32],
        bias: Option<&[f32]>,
        scratch: &mut [f32],
        routes: &mut [Route],
    ) -> Result<(), NonFinite> {
        assert!(self.fits(gates.len()) && routes.len() == self.top_k);
        assert!(bias.is_none_or(|bias| bias.len() == gates.len()));
        if gates.iter().any(|gate| !gate.is_finite()) {
            return Err(NonFinite);
        }
        match self.scoring {
            Scoring::Softmax => softmax(gates, |gate| gate),
            Scoring::Sigmoid => gates.iter_mut().for_each(|gate| *gate = 1.0 / (1.0 + exp(-*gate))),
            Scoring::Chosen => {}
        }
        let (scores, groups) = scratch.split_at_mut(gates.len());
        scores.copy_from_slice(gates);
        if let Some(bias) = bias {
            scores.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
            if scores.iter().any(|score| !score.is_finite()) {
                return Err(NonFinite);
            }
        }
        if let Some(of) = self.groups {
            of.exclude(scores, groups);
        }
        for route in &mut *routes {
            let expert = take_best(scores);
            *route = Route { expert: expert as u32, weight: gates[expert] };
        }
        self.weigh(routes);
        Ok(())
    }

    fn weigh(&self, routes: &mut [Route]) {
        if self.scoring == Scoring::Chosen {
            softmax(routes, |route| &mut route.weight);
        }
        let sum = routes.iter().fold(0.0, |sum, route| sum + route.weight);
        for route in routes {
            if self.normalise {
                route.weight /= if sum > LEAST_SUM { sum } else { LEAST_SUM };
            }
            route.weight *= self.scale;
        }
    }
}

impl Groups {
    /// Leaves the scores of the best groups alone.
    fn exclude(&self, scores: &mut [f32], groups: &mut [f32]) {
        let size = scores.len() / self.count;
        for (group, members) in groups.iter_mut().zip(scores.chunks(size)) {
            let mut best = [f32::NEG_INFINITY; 2];
            for &score in members {
                if score > best[0] {
                    best = [score, best[0]];
                } else if score > best[1] {
                    best[1] = score;
                }
            }
            // Halved, which is exact, so that the sum of two stays finite.
            *group = if self.best == 2 { 0.5 * best[0] + 0.5 * best[1] } else { best[0] };
        }
        for _ in 0..self.used {
            take_best(groups);
        }
        for (group, members) in groups.iter().zip(scores.chunks_mut(size)) {
            if *group != f32::NEG_INFINITY {
                members.fill(f32::NEG_INFINITY);
            }
        }
    }
}

/// The lowest index of the highest score, which becomes minus infinity.
fn take_best(scores: &mut [f32]) -> usize {
    let mut best = 0;
    for (i, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = i;
        }
    }
    scores[best] = f32::NEG_INFINITY;
    best
}

/// In place; the sum by 16 virtual lanes.
fn softmax<T>(items: &mut [T], value: impl Fn(&mut T) -> &mut f32) {
    let mut max = f32::NEG_INFINITY;
    for item in &mut *items {
        let x = *value(item);
        max = if x > max { x } else { max };
    }
    let mut lanes = [0.0; LANES];
    for (i, item) in items.iter_mut().enumerate() {
        let x = value(item);
        *x = exp(*x - max);
        lanes[i % LANES] += *x;
    }
    let sum = tree_sum(lanes);
    items.iter_mut().for_each(|item| *value(item) /= sum);
}
