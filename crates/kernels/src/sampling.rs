//! Turns a row of logits into one token.
//!
//! The steps, in the order of llama.cpp's default chain:
//!
//! 1. logit bias, added;
//! 2. penalties for tokens seen in the window: a positive logit is divided by the repetition
//!    penalty, any other multiplied by it, then `count * frequency + presence` is taken off;
//! 3. temperature 0 or less: the highest logit wins, and nothing below happens;
//! 4. top-k: the k highest logits stay;
//! 5. top-p: of these the fewest highest whose share of the probability reaches p stay;
//! 6. min-p: of these the ones at least min-p times as likely as the likeliest stay;
//! 7. temperature, then the draw. Top-p and min-p look at the distribution before temperature.
//!
//! Ties go to the lower token everywhere. Probabilities are whole numbers: `exp(logit - highest)`
//! in units of 2^-40, cut off. Their sums are exact in any order, so the shortcuts below (no sorting
//! of whole vocabularies) take the very decisions that a full sort would, on every machine.
//! The random numbers are Philox4x32-10 (Salmon, Moraes, Dror and Shaw, 2011, "Parallel random
//! numbers: as easy as 1, 2, 3"), with the seed as key and the position as counter: a token depends
//! on the seed, its position and its logits alone, not on how many were drawn before.

use crate::exp::exp;
use std::cmp::Ordering;
use std::fmt;

/// The unit of probability: the likeliest token weighs 2^40. Rarer than 2^-40 of that weighs 0.
const ONE: f32 = (1u64 << 40) as f32;
/// `top_p` is held as a multiple of 2^-32.
const SHARE_BITS: u32 = 32;
/// Buckets for top-p, each an eighth wide: together they reach past exp(-27.7), the lightest weight.
const BUCKETS: usize = 256;
const BUCKETS_PER_UNIT: f32 = 8.0;
/// Sums of weights of this many tokens fit 64 bits with room to spare.
const MAX_VOCABULARY: usize = 1 << 22;
/// Room beside the k tokens kept so far, so that the top-k selection runs rarely.
const TOP_K_SLACK: usize = 64;

/// Logits that are looked at together for the highest.
const PART: usize = 1024;

/// How to choose a token.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerSettings {
    /// 0 or less: always the highest logit.
    pub temperature: f32,
    /// 0: off.
    pub top_k: u32,
    /// In 0..=1; 1: off.
    pub top_p: f32,
    /// In 0..=1; 0: off.
    pub min_p: f32,
    /// Above 0; 1: off.
    pub repetition_penalty: f32,
    /// 0: off.
    pub frequency_penalty: f32,
    /// 0: off.
    pub presence_penalty: f32,
    /// How many of the last tokens the penalties look at; -1: all of them.
    pub penalty_window: i32,
    pub seed: u64,
    /// Added to the logits; minus infinity bans a token.
    pub logit_bias: Vec<(u32, f32)>,
}

/// Why settings or logits were refused.
#[derive(Clone, Debug, PartialEq)]
pub enum SamplingError {
    /// A setting outside what it may be.
    InvalidSetting { name: &'static str, value: f32, expected: &'static str },
    /// A token that the vocabulary does not have.
    TokenOutOfRange { token: u32, vocab_size: usize },
    /// The logit of `token` is NaN or plus infinity, after bias and penalties.
    NonFinite { token: u32 },
    /// Every token's logit is minus infinity.
    AllBanned,
}

impl fmt::Display for SamplingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidSetting { name, value, expected } => {
                write!(f, "{name}: expected {expected}, got {value}")
            }
            Self::TokenOutOfRange { token, vocab_size } => {
                write!(f, "token {token} is outside the vocabulary of {vocab_size}")
            }
            Self::NonFinite { token } => {
                write!(f, "the logit of token {token} is not a finite number")
            }
            Self::AllBanned => write!(f, "every token is banned"),
        }
    }
}

impl std::error::Error for SamplingError {}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    logit: f32,
}

/// Higher logits first, of equal ones the lower token. Total, as NaN has been refused before.
fn rank(a: &Candidate, b: &Candidate) -> Ordering {
    let by_logit = b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal);
    by_logit.then(a.token.cmp(&b.token))
}

/// A weight `exp(x)` with `x <= 0`, in units of 2^-40.
fn weight(x: f32) -> u64 {
    // The scale is a power of two, so only the conversion rounds: towards zero.
    (exp(x) * ONE) as u64
}

