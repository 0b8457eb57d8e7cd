use kernels::acts::NonFinite;
use kernels::route::*;
use proptest::prelude::*;

const ROUTER: Router =
    Router { top_k: 1, scoring: Scoring::Softmax, groups: None, normalise: false, scale: 1.0 };

fn try_route(router: Router, gates: &[f32], bias: Option<&[f32]>) -> Result<Vec<Route>, NonFinite> {
    let mut routes = vec![Route::default(); router.top_k];
    // What earlier tokens left in the working memory does not matter.
    let mut scratch = vec![f32::NAN; router.scratch(gates.len())];
    router.route(&mut gates.to_vec(), bias, &mut scratch, &mut routes).map(|()| routes)
}

fn route(router: Router, gates: &[f32], bias: Option<&[f32]>) -> Vec<Route> {
    try_route(router, gates, bias).unwrap()
}

fn experts(routes: &[Route]) -> Vec<usize> {
    routes.iter().map(|route| route.expert as usize).collect()
}

/// The scores that choose, in f64 and as the definitions read.
fn plain_scores(scoring: Scoring, gates: &[f32], bias: Option<&[f32]>) -> Vec<f64> {
    let sum: f64 = gates.iter().map(|&g| libm::exp(g as f64)).sum();
    let score = |(i, &gate): (usize, &f32)| {
        let gate = gate as f64;
        let score = match scoring {
            Scoring::Softmax => libm::exp(gate) / sum,
            Scoring::Sigmoid => 1.0 / (1.0 + libm::exp(-gate)),
            Scoring::Chosen => gate,
        };
        score + bias.map_or(0.0, |bias| bias[i] as f64)
    };
    gates.iter().enumerate().map(score).collect()
}

/// Indexes from the highest score to the lowest, equal ones in their order.
fn descending(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order
}

/// What each group counts, and which are chosen.
fn plain_groups(of: Groups, scores: &[f64]) -> (Vec<f64>, Vec<usize>) {
    let sums: Vec<f64> = scores
        .chunks(scores.len() / of.count)
        .map(|group| descending(group).iter().take(of.best).map(|&i| group[i]).sum())
        .collect();
    let mut chosen = descending(&sums);
    chosen.truncate(of.used);
    (sums, chosen)
}

/// The experts chosen, best first.
fn plain_choice(router: Router, gates: &[f32], bias: Option<&[f32]>) -> Vec<usize> {
    let scores = plain_scores(router.scoring, gates, bias);
    let allowed = |expert: usize| {
        router
            .groups
            .is_none_or(|of| plain_groups(of, &scores).1.contains(&(expert / (scores.len() / of.count))))
    };
    descending(&scores).into_iter().filter(|&expert| allowed(expert)).take(router.top_k).collect()
}

/// The weights of experts, whoever chose them.
fn plain_weights(router: Router, gates: &[f32], chosen: &[usize]) -> Vec<f64> {
    let raw: Vec<f64> = match router.scoring {
        Scoring::Chosen => {
            let gates: Vec<f32> = chosen.iter().map(|&e| gates[e]).collect();
            plain_scores(Scoring::Softmax, &gates, None)
        }
        scoring => {
            let scores = plain_scores(scoring, gates, None);
            chosen.iter().map(|&e| scores[e]).collect()
        }
    };
    let sum: f64 = raw.iter().sum();
    let by = if router.normalise { sum.max(LEAST_SUM.into()) } else { 1.0 };
    raw.iter().map(|w| w / by * router.scale as f64).collect()
}

fn scorings() -> impl Strategy<Value = Scoring> {
    prop_oneof![Just(Scoring::Softmax), Just(Scoring::Sigmoid), Just(Scoring::Chosen)]
}

