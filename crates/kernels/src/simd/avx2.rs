//! AVX2 with FMA and F16C: two ymm registers are the 16 lanes.

mod vnni;

use super::ahead::{Ahead, ask};
use super::values::{SIGNED_VECTORS, Values};
use super::{ActBlock, LANES, QK, Simd, Wish, Words, Work, each_group};
use std::arch::asm;
use std::arch::x86_64::*;

/// Proof that this CPU has AVX2, FMA and F16C, and where VNNI is set also AVX-VNNI.
#[derive(Clone, Copy)]
pub struct Avx2<const VNNI: bool> {
    ahead: Ahead,
}

impl<const VNNI: bool> Avx2<VNNI> {
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && (!VNNI || is_x86_feature_detected!("avxvnni"));
        has.then(|| Self { ahead: Ahead::chosen() })
    }
}

/// The sum of 16 bytes. Sums of differences are of unsigned ones: 128 is added to each.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn sum_i8(from: &[i8; LANES]) -> i32 {
    // SAFETY: reads `from` alone.
    let bytes = unsafe { _mm_loadu_si128(from.as_ptr().cast()) };
    let sums = _mm_sad_epu8(_mm_xor_si128(bytes, _mm_set1_epi8(-128)), _mm_setzero_si128());
    _mm_cvtsi128_si32(sums) + _mm_extract_epi32::<2>(sums) - 128 * LANES as i32
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

#[derive(Clone, Copy)]
pub struct F32x16(__m256, __m256);
#[derive(Clone, Copy)]
pub struct I32x16(__m256i, __m256i);

impl I32x16 {
    /// See [`Words::load_words`].
    #[inline(always)]
    fn load(from: &[u8], index: usize) -> Self {
        Self(EIGHTS[0].load_words(from, index), EIGHTS[1].load_words(from, index))
    }
}

/// One of the two registers: eight rows.
#[derive(Clone, Copy)]
struct Eight {
    second: bool,
}

// SAFETY (every block below): the token proves the CPU features, and `Eight` is made only by its methods;
// every pointer comes from a reference to an array or a slice of exactly the bytes that are read or written.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Words for Eight {
    type I = __m256i;

    #[inline(always)]
    fn load_words(self, from: &[u8], index: usize) -> __m256i {
        unsafe { _mm256_loadu_si256(from[index * 64 + self.second as usize * 32..][..32].as_ptr().cast()) }
    }
    #[inline(always)]
    fn and_bits(self, v: __m256i, bits: u32) -> __m256i {
        unsafe { _mm256_and_si256(v, _mm256_set1_epi32(bits as i32)) }
    }
    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn shift_left(self, v: __m256i, by: usize) -> __m256i {
        unsafe { _mm256_sll_epi32(v, _mm_cvtsi32_si128(by as i32)) }
    }
    #[inline(always)]
    fn shift_right(self, v: __m256i, by: usize) -> __m256i {
        unsafe { _mm256_srl_epi32(v, _mm_cvtsi32_si128(by as i32)) }
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], v: __m256i) -> __m256i {
        unsafe { _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), v) }
    }
}

const EIGHTS: [Eight; 2] = [Eight { second: false }, Eight { second: true }];

impl<const VNNI: bool> Words for Avx2<VNNI> {
    type I = I32x16;

    #[inline(always)]
    fn load_words(self, from: &[u8], index: usize) -> I32x16 {
        I32x16::load(from, index)
    }
    #[inline(always)]
    fn and_bits(self, v: I32x16, bits: u32) -> I32x16 {
        I32x16(EIGHTS[0].and_bits(v.0, bits), EIGHTS[1].and_bits(v.1, bits))
    }
    #[inline(always)]
    fn or(self, a: I32x16, b: I32x16) -> I32x16 {
        I32x16(EIGHTS[0].or(a.0, b.0), EIGHTS[1].or(a.1, b.1))
    }
    #[inline(always)]
    fn shift_left(self, v: I32x16, by: usize) -> I32x16 {
        I32x16(EIGHTS[0].shift_left(v.0, by), EIGHTS[1].shift_left(v.1, by))
    }
    #[inline(always)]
    fn shift_right(self, v: I32x16, by: usize) -> I32x16 {
        I32x16(EIGHTS[0].shift_right(v.0, by), EIGHTS[1].shift_right(v.1, by))
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], v: I32x16) -> I32x16 {
        I32x16(EIGHTS[0].lookup(table, v.0), EIGHTS[1].lookup(table, v.1))
    }
}

