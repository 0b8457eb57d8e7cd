//! Top-k expert routing (Shazeer et al., 2017, arXiv:1701.06538; Jiang et al., 2024, arXiv:2401.04088).

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

/// How gate logits become routes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Router {
    pub top_k: usize,
    /// Divide the chosen weights by their sum.
    pub normalise: bool,
    /// Multiplies the weights, after that.
    pub scale: f32,
}

impl Router {
    /// The `top_k` likeliest experts by the softmax over all gate logits, likeliest first and of
    /// equal ones the lower index first. `gates` [experts] is overwritten; `routes` is [top_k].
    ///
    /// # Errors
    /// [`NonFinite`] when a gate is infinite or NaN.
    ///
    /// # Panics
    /// If there are fewer experts than `top_k`, or `routes` has another length.
    pub fn route(&self, gates: &mut [f32], routes: &mut [Route]) -> Result<(), NonFinite> {
        assert!(self.top_k <= gates.len() && routes.len() == self.top_k);
        if gates.iter().any(|gate| !gate.is_finite()) {
            return Err(NonFinite);
        }
        softmax(gates);
        for rank in 0..routes.len() {
            let (chosen, rest) = routes.split_at_mut(rank);
            let taken = |expert: usize| chosen.iter().any(|route| route.expert as usize == expert);
            let mut best: Option<usize> = None;
            for expert in (0..gates.len()).filter(|&expert| !taken(expert)) {
                if best.is_none_or(|best| gates[expert] > gates[best]) {
                    best = Some(expert);
                }
            }
            let expert = best.unwrap_or_default();
            rest[0] = Route { expert: expert as u32, weight: gates[expert] };
        }
        let sum = routes.iter().fold(0.0, |sum, route| sum + route.weight);
        for route in routes {
            if self.normalise {
                route.weight /= sum;
            }
            route.weight *= self.scale;
        }
        Ok(())
    }
}

/// In place; the sum by 16 virtual lanes.
fn softmax(x: &mut [f32]) {
    let max = x.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    let mut lanes = [0.0; LANES];
    for (i, x) in x.iter_mut().enumerate() {
        *x = exp(*x - max);
        lanes[i % LANES] += *x;
    }
    let sum = tree_sum(lanes);
    x.iter_mut().for_each(|x| *x /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route(router: Router, gates: &[f32]) -> Vec<Route> {
        let mut routes = vec![Route::default(); router.top_k];
        router.route(&mut gates.to_vec(), &mut routes).unwrap();
        routes
    }

    /// Softmax in f64, then a stable full sort.
    fn plain(router: Router, gates: &[f32]) -> Vec<(usize, f64)> {
        let max = gates.iter().cloned().fold(f32::MIN, f32::max) as f64;
        let exps: Vec<f64> = gates.iter().map(|&g| libm::exp(g as f64 - max)).collect();
        let total: f64 = exps.iter().sum();
        let mut order: Vec<usize> = (0..gates.len()).collect();
        order.sort_by(|&a, &b| gates[b].total_cmp(&gates[a]));
        order.truncate(router.top_k);
        let chosen: f64 = order.iter().map(|&e| exps[e] / total).sum();
        let by = if router.normalise { chosen } else { 1.0 };
        order.iter().map(|&e| (e, exps[e] / total / by * router.scale as f64)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn equals_a_plain_router(
            gates in prop::collection::vec(-8.0f32..8.0, 1..130),
            share in 0.0f64..1.0,
            normalise: bool,
            scale in 0.5f32..3.0,
        ) {
            // Gates further apart than their rounding, so that the order is not in doubt.
            let gates: Vec<f32> = gates.iter().enumerate().map(|(i, g)| (g * 64.0).round() / 64.0 + i as f32 * 1e-4).collect();
            let top_k = 1 + (share * (gates.len() - 1) as f64) as usize;
            let router = Router { top_k, normalise, scale };
            let want = plain(router, &gates);
            for (route, (expert, weight)) in route(router, &gates).iter().zip(want) {
                prop_assert_eq!(route.expert as usize, expert);
                prop_assert!((route.weight as f64 - weight).abs() <= 1e-5 * weight);
            }
        }
    }

    #[test]
    fn ties_go_to_the_lowest_index() {
        let router = Router { top_k: 3, normalise: true, scale: 1.0 };
        let routes = route(router, &[1.0; 8]);
        assert_eq!(routes.iter().map(|r| r.expert).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(routes.iter().all(|r| r.weight == routes[0].weight));
        let routes = route(router, &[0.0, 2.0, 0.0, 2.0]);
        assert_eq!(routes.iter().map(|r| r.expert).collect::<Vec<_>>(), [1, 3, 0]);
    }

    #[test]
    fn all_experts_or_only_one() {
        let all = route(Router { top_k: 4, normalise: false, scale: 1.0 }, &[0.5, -1.0, 3.0, 0.0]);
        assert_eq!(all.iter().map(|r| r.expert).collect::<Vec<_>>(), [2, 0, 3, 1]);
        assert!((all.iter().map(|r| r.weight).sum::<f32>() - 1.0).abs() < 1e-6);
        let one = route(Router { top_k: 1, normalise: false, scale: 2.0 }, &[-3.0]);
        assert_eq!(one, [Route { expert: 0, weight: 2.0 }]);
    }

    #[test]
    fn underflowed_gates_are_still_chosen() {
        let routes = route(Router { top_k: 3, normalise: true, scale: 1.0 }, &[200.0, 0.0, -200.0]);
        assert_eq!(routes.iter().map(|r| r.expert).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(routes[1].weight, 0.0);
    }

    #[test]
    fn gates_that_are_not_numbers_are_reported() {
        let router = Router { top_k: 1, normalise: true, scale: 1.0 };
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut gates = [0.0, bad, 1.0];
            assert_eq!(router.route(&mut gates, &mut [Route::default()]), Err(NonFinite));
        }
    }
}