/// Groups of experts, how many of them a token uses, and a router without a scoring.
fn routers() -> impl Strategy<Value = (Router, usize)> {
    (1usize..9, 1usize..17, 0.0f64..1.0, 0.0f64..1.0, 0usize..3, any::<bool>(), 0.5f32..3.0).prop_map(
        |(count, size, used, share, best, normalise, scale)| {
            let used = 1 + (used * count as f64) as usize % count;
            let groups = (best > 0).then_some(Groups { count, used, best: best.min(size) });
            let choice = if groups.is_some() { used * size } else { count * size };
            let top_k = 1 + (share * choice as f64) as usize % choice;
            (Router { top_k, groups, normalise, scale, ..ROUTER }, count * size)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Small whole numbers as gates and bias: ties everywhere, and no rounding.
    #[test]
    fn chooses_as_a_plain_router(
        (router, count) in routers(),
        seed in prop::collection::vec((-3i8..4, -2i8..3), 128),
        biased: bool,
    ) {
        let router = Router { scoring: Scoring::Chosen, ..router };
        let gates: Vec<f32> = seed[..count].iter().map(|s| s.0 as f32).collect();
        let bias: Vec<f32> = seed[..count].iter().map(|s| s.1 as f32).collect();
        let bias = biased.then_some(bias.as_slice());
        prop_assert!(router.fits(count));
        prop_assert_eq!(experts(&route(router, &gates, bias)), plain_choice(router, &gates, bias));
    }

    /// Any gates: no expert or group that was left out is better than one that was taken, but by rounding.
    #[test]
    fn weighs_as_a_plain_router(
        (router, count) in routers(),
        scoring in scorings(),
        gates in prop::collection::vec(-8.0f32..8.0, 128),
        bias in prop::collection::vec(-0.3f32..0.3, 128),
        biased: bool,
    ) {
        let router = Router { scoring, ..router };
        let (gates, bias) = (&gates[..count], biased.then_some(&bias[..count]));
        let routes = route(router, gates, bias);
        let chosen = experts(&routes);
        for (route, want) in routes.iter().zip(plain_weights(router, gates, &chosen)) {
            prop_assert!((route.weight as f64 - want).abs() <= 2e-6 * want, "{} for {want}", route.weight);
        }
        let scores = plain_scores(scoring, gates, bias);
        const ROUNDING: f64 = 2e-6;
        prop_assert!(chosen.windows(2).all(|pair| scores[pair[0]] >= scores[pair[1]] - ROUNDING));
        let size = router.groups.map_or(count, |of| count / of.count);
        let mut open: Vec<usize> = chosen.iter().map(|e| e / size).collect();
        if let Some(of) = router.groups {
            let (sums, _) = plain_groups(of, &scores);
            open.sort();
            open.dedup();
            prop_assert!(open.len() <= of.used);
            let least = sums[descending(&sums)[of.used - 1]];
            prop_assert!(open.iter().all(|&group| sums[group] >= least - ROUNDING));
        }
        let worst = scores[chosen[chosen.len() - 1]];
        for expert in (0..count).filter(|e| open.contains(&(e / size)) && !chosen.contains(e)) {
            prop_assert!(scores[expert] <= worst + ROUNDING);
        }
    }
}

#[test]
fn ties_go_to_the_lowest_index() {
    for scoring in [Scoring::Softmax, Scoring::Sigmoid, Scoring::Chosen] {
        let router = Router { top_k: 3, scoring, normalise: true, ..ROUTER };
        let routes = route(router, &[1.0; 8], None);
        assert_eq!(experts(&routes), [0, 1, 2]);
        assert!(routes.iter().all(|r| r.weight == routes[0].weight));
        assert_eq!(experts(&route(router, &[0.0, 2.0, 0.0, 2.0], None)), [1, 3, 0]);
    }
}

#[test]
fn ties_of_groups_go_to_the_lowest_index() {
    let groups = Some(Groups { count: 4, used: 2, best: 2 });
    let router = Router { top_k: 4, groups, ..ROUTER };
    assert_eq!(experts(&route(router, &[1.0; 8], None)), [0, 1, 2, 3]);
    // The last group wins, and the first of the three others.
    let gates = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0];
    assert_eq!(experts(&route(router, &gates, None)), [0, 6, 7, 1]);
}

#[test]
fn a_group_counts_by_its_best_expert_or_its_best_two() {
    let gates = [5.0, 0.0, 0.0, 4.0, 4.0, 0.0];
    let router = |best| Router { top_k: 1, groups: Some(Groups { count: 2, used: 1, best }), ..ROUTER };
    let scored = |best| Router { scoring: Scoring::Chosen, ..router(best) };
    assert_eq!(experts(&route(scored(1), &gates, None)), [0]);
    assert_eq!(experts(&route(scored(2), &gates, None)), [3]);
}

#[test]
fn all_experts_or_only_one() {
    let all = route(Router { top_k: 4, ..ROUTER }, &[0.5, -1.0, 3.0, 0.0], None);
    assert_eq!(experts(&all), [2, 0, 3, 1]);
    assert!((all.iter().map(|r| r.weight).sum::<f32>() - 1.0).abs() < 1e-6);
    for scoring in [Scoring::Softmax, Scoring::Chosen] {
        let one = route(Router { scoring, scale: 2.0, ..ROUTER }, &[-3.0], None);
        assert_eq!(one, [Route { expert: 0, weight: 2.0 }]);
    }
}

#[test]
fn a_bias_chooses_but_does_not_weigh() {
    let router = Router { scoring: Scoring::Sigmoid, ..ROUTER };
    let routes = route(router, &[0.0, 1.0], Some(&[1.0, 0.0]));
    assert_eq!(routes, [Route { expert: 0, weight: 0.5 }]);
}

#[test]
fn underflowed_gates_are_still_chosen() {
    let routes = route(Router { top_k: 3, normalise: true, ..ROUTER }, &[200.0, 0.0, -200.0], None);
    assert_eq!(experts(&routes), [0, 1, 2]);
    assert_eq!(routes[1].weight, 0.0);
    let router = Router { top_k: 2, scoring: Scoring::Sigmoid, normalise: true, ..ROUTER };
    let none = route(router, &[-200.0; 3], None);
    assert!(none.iter().all(|route| route.weight == 0.0), "{none:?}");
}

#[test]
fn gates_that_are_not_numbers_are_reported() {
    for scoring in [Scoring::Softmax, Scoring::Sigmoid, Scoring::Chosen] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let router = Router { scoring, ..ROUTER };
            assert_eq!(try_route(router, &[0.0, bad, 1.0], None), Err(NonFinite));
            assert_eq!(try_route(router, &[0.0; 3], Some(&[0.0, bad, 1.0])), Err(NonFinite));
        }
    }
}

#[test]
fn routers_that_cannot_choose_do_not_fit() {
    let grouped =
        |count, used, best| Router { top_k: 2, groups: Some(Groups { count, used, best }), ..ROUTER };
    assert!(grouped(2, 1, 2).fits(8));
    for (router, experts) in [
        (Router { top_k: 0, ..ROUTER }, 4),
        (Router { top_k: 5, ..ROUTER }, 4),
        (grouped(0, 1, 1), 8),
        (grouped(3, 1, 1), 8),
        (grouped(2, 0, 1), 8),
        (grouped(2, 3, 1), 8),
        (grouped(2, 1, 3), 8),
        (grouped(8, 8, 2), 8),
        // One group of one expert has not two to choose.
        (grouped(8, 1, 1), 8),
    ] {
        assert!(!router.fits(experts), "{router:?} of {experts}");
    }
}
