//! Weights into the block formats of model files: floats in, the bytes of a file out, and how far
//! apart the two are.
//!
//! Each format is described by how its bytes are read, so there are many ways to write them. What
//! is written here minimises a squared error: scales (and, where a format has them, minimums) come
//! from a search over starting points, each followed by a least-squares fit. All arithmetic is
//! binary32 additions, multiplications, divisions and square roots in a fixed order, so every
//! machine writes the same bits.

mod fit;
mod k_blocks;

use crate::float16::{bf16_to_f32, f16_to_f32, f32_to_f16};
use fit::{Levels, covering16, fit_scale, nearest, quantised, scale16};

/// Elements that are treated at a time: a multiple of every format's block.
pub const GROUP: usize = 256;

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    F32,
    F16,
    BF16,
}

/// What is written. The names are those of the format.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_K,
    Q6_K,
}

impl Source {
    pub fn parse(name: &str) -> Option<Self> {
        [Self::F32, Self::F16, Self::BF16].into_iter().find(|source| format!("{source:?}") == name)
    }

    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
}

impl Target {
    pub const ALL: [Self; 7] =
        [Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q4_0, Self::Q4_K, Self::Q6_K];

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| format!("{target:?}") == name)
    }

    /// Elements and bytes of one block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q4_K => (256, 144),
            Self::Q6_K => (256, 210),
        }
    }

    /// The bytes that `elements`, a multiple of the block, take.
    pub fn bytes(self, elements: usize) -> usize {
        let (block, bytes) = self.block();
        elements / block * bytes
    }

    /// The largest magnitude that the format can hold: its scales are F16, up to 65,504.
    pub fn reach(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::F16 => MAX_F16,
            // What is larger rounds to infinity.
            Self::BF16 => f32::from_bits(0x7f7f_7fff),
            Self::Q8_0 => 127.0 * MAX_F16,
            Self::Q4_0 => 8.0 * MAX_F16,
            // A negative value is at most the minimum, a 6-bit multiple of a scale.
            Self::Q4_K => 63.0 * MAX_F16,
            Self::Q6_K => 31.0 * 127.0 * MAX_F16,
        }
    }
}

const MAX_F16: f32 = 65_504.0;

/// A value that cannot be written, by its place among the elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// NaN or an infinity.
    NonFinite { element: usize },
    /// Larger than the format can hold.
    TooLarge { element: usize, value: f32 },
}

/// How far what was written is from what was read: sums over the elements.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Deviation {
    /// Of the squares of the values.
    pub squares: f64,
    /// Of the squares of the differences.
    pub errors: f64,
}

impl Deviation {
    pub fn add(&mut self, other: Self) {
        self.squares += other.squares;
        self.errors += other.errors;
    }
}

/// Converts whole blocks of values, little-endian as in files.
///
/// # Panics
/// Unless `input` and `output` hold the same number of elements and that is a multiple of the block.
pub fn quantize(source: Source, target: Target, input: &[u8], output: &mut [u8]) -> Result<Deviation, Fault> {
    let elements = input.len() / source.bytes();
    assert_eq!(input.len() % source.bytes(), 0, "half a value");
    assert_eq!(elements % target.block().0, 0, "half a block");
    assert_eq!(output.len(), target.bytes(elements), "the output's length");
    let mut sums = Deviation::default();
    let (mut values, mut back) = ([0.0; GROUP], [0.0; GROUP]);
    let groups = input.chunks(GROUP * source.bytes()).zip(output.chunks_mut(target.bytes(GROUP)));
    for (group, (from, to)) in groups.enumerate() {
        let n = from.len() / source.bytes();
        let (values, back) = (&mut values[..n], &mut back[..n]);
        read(source, from, values);
        check(target, values, group * GROUP)?;
        encode(target, values, to);
        decode(target, to, back);
        for (&x, &y) in values.iter().zip(back.iter()) {
            let (x, difference) = (x as f64, x as f64 - y as f64);
            sums.add(Deviation { squares: x * x, errors: difference * difference });
        }
    }
    Ok(sums)
}

fn read(source: Source, from: &[u8], to: &mut [f32]) {
    match source {
        Source::F32 => decode(Target::F32, from, to),
        Source::F16 => decode(Target::F16, from, to),
        Source::BF16 => decode(Target::BF16, from, to),
    }
}