/// The weight that the fewest likeliest tokens must reach together.
fn share(total: u64, top_p: f32) -> u64 {
    let p = (top_p * (1u64 << SHARE_BITS) as f32) as u64;
    ((u128::from(total) * u128::from(p)) >> SHARE_BITS) as u64
}

/// Chooses the tokens of one sequence. Holds the tokens so far, for the penalties, and memory that
/// is reused: a call allocates nothing once calls like it have been made.
#[derive(Clone, Debug)]
pub struct Sampler {
    settings: SamplerSettings,
    vocab_size: usize,
    history: Vec<u32>,
    /// How often each token occurs in the window; empty when there are no penalties.
    counts: Vec<u32>,
    /// The tokens whose count is not 0, in no particular order.
    seen: Vec<u32>,
    candidates: Vec<Candidate>,
    weights: Vec<u64>,
}

impl Sampler {
    /// A sampler that has accepted no token yet. Panics on a vocabulary of over four million.
    ///
    /// # Errors
    /// `InvalidSetting` and, for a biased token, `TokenOutOfRange`.
    pub fn new(settings: SamplerSettings, vocab_size: usize) -> Result<Self, SamplingError> {
        assert!(vocab_size <= MAX_VOCABULARY, "a vocabulary of {vocab_size} tokens");
        check(&settings, vocab_size)?;
        let penalties = settings.penalty_window != 0
            && (settings.repetition_penalty != 1.0
                || settings.frequency_penalty != 0.0
                || settings.presence_penalty != 0.0);
        let counted = if penalties { vocab_size } else { 0 };
        Ok(Self {
            settings,
            vocab_size,
            history: Vec::new(),
            counts: vec![0; counted],
            seen: Vec::with_capacity(counted),
            candidates: Vec::new(),
            weights: Vec::new(),
        })
    }

    /// Takes note of a token fed to the sequence, prompt included. Panics on a token outside the
    /// vocabulary.
    pub fn accept(&mut self, token: u32) {
        assert!((token as usize) < self.vocab_size, "token {token} is outside the vocabulary");
        self.history.push(token);
        self.count(token);
        if let Some(left) = self.window_edge(self.history.len()) {
            self.uncount(self.history[left]);
        }
    }

    /// How many tokens have been accepted.
    pub fn accepted(&self) -> usize {
        self.history.len()
    }

    /// Forgets all accepted tokens but the first `length`, as when a step is undone.
    pub fn truncate(&mut self, length: usize) {
        while self.history.len() > length {
            if let Some(left) = self.window_edge(self.history.len()) {
                self.count(self.history[left]);
            }
            if let Some(token) = self.history.pop() {
                self.uncount(token);
            }
        }
    }

    /// The place of the token that leaves the window when the history grows to `length`.
    fn window_edge(&self, length: usize) -> Option<usize> {
        let window = usize::try_from(self.settings.penalty_window).ok()?;
        length.checked_sub(window + 1)
    }

    fn count(&mut self, token: u32) {
        if let Some(count) = self.counts.get_mut(token as usize) {
            *count += 1;
            if *count == 1 {
                self.seen.push(token);
            }
        }
    }

    fn uncount(&mut self, token: u32) {
        if let Some(count) = self.counts.get_mut(token as usize) {
            *count -= 1;
            if *count == 0
                && let Some(place) = self.seen.iter().position(|&other| other == token)
            {
                self.seen.swap_remove(place);
            }
        }
    }

    /// Chooses the token for `position`, which numbers the tokens of the sequence. Bias and
    /// penalties are written into `logits` `[vocabulary]`. Panics on another length.
    ///
    /// # Errors
    /// `NonFinite` and `AllBanned`; the sampler is then as it was.
    pub fn sample(&mut self, logits: &mut [f32], position: u64) -> Result<u32, SamplingError> {
        assert_eq!(logits.len(), self.vocab_size, "logits for another vocabulary");
        self.adjust(logits);
        let best = highest(logits)?;
        if self.settings.temperature <= 0.0 || self.settings.top_k == 1 {
            return Ok(best.token);
        }
        self.select(logits, best.logit);
        Ok(self.draw(best.logit, position))
    }

    /// Logit bias, then penalties.
    fn adjust(&self, logits: &mut [f32]) {
        for &(token, bias) in &self.settings.logit_bias {
            logits[token as usize] += bias;
        }
        let SamplerSettings { repetition_penalty, frequency_penalty, presence_penalty, .. } = self.settings;
        for &token in &self.seen {
            let logit = &mut logits[token as usize];
            *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
            let count = self.counts[token as usize] as f32;
            *logit -= count * frequency_penalty + presence_penalty;
        }
    }