// SAFETY (every block below): as above.
#[allow(clippy::undocumented_unsafe_blocks, clippy::needless_range_loop)]
impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type F = F32x16;
    const COLUMNS: usize = 4;
    const TILES: usize = 1;
    #[inline(always)]
    fn unpacks<V: Values>() -> bool {
        true
    }
    const LEAST_COLUMNS: usize = 72;
    const ASKS_NEXT: bool = true;
    const SPLITS: bool = !VNNI;
    const CHOOSES: bool = true;
    const MAGNITUDES: bool = true;
    /// The highest, and what turns them into the lowest: to blend bytes takes Intel's CPUs three steps, to take up some
    /// bytes of a difference two.
    #[inline(always)]
    fn pages(self, low: I32x16, high: I32x16) -> [I32x16; 2] {
        unsafe {
            let (turn, all) = (_mm256_set1_epi8(-0x80), _mm256_set1_epi8(-1));
            let lowest = |low, high| _mm256_xor_si256(_mm256_xor_si256(low, high), all);
            [
                I32x16(_mm256_xor_si256(high.0, turn), _mm256_xor_si256(high.1, turn)),
                I32x16(lowest(low.0, high.0), lowest(low.1, high.1)),
            ]
        }
    }
    #[inline(always)]
    fn add_wish(self, sum: I32x16, [highest, other]: [I32x16; 2], wish: &Wish) -> I32x16 {
        unsafe {
            let four = |bytes| _mm256_set1_epi32(i32::from_le_bytes(bytes));
            let (magnitudes, lowest) = (four(wish.magnitudes), four(wish.lowest));
            let choose = |high, other| _mm256_xor_si256(high, _mm256_and_si256(other, lowest));
            let chosen = I32x16(choose(highest.0, other.0), choose(highest.1, other.1));
            if VNNI {
                return vnni::add_quads(sum, magnitudes, chosen);
            }
            self.add_sevens(sum, I32x16(magnitudes, magnitudes), chosen)
        }
    }
    #[inline(always)]
    fn split<V: Values>(self, packed: &[u8], to: &mut [[f32; LANES]; SIGNED_VECTORS]) {
        let (low, high) = (split::<V>(EIGHTS[0], packed), split::<V>(EIGHTS[1], packed));
        for i in 0..SIGNED_VECTORS {
            self.store(self.float_bits(I32x16(low[i], high[i])), &mut to[i]);
        }
    }
    const QUERIES: usize = 4;

    #[inline(always)]
    fn call<W: Work<Self>>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
        #[inline(never)]
        fn entry_vnni<S, W: Work<S>>(s: S, work: W) -> W::Output {
            work.run(s)
        }
        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline(never)]
        fn entry<S, W: Work<S>>(s: S, work: W) -> W::Output {
            work.run(s)
        }
        if const { VNNI } { unsafe { entry_vnni(self, work) } } else { unsafe { entry(self, work) } }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> F32x16 {
        let v = unsafe { _mm256_set1_ps(x) };
        F32x16(v, v)
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F32x16 {
        unsafe { F32x16(_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))) }
    }
    #[inline(always)]
    fn store(self, v: F32x16, to: &mut [f32; LANES]) {
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), v.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v.1);
        }
    }
    #[inline(always)]
    fn add(self, a: F32x16, b: F32x16) -> F32x16 {
        unsafe { F32x16(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn sub(self, a: F32x16, b: F32x16) -> F32x16 {
        unsafe { F32x16(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn mul(self, a: F32x16, b: F32x16) -> F32x16 {
        unsafe { F32x16(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn div(self, a: F32x16, b: F32x16) -> F32x16 {
        unsafe { F32x16(_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn max(self, a: F32x16, b: F32x16) -> F32x16 {
        unsafe { F32x16(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn min(self, a: F32x16, b: F32x16) -> F32x16 {
        unsafe { F32x16(_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn abs(self, a: F32x16) -> F32x16 {
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            F32x16(_mm256_andnot_ps(sign, a.0), _mm256_andnot_ps(sign, a.1))
        }
    }
    #[inline(always)]
    fn mul_add_exact(self, a: F32x16, b: F32x16, c: F32x16) -> F32x16 {
        unsafe { F32x16(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }
    #[inline(always)]
    fn round(self, x: F32x16) -> F32x16 {
        unsafe { F32x16(_mm256_round_ps::<NEAREST>(x.0), _mm256_round_ps::<NEAREST>(x.1)) }
    }
    #[inline(always)]
    fn pow2(self, n: F32x16) -> F32x16 {
        F32x16(pow2(n.0), pow2(n.1))
    }
    #[inline(always)]
    fn max_lane(self, v: F32x16) -> f32 {
        unsafe {
            let eight = _mm256_max_ps(v.0, v.1);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn select_less(self, a: F32x16, b: F32x16, yes: F32x16, no: F32x16) -> F32x16 {
        unsafe {
            F32x16(
                _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0)),
                _mm256_blendv_ps(no.1, yes.1, _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1)),
            )
        }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> F32x16 {
        unsafe {
            let p: *const __m128i = from.as_ptr().cast();
            F32x16(_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p.add(1))))
        }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> F32x16 {
        unsafe {
            let p: *const __m128i = from.as_ptr().cast();
            F32x16(widen_bf16(_mm_loadu_si128(p)), widen_bf16(_mm_loadu_si128(p.add(1))))
        }
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> F32x16 {
        unsafe {
            let v = _mm_loadu_si128(from.as_ptr().cast());
            let (low, high) = (_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(v, v)));
            F32x16(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }
    #[inline(always)]
    fn store_f16(self, v: F32x16, to: &mut [u16; LANES]) {
        unsafe {
            let p: *mut __m128i = to.as_mut_ptr().cast();
            _mm_storeu_si128(p, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.0));
            _mm_storeu_si128(p.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.1));
        }
    }
    #[inline(always)]
    fn store_i8(self, v: F32x16, to: &mut [i8; LANES]) {
        unsafe {
            // The packs work within 128-bit halves: the permutation puts the lanes in order.
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.0), _mm256_cvtps_epi32(v.1));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        }
    }
    #[inline(always)]
    fn sum_i8(self, from: &[i8; LANES]) -> i32 {
        unsafe { sum_i8(from) }
    }
    #[inline(always)]
    fn prefetch<T: ?Sized>(self, item: &T) {
        self.ahead.ask(item);
    }
    #[inline(always)]
    fn prefetch_few<T: ?Sized>(self, item: &T, next: usize) {
        self.ahead.ask_few(item, next);
    }
    #[inline(always)]
    fn prefetch_next<T: ?Sized>(self, item: &T, next: usize) {
        ask::<_MM_HINT_T1, T>(item, next);
    }
    #[inline(always)]
    fn prefetch_write<T>(self, address: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(address.cast()) }
    }
    #[inline(always)]
    fn int_to_float(self, v: I32x16) -> F32x16 {
        unsafe { F32x16(_mm256_cvtepi32_ps(v.0), _mm256_cvtepi32_ps(v.1)) }
    }
    #[inline(always)]
    fn splat_int(self, n: i32) -> I32x16 {
        let v = unsafe { _mm256_set1_epi32(n) };
        I32x16(v, v)
    }
    #[inline(always)]
    fn add_ints(self, a: I32x16, b: I32x16) -> I32x16 {
        unsafe { I32x16(_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1)) }
    }

    #[inline(always)]
    fn float_bits(self, v: I32x16) -> F32x16 {
        unsafe { F32x16(_mm256_castsi256_ps(v.0), _mm256_castsi256_ps(v.1)) }
    }
    #[inline(always)]
    fn int_bits(self, v: F32x16) -> I32x16 {
        unsafe { I32x16(_mm256_castps_si256(v.0), _mm256_castps_si256(v.1)) }
    }
    /// Two products of at most 127 * 128 fit into 16 bits.
    #[inline(always)]
    fn add_sevens(self, sum: I32x16, bytes: I32x16, values: I32x16) -> I32x16 {
        let pairs = unsafe {
            I32x16(_mm256_maddubs_epi16(bytes.0, values.0), _mm256_maddubs_epi16(bytes.1, values.1))
        };
        self.add_ints(sum, multiplied(pairs, self.pairs(1)))
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> I32x16 {
        unsafe {
            let v = _mm_loadu_si128(from.as_ptr().cast());
            I32x16(_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(v, v)))
        }
    }
    #[inline(always)]
    fn load_u16(self, from: &[u16; LANES]) -> I32x16 {
        unsafe {
            let p: *const __m128i = from.as_ptr().cast();
            let (low, high) = (_mm_loadu_si128(p), _mm_loadu_si128(p.add(1)));
            I32x16(_mm256_cvtepu16_epi32(low), _mm256_cvtepu16_epi32(high))
        }
    }
    #[inline(always)]
    fn load_pairs(self, from: &[u8; LANES * 2]) -> I32x16 {
        unsafe {
            let p: *const __m128i = from.as_ptr().cast();
            let (low, high) = (_mm_loadu_si128(p), _mm_loadu_si128(p.add(1)));
            I32x16(_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high))
        }
    }
    #[inline(always)]
    fn pairs(self, n: i16) -> I32x16 {
        let v = unsafe { _mm256_set1_epi16(n) };
        I32x16(v, v)
    }
    #[inline(always)]
    fn add_to_pairs(self, v: I32x16, n: i16) -> I32x16 {
        unsafe {
            let n = _mm256_set1_epi16(n);
            I32x16(_mm256_add_epi16(v.0, n), _mm256_add_epi16(v.1, n))
        }
    }
    #[inline(always)]
    fn add_pair_dot(self, sum: I32x16, numbers: &[i16; 2], pairs: I32x16) -> I32x16 {
        let numbers = splat_pair(numbers);
        self.add_ints(sum, multiplied(I32x16(numbers, numbers), pairs))
    }

    #[inline(always)]
    fn dot<V: Values, const R: usize, const C: usize>(
        self,
        w: [&[u8]; R],
        x: [&ActBlock; C],
    ) -> [[I32x16; C]; R] {
        let mut sums = [[self.splat_int(0); C]; R];
        for r in 0..R {
            if const { VNNI } {
                sums[r] = unsafe { vnni::dot::<V, C>(w[r], x) };
            } else if V::SIGNED {
                sums[r] = [self.load_words(w[r], SIGNED_VECTORS - 1); C];
                add_signed(&mut sums[r], w[r], self.pairs(1), x);
            } else {
                add_dots::<V, 8, C>(&mut sums[r], w[r], self.pairs(1), x);
            }
        }
        sums
    }

    #[inline(always)]
    fn add_dots<V: Values, const R: usize, const C: usize>(
        self,
        sums: &mut [[I32x16; C]; R],
        w: [&[u8]; R],
        scales: [I32x16; R],
        x: [&ActBlock; C],
    ) {
        for r in 0..R {
            if const { VNNI } {
                unsafe { vnni::add_dots::<V, C>(&mut sums[r], w[r], scales[r], x) };
                continue;
            }
            let pairs = I32x16(halve::<0>(scales[r].0), halve::<0>(scales[r].1));
            if V::SIGNED {
                let short = self.load_words(w[r], SIGNED_VECTORS - 1);
                for c in 0..C {
                    sums[r][c] = self.add_ints(sums[r][c], multiplied(short, pairs));
                }
                add_signed(&mut sums[r], w[r], pairs, x);
            } else {
                add_dots::<V, 8, C>(&mut sums[r], w[r], pairs, x);
            }
        }
    }
    #[inline(always)]
    fn add_dot_halves<V: Values, const R: usize, const C: usize>(
        self,
        sums: &mut [[I32x16; C]; R],
        w: [&[u8]; R],
        scales: [I32x16; R],
        x: [&ActBlock; C],
    ) {
        for r in 0..R {
            // Two bits: a half's sums fit into 16 bits, and are multiplied by the scale once.
            if const { VNNI && V::MAX > 3 } {
                unsafe { vnni::add_dot_halves::<V, C>(&mut sums[r], w[r], scales[r], x) };
            } else {
                add_dots::<V, 4, C>(&mut sums[r], w[r], scales[r], x);
            }
        }
    }
}

/// Adds the dot products of a tile's rows, of the two halves times the pairs of `scales`. vpmaddubsw adds two
/// products in 16 bits, in which further groups are added, up to `GROUPS`, while the sums fit; then vpmaddwd widens
/// them and multiplies by the scale at once. Two registers share a broadcast activation: those of all rows, or for
/// bytes over 127, whose products do not fit even twice, the nibbles of eight. (Many columns: see [`add_signed`].)
#[inline(always)]
fn add_dots<V: Values, const GROUPS: usize, const C: usize>(
    sums: &mut [I32x16; C],
    w: &[u8],
    scales: I32x16,
    x: [&ActBlock; C],
) {
    // SAFETY: called only from methods of the token.
    unsafe {
        if V::OFFSET != 0 {
            let offset = _mm256_set1_epi16(V::OFFSET as i16);
            let (low, high) = (_mm256_mullo_epi16(scales.0, offset), _mm256_mullo_epi16(scales.1, offset));
            for c in 0..C {
                let halves = splat_pair(&x[c].minus_halves);
                sums[c].0 = _mm256_add_epi32(sums[c].0, _mm256_madd_epi16(halves, low));
                sums[c].1 = _mm256_add_epi32(sums[c].1, _mm256_madd_epi16(halves, high));
            }
        }
        if V::MAX > 127 {
            add_nibbles::<V, GROUPS, C, false>(sums, w, scales.0, x);
            add_nibbles::<V, GROUPS, C, true>(sums, w, scales.1, x);
            return;
        }
        let span = const { span(i16::MAX as i32 / (2 * 127 * V::MAX), GROUPS) };
        let scales = [by_half::<GROUPS>(scales.0), by_half::<GROUPS>(scales.1)];
        let mut pairs = [[_mm256_setzero_si256(); 2]; C];
        each_group!(group in [0 1 2 3 4 5 6 7] {
            let rows = [V::group(EIGHTS[0], w, group), V::group(EIGHTS[1], w, group)];
            add_pairs(&mut pairs, rows, x, group, group.is_multiple_of(span));
            if group % span == span - 1 {
                for c in 0..C {
                    let [low, high] = pairs[c];
                    sums[c].0 = _mm256_add_epi32(sums[c].0, _mm256_madd_epi16(low, scales[0][group / 4]));
                    sums[c].1 = _mm256_add_epi32(sums[c].1, _mm256_madd_epi16(high, scales[1][group / 4]));
                }
            }
        });
    }
}

/// The same of whole bytes, of eight rows.
#[inline(always)]
fn add_nibbles<V: Values, const GROUPS: usize, const C: usize, const SECOND: bool>(
    sums: &mut [I32x16; C],
    w: &[u8],
    scales: __m256i,
    x: [&ActBlock; C],
) {
    let eight = Eight { second: SECOND };
    // SAFETY: called only from methods of the token.
    unsafe {
        let upper = by_half::<GROUPS>(_mm256_slli_epi16::<4>(scales));
        let lower = by_half::<GROUPS>(scales);
        let mut pairs = [[_mm256_setzero_si256(); 2]; C];
        each_group!(group in [0 1 2 3 4 5 6 7] {
            let bytes = V::group(eight, w, group);
            let nibbles = [
                eight.and_bits(bytes, 0x0f0f_0f0f),
                eight.and_bits(_mm256_srli_epi16::<4>(bytes), 0x0f0f_0f0f),
            ];
            add_pairs(&mut pairs, nibbles, x, group, group.is_multiple_of(GROUPS));
            if group % GROUPS == GROUPS - 1 {
                for c in 0..C {
                    let [low, high] = pairs[c];
                    let low = _mm256_madd_epi16(low, lower[group / 4]);
                    let high = _mm256_madd_epi16(high, upper[group / 4]);
                    let sum = if SECOND { &mut sums[c].1 } else { &mut sums[c].0 };
                    *sum = _mm256_add_epi32(*sum, _mm256_add_epi32(low, high));
                }
            }
        });
    }
}

/// Magnitudes of at most 128 of eight rows' whole bytes, and all bits set where they are negative. What products of
/// these with -1 - x for x are short of is in the last vector.
#[inline(always)]
fn split<V: Values>(eight: Eight, packed: &[u8]) -> [__m256i; SIGNED_VECTORS] {
    // SAFETY: called only from methods of the token.
    unsafe {
        let zero = _mm256_setzero_si256();
        let mut vectors = [zero; SIGNED_VECTORS];
        let mut short = zero;
        for group in 0..QK / 4 {
            let bytes = V::group(eight, packed, group);
            let bytes = _mm256_sub_epi8(bytes, _mm256_set1_epi8(V::OFFSET as u8 as i8));
            let (magnitudes, signs) = (_mm256_abs_epi8(bytes), _mm256_cmpgt_epi8(zero, bytes));
            [vectors[group * 2], vectors[group * 2 + 1]] = [magnitudes, signs];
            short = _mm256_sub_epi16(short, _mm256_maddubs_epi16(magnitudes, signs));
        }
        vectors[SIGNED_VECTORS - 1] = _mm256_madd_epi16(short, _mm256_set1_epi16(1));
        vectors
    }
}

/// Adds the dot products of magnitudes and signs times the pairs of `scales`. Bits flipped where signs are set make
/// -1 - x of x, and two products of at most 128 * 128 fit into 16 bits.
#[inline(always)]
fn add_signed<const C: usize>(sums: &mut [I32x16; C], w: &[u8], scales: I32x16, x: [&ActBlock; C]) {
    // SAFETY: called only from methods of the token.
    unsafe {
        each_group!(group in [0 1 2 3 4 5 6 7] {
            let (magnitudes, signs) = (I32x16::load(w, group * 2), I32x16::load(w, group * 2 + 1));
            for c in 0..C {
                let v = broadcast(x[c], group);
                let low = _mm256_maddubs_epi16(magnitudes.0, _mm256_xor_si256(v, signs.0));
                sums[c].0 = held(_mm256_add_epi32(sums[c].0, _mm256_madd_epi16(low, scales.0)));
                let high = _mm256_maddubs_epi16(magnitudes.1, _mm256_xor_si256(v, signs.1));
                sums[c].1 = held(_mm256_add_epi32(sums[c].1, _mm256_madd_epi16(high, scales.1)));
            }
        });
    }
}

/// A sum. The empty asm makes it a fence: else compilers put off products until registers run out.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn held(mut sum: __m256i) -> __m256i {
    // SAFETY: it has no instructions.
    unsafe { asm!("/* {0} */", inout(ymm_reg) sum, options(nomem, nostack, preserves_flags)) };
    sum
}

/// Adds two vectors' products with a group of each column in 16 bits, or starts with them.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_pairs<const C: usize>(
    pairs: &mut [[__m256i; 2]; C],
    rows: [__m256i; 2],
    x: [&ActBlock; C],
    group: usize,
    start: bool,
) {
    for c in 0..C {
        let v = broadcast(x[c], group);
        for i in 0..2 {
            let products = _mm256_maddubs_epi16(rows[i], v);
            pairs[c][i] = if start { products } else { _mm256_add_epi16(pairs[c][i], products) };
        }
    }
    for sum in pairs.as_flattened_mut() {
        *sum = held(*sum);
    }
}

/// Scales for the two halves of a block, whose pairs belong to one half each or to both.
#[inline(always)]
fn by_half<const GROUPS: usize>(scales: __m256i) -> [__m256i; 2] {
    if GROUPS == 8 { [scales; 2] } else { [halve::<0>(scales), halve::<2>(scales)] }
}

/// The largest power of two of groups that fit.
const fn span(fit: i32, most: usize) -> usize {
    let mut span = most;
    while span as i32 > fit {
        span /= 2;
    }
    span
}

/// The 16 bits of every word that start at byte FIRST, twice.
#[inline(always)]
fn halve<const FIRST: u8>(pairs: __m256i) -> __m256i {
    let mut bytes = [0; 32];
    let mut i = 0;
    while i < 32 {
        bytes[i as usize] = i % 16 / 4 * 4 + FIRST + i % 2;
        i += 1;
    }
    // SAFETY: called only from methods of the token; the load covers the array.
    unsafe { _mm256_shuffle_epi8(pairs, _mm256_loadu_si256(bytes.as_ptr().cast())) }
}

/// Pairs times pairs of 16-bit numbers, the two products added.
#[inline(always)]
fn multiplied(a: I32x16, b: I32x16) -> I32x16 {
    // SAFETY: called only from methods of the token.
    unsafe { I32x16(_mm256_madd_epi16(a.0, b.0), _mm256_madd_epi16(a.1, b.1)) }
}

/// Two numbers in every lane.
#[inline(always)]
fn splat_pair(&[first, second]: &[i16; 2]) -> __m256i {
    // SAFETY: called only from methods of the token.
    unsafe { _mm256_set1_epi32(first as u16 as i32 | (second as i32) << 16) }
}

/// Values 4 * group .. 4 * group + 4 in every lane.
#[inline(always)]
fn broadcast(x: &ActBlock, group: usize) -> __m256i {
    let v = &x.values;
    let i = group * 4;
    let four = i32::from_le_bytes([v[i] as u8, v[i + 1] as u8, v[i + 2] as u8, v[i + 3] as u8]);
    // SAFETY: called only from methods of the token.
    unsafe { _mm256_set1_epi32(four) }
}

#[inline(always)]
fn widen_bf16(v: __m128i) -> __m256 {
    // SAFETY: called only from methods of the token.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(v))) }
}

#[inline(always)]
fn pow2(n: __m256) -> __m256 {
    // SAFETY: called only from methods of the token.
    unsafe {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
}