fn check(target: Target, values: &[f32], start: usize) -> Result<(), Fault> {
    let reach = target.reach();
    let Some(i) = values.iter().position(|x| x.is_nan() || x.abs() > reach) else { return Ok(()) };
    let (element, value) = (start + i, values[i]);
    Err(if value.is_finite() { Fault::TooLarge { element, value } } else { Fault::NonFinite { element } })
}

/// Writes blocks. The values are finite and within the format's reach.
fn encode(target: Target, values: &[f32], to: &mut [u8]) {
    let (block, bytes) = target.block();
    for (values, to) in values.chunks_exact(block).zip(to.chunks_exact_mut(bytes)) {
        match target {
            Target::F32 => to.copy_from_slice(&values[0].to_le_bytes()),
            Target::F16 => to.copy_from_slice(&f32_to_f16(values[0]).to_le_bytes()),
            Target::BF16 => to.copy_from_slice(&bf16_bits(values[0]).to_le_bytes()),
            Target::Q8_0 => encode_q8_0(values, to),
            Target::Q4_0 => encode_q4_0(values.try_into().expect("a block"), to),
            Target::Q4_K => k_blocks::encode_q4_k(values, to),
            Target::Q6_K => k_blocks::encode_q6_k(values, to),
        }
    }
}

/// Reads blocks as their definition says.
pub fn decode(target: Target, from: &[u8], values: &mut [f32]) {
    let (block, bytes) = target.block();
    for (from, values) in from.chunks_exact(bytes).zip(values.chunks_exact_mut(block)) {
        match target {
            Target::F32 => values[0] = f32::from_le_bytes([from[0], from[1], from[2], from[3]]),
            Target::F16 => values[0] = half(from),
            Target::BF16 => values[0] = bf16_to_f32(u16::from_le_bytes([from[0], from[1]])),
            Target::Q8_0 => {
                for (x, &q) in values.iter_mut().zip(&from[2..]) {
                    *x = half(from) * (q as i8) as f32;
                }
            }
            Target::Q4_0 => {
                for (i, &pair) in from[2..].iter().enumerate() {
                    values[i] = half(from) * ((pair & 15) as f32 - 8.0);
                    values[i + 16] = half(from) * ((pair >> 4) as f32 - 8.0);
                }
            }
            Target::Q4_K => k_blocks::decode_q4_k(from, values),
            Target::Q6_K => k_blocks::decode_q6_k(from, values),
        }
    }
}

/// The F16 value at the start of some bytes.
fn half(bytes: &[u8]) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// To nearest, ties to even. Tiny values are kept: a file holds them, whatever a kernel makes of them.
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// The scale makes the largest magnitude 127.
fn encode_q8_0(values: &[f32], to: &mut [u8]) {
    let peak = values.iter().fold(0.0f32, |peak, x| peak.max(x.abs()));
    let d = covering16(peak / 127.0, 127.0);
    to[..2].copy_from_slice(&d.to_le_bytes());
    let scale = f16_to_f32(d);
    for (q, &x) in to[2..].iter_mut().zip(values) {
        let steps = if scale == 0.0 { 0.0 } else { x / scale };
        *q = nearest(steps.clamp(-127.0, 127.0)) as i8 as u8;
    }
}

const Q4: Levels = Levels { low: -8.0, high: 7.0 };
/// Where the search starts: the peak at these shares of the last level. Beyond 1 the peak is cut
/// off, which pays where it stands out.
const Q4_STARTS: [f32; 21] = [
    0.82, 0.85, 0.88, 0.91, 0.94, 0.96, 0.98, 1.0, 1.02, 1.04, 1.06, 1.08, 1.1, 1.12, 1.14, 1.16, 1.18, 1.2,
    1.23, 1.26, 1.3,
];

fn encode_q4_0(values: &[f32; 32], to: &mut [u8]) {
    let weights = [1.0; 32];
    let mut d = scale16(fit_scale(values, &weights, Q4, &Q4_STARTS).scale);
    let mut best = quantised(values, &weights, f16_to_f32(d), Q4);
    // Rounding the scale to F16 may have changed what is nearest.
    for _ in 0..2 {
        let next = scale16(best.scale);
        let found = quantised(values, &weights, f16_to_f32(next), Q4);
        if found.error >= best.error {
            break;
        }
        (d, best) = (next, found);
    }
    to[..2].copy_from_slice(&d.to_le_bytes());
    for i in 0..16 {
        let level = |q: f32| (q + 8.0) as u8;
        to[2 + i] = level(best.levels[i]) | level(best.levels[i + 16]) << 4;
    }
}