    /// Fills `candidates` with the tokens that top-k, top-p and min-p leave, in order of tokens.
    fn select(&mut self, logits: &[f32], highest: f32) {
        let SamplerSettings { top_k, top_p, min_p, .. } = self.settings;
        self.candidates.clear();
        if top_k > 0 && (top_k as usize) < logits.len() {
            take_top_k(logits, top_k as usize, &mut self.candidates);
            if top_p < 1.0 {
                keep_share(&mut self.candidates, highest, top_p);
            }
            self.candidates.sort_unstable_by_key(|candidate| candidate.token);
        } else if top_p < 1.0 {
            take_share(logits, highest, top_p, &mut self.candidates);
        } else {
            self.candidates.extend(allowed(logits));
        }
        if min_p > 0.0 {
            let least = (min_p * ONE) as u64;
            self.candidates.retain(|candidate| weight(candidate.logit - highest) >= least);
        }
    }

    /// Draws one of `candidates`, each as likely as its logit says at the set temperature.
    fn draw(&mut self, highest: f32, position: u64) -> u32 {
        let temperature = self.settings.temperature;
        let tempered = |candidate: &Candidate| weight((candidate.logit - highest) / temperature);
        self.weights.clear();
        self.weights.extend(self.candidates.iter().map(tempered));
        let total: u64 = self.weights.iter().sum();
        let mut left = ((u128::from(random(self.settings.seed, position)) * u128::from(total)) >> 64) as u64;
        for (candidate, &weight) in self.candidates.iter().zip(&self.weights) {
            if left < weight {
                return candidate.token;
            }
            left -= weight;
        }
        unreachable!("the number drawn is below the sum of the weights")
    }
}

fn check(settings: &SamplerSettings, vocab_size: usize) -> Result<(), SamplingError> {
    let range = |name, value: f32, holds: bool, expected| {
        if holds { Ok(()) } else { Err(SamplingError::InvalidSetting { name, value, expected }) }
    };
    let s = settings;
    range("temperature", s.temperature, s.temperature.is_finite(), "a finite number")?;
    range("top_p", s.top_p, (0.0..=1.0).contains(&s.top_p), "a number from 0 to 1")?;
    range("min_p", s.min_p, (0.0..=1.0).contains(&s.min_p), "a number from 0 to 1")?;
    let repetition = s.repetition_penalty;
    let positive = repetition.is_finite() && repetition > 0.0;
    range("repetition_penalty", repetition, positive, "a finite number above 0")?;
    for (name, value) in
        [("frequency_penalty", s.frequency_penalty), ("presence_penalty", s.presence_penalty)]
    {
        range(name, value, value.is_finite(), "a finite number")?;
    }
    let window = s.penalty_window;
    range("penalty_window", window as f32, window >= -1, "a count of tokens, or -1 for all")?;
    for &(token, bias) in &s.logit_bias {
        let holds = bias.is_finite() || bias == f32::NEG_INFINITY;
        range("logit_bias", bias, holds, "a finite number, or minus infinity to ban a token")?;
        if token as usize >= vocab_size {
            return Err(SamplingError::TokenOutOfRange { token, vocab_size });
        }
    }
    Ok(())
}

/// The tokens that are not banned, in order.
fn allowed(logits: &[f32]) -> impl Iterator<Item = Candidate> {
    let candidates = (0u32..).zip(logits).map(|(token, &logit)| Candidate { token, logit });
    candidates.filter(|candidate| candidate.logit != f32::NEG_INFINITY)
}

/// The first of the highest logits.
fn highest(logits: &[f32]) -> Result<Candidate, SamplingError> {
    // Neither a number under infinity nor minus infinity.
    let refused = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
    let mut best = f32::NEG_INFINITY;
    let mut from = None;
    for (part, start) in logits.chunks(PART).zip((0..).step_by(PART)) {
        let (most, refuse) = survey(part);
        if refuse && let Some(place) = part.iter().position(refused) {
            return Err(SamplingError::NonFinite { token: start + place as u32 });
        }
        if most > best {
            (best, from) = (most, Some((part, start)));
        }
    }
    let (part, start) = from.ok_or(SamplingError::AllBanned)?;
    let first = part.iter().position(|&other| other == best);
    first.map(|place| Candidate { token: start + place as u32, logit: best }).ok_or(SamplingError::AllBanned)
}

/// The highest logit, and whether any is NaN or plus infinity: 16 lanes without a branch, which the compiler keeps in registers.
fn survey(logits: &[f32]) -> (f32, bool) {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let mut refuse = [false; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
            refuse[i] |= !matches!(chunk[i].partial_cmp(&f32::INFINITY), Some(Ordering::Less));
        }
    }
    for &logit in rest {
        lanes[0] = if logit > lanes[0] { logit } else { lanes[0] };
        refuse[0] |= !matches!(logit.partial_cmp(&f32::INFINITY), Some(Ordering::Less));
    }
    (lanes.into_iter().fold(f32::NEG_INFINITY, f32::max), refuse.contains(&true))
}

/// The k candidates that rank first, in no particular order. Walks the logits once: `kept` grows to
/// a little over k, is cut to k, and from then on only what beats the last of these gets in.
fn take_top_k(logits: &[f32], k: usize, kept: &mut Vec<Candidate>) {
    let full = k + k.max(TOP_K_SLACK);
    let mut bar = f32::NEG_INFINITY;
    for (part, start) in logits.chunks(16).zip((0..).step_by(16)) {
        // Most parts have nothing over the bar, which takes no branch for each logit to see.
        if !part.iter().fold(false, |any, &logit| any | (logit > bar)) {
            continue;
        }
        for (token, &logit) in (start..).zip(part) {
            // An equal logit loses: its token is higher than those kept.
            if logit > bar {
                kept.push(Candidate { token, logit });
                if kept.len() == full {
                    cut(kept, k);
                    bar = kept[k - 1].logit;
                }
            }
        }
    }
    cut(kept, k);
}

/// Cuts to the k candidates that rank first, the last of these at the end.
fn cut(kept: &mut Vec<Candidate>, k: usize) {
    if kept.len() > k {
        kept.select_nth_unstable_by(k - 1, rank);
        kept.truncate(k);
    }
}

/// Top-p over few candidates: sorted, then cut.
fn keep_share(kept: &mut Vec<Candidate>, highest: f32, top_p: f32) {
    kept.sort_unstable_by(rank);
    let total = kept.iter().map(|candidate| weight(candidate.logit - highest)).sum();
    kept.truncate(share_length(kept, highest, share(total, top_p)));
}

/// How many of `sorted` it takes to reach `target`; at least one.
fn share_length(sorted: &[Candidate], highest: f32, target: u64) -> usize {
    let mut sum = 0;
    let reached = sorted.iter().position(|candidate| {
        sum += weight(candidate.logit - highest);
        sum >= target
    });
    reached.map_or(sorted.len(), |place| place + 1)
}

/// Top-p over a whole vocabulary. A histogram of the weights by distance from the highest logit
/// tells in which bucket the cut lies; only the tokens of that bucket are sorted.
fn take_share(logits: &[f32], highest: f32, top_p: f32, kept: &mut Vec<Candidate>) {
    // Rounding keeps order, so no token in a later bucket ranks before one in an earlier.
    let bucket = |logit: f32| (((highest - logit) * BUCKETS_PER_UNIT) as usize).min(BUCKETS - 1);
    let mut sums = [0u64; BUCKETS];
    for &logit in logits {
        sums[bucket(logit)] += weight(logit - highest);
    }
    let mut target = share(sums.iter().sum(), top_p);
    let mut edge = 0;
    while sums[edge] < target {
        target -= sums[edge];
        edge += 1;
    }
    kept.extend(allowed(logits).filter(|candidate| bucket(candidate.logit) == edge));
    kept.sort_unstable_by(rank);
    let last = kept[share_length(kept, highest, target) - 1];
    kept.clear();
    kept.extend(allowed(logits).filter(|candidate| rank(candidate, &last) != Ordering::Greater));
}

/// 64 random bits for one position.
pub fn random(seed: u64, position: u64) -> u64 {
    let [low, high, ..] =
        philox([position as u32, (position >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    u64::from(high) << 32 | u64::from(low)
}

/// Philox4x32 with 10 rounds: multipliers and key increments as published.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    let wide = |factor: u32, word: u32| {
        let product = u64::from(factor) * u64::from(word);
        ((product >> 32) as u32, product as u32)
    };
    for _ in 0..10 {
        let (high_0, low_0) = wide(0xD251_1F53, counter[0]);
        let (high_1, low_1) = wide(0xCD9E_8D57, counter[2]);
        counter = [high_1 ^ counter[1] ^ key[0], low_1, high_0 ^ counter[3] ^ key[1], low_0];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}
