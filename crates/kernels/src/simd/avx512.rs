//! AVX-512 with VNNI: one zmm register is the 16 lanes.

use super::ahead::{Ahead, ask};
use super::avx2::sum_i8;
use super::values::Values;
use super::{ActBlock, HALVES_OFFSET, LANES, Simd, Wish, Words, Work, each_group};
use std::arch::asm;
use std::arch::x86_64::*;

/// Proof that this CPU has AVX-512 F, BW, DQ, VL and VNNI, AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx512 {
    ahead: Ahead,
}

impl Avx512 {
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then(|| Self { ahead: Ahead::chosen() })
    }
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

// SAFETY (every block below): the token proves the CPU features; every pointer comes from a
// reference to an array or a slice of exactly the bytes that are read or written.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Words for Avx512 {
    type I = __m512i;

    #[inline(always)]
    fn load_words(self, from: &[u8], index: usize) -> __m512i {
        unsafe { _mm512_loadu_si512(from[index * 64..][..64].as_ptr().cast()) }
    }
    #[inline(always)]
    fn and_bits(self, v: __m512i, bits: u32) -> __m512i {
        unsafe { _mm512_and_si512(v, _mm512_set1_epi32(bits as i32)) }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn shift_left(self, v: __m512i, by: usize) -> __m512i {
        unsafe { _mm512_sll_epi32(v, _mm_cvtsi32_si128(by as i32)) }
    }
    #[inline(always)]
    fn shift_right(self, v: __m512i, by: usize) -> __m512i {
        unsafe { _mm512_srl_epi32(v, _mm_cvtsi32_si128(by as i32)) }
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], v: __m512i) -> __m512i {
        unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), v) }
    }
}

// SAFETY (every block below): as above.
#[allow(clippy::undocumented_unsafe_blocks, clippy::needless_range_loop)]
impl Simd for Avx512 {
    type F = __m512;
    const COLUMNS: usize = 6;
    const TILES: usize = 2;
    const QUERIES: usize = 8;
    const WIDENS: bool = false;
    const SUMS: usize = 16;
    const ASKS_NEXT: bool = true;
    const CHOOSES: bool = true;

    #[inline(always)]
    fn call<W: Work<Self>>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        #[inline(never)]
        fn entry<W: Work<Avx512>>(s: Avx512, work: W) -> W::Output {
            work.run(s)
        }
        unsafe { entry(self, work) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; LANES]) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    fn mul_add_exact(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn mul_each(self, a: __m512, x: &f32) -> __m512 {
        unsafe { mul_each(a, x) }
    }
    #[inline(always)]
    fn mul_each_add_exact(self, a: __m512, x: &f32, c: __m512) -> __m512 {
        unsafe { mul_each_add(a, x, c) }
    }
    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<NEAREST>(x) }
    }
    #[inline(always)]
    fn pow2(self, n: __m512) -> __m512 {
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn scale(self, y: __m512, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(y, n) }
    }
    #[inline(always)]
    fn max_lane(self, v: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    fn select_less(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(a, b), yes, no) }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn store_f16(self, v: __m512, to: &mut [u16; LANES]) {
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtps_ph::<NEAREST>(v)) }
    }
    #[inline(always)]
    fn store_i8(self, v: __m512, to: &mut [i8; LANES]) {
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))) }
    }
    #[inline(always)]
    fn sum_i8(self, from: &[i8; LANES]) -> i32 {
        unsafe { sum_i8(from) }
    }
    #[inline(always)]
    fn streams_pairs(self) -> bool {
        self.ahead.near
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
    fn int_to_float(self, v: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn splat_int(self, n: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(n) }
    }
    #[inline(always)]
    fn add_ints(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn float_bits(self, v: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(v) }
    }
    #[inline(always)]
    fn int_bits(self, v: __m512) -> __m512i {
        unsafe { _mm512_castps_si512(v) }
    }
    #[inline(always)]
    fn add_sevens(self, sum: __m512i, bytes: __m512i, values: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, bytes, values) }
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> __m512i {
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_u16(self, from: &[u16; LANES]) -> __m512i {
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_pairs(self, from: &[u8; LANES * 2]) -> __m512i {
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn pairs(self, n: i16) -> __m512i {
        unsafe { _mm512_set1_epi16(n) }
    }
    #[inline(always)]
    fn add_to_pairs(self, v: __m512i, n: i16) -> __m512i {
        unsafe { _mm512_add_epi16(v, _mm512_set1_epi16(n)) }
    }
    #[inline(always)]
    fn add_pair_dot(self, sum: __m512i, numbers: &[i16; 2], pairs: __m512i) -> __m512i {
        unsafe { _mm512_dpwssd_epi32(sum, pairs, splat_pair(numbers)) }
    }
    #[inline(always)]
    fn add_wish(self, sum: __m512i, [low, high]: [__m512i; 2], wish: &Wish) -> __m512i {
        let four = i32::from_le_bytes(wish.values.map(|value| value as u8));
        unsafe {
            let chosen = _mm512_mask_blend_epi8(wish.lowest_bits, high, low);
            _mm512_dpbusd_epi32(sum, chosen, _mm512_set1_epi32(four))
        }
    }

    // vpdpbusd multiplies unsigned by signed bytes: the stored offset makes weights unsigned, and
    // starting from -offset * sum(x) takes it out again.
    #[inline(always)]
    fn dot<V: Values, const R: usize, const C: usize>(
        self,
        w: [&[u8]; R],
        x: [&ActBlock; C],
    ) -> [[__m512i; C]; R] {
        unsafe {
            let mut acc = [[_mm512_setzero_si512(); C]; R];
            for c in 0..C {
                let start = start_of::<V>(x[c]);
                for r in 0..R {
                    acc[r][c] = start;
                }
            }
            each_group!(group in [0 4 1 5 2 6 3 7] {
                add_group::<V, R, C>(self, &mut acc, w, x, group);
            });
            acc
        }
    }
    #[inline(always)]
    fn add_dots<V: Values, const R: usize, const C: usize>(
        self,
        sums: &mut [[__m512i; C]; R],
        w: [&[u8]; R],
        scales: [__m512i; R],
        x: [&ActBlock; C],
    ) {
        let dots = self.dot::<V, R, C>(w, x);
        add_products(sums, dots, scales);
    }
    #[inline(always)]
    fn add_dot_halves<V: Values, const R: usize, const C: usize>(
        self,
        sums: &mut [[__m512i; C]; R],
        w: [&[u8]; R],
        scales: [__m512i; R],
        x: [&ActBlock; C],
    ) {
        let mut numbers = scales;
        unsafe {
            let mut acc = start_of_half::<V, false, R, C>(x);
            each_group!(group in [0 1 2 3] {
                add_group::<V, R, C>(self, &mut acc, w, x, group);
            });
            for r in 0..R {
                numbers[r] = _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(scales[r]));
            }
            add_products(sums, acc, numbers);
            let mut acc = start_of_half::<V, true, R, C>(x);
            each_group!(group in [4 5 6 7] {
                add_group::<V, R, C>(self, &mut acc, w, x, group);
            });
            for r in 0..R {
                numbers[r] = _mm512_srai_epi32::<16>(scales[r]);
            }
            add_products(sums, acc, numbers);
        }
    }
}

// Each instruction broadcasts from memory by itself. Compilers would broadcast once for two tiles, in registers; then
// conversions of F16 weights have to wait.
#[target_feature(enable = "avx512f")]
#[inline]
fn mul_each(a: __m512, x: &f32) -> __m512 {
    let product: __m512;
    // SAFETY: reads `x` alone.
    unsafe {
        asm!("vmulps {product}, {a}, dword ptr [{x}]{{1to16}}", product = lateout(zmm_reg) product,
            a = in(zmm_reg) a, x = in(reg) x, options(pure, readonly, nostack, preserves_flags));
    }
    product
}
#[target_feature(enable = "avx512f")]
#[inline]
fn mul_each_add(a: __m512, x: &f32, mut sum: __m512) -> __m512 {
    // SAFETY: as above.
    unsafe {
        asm!("vfmadd231ps {sum}, {a}, dword ptr [{x}]{{1to16}}", sum = inout(zmm_reg) sum,
            a = in(zmm_reg) a, x = in(reg) x, options(pure, readonly, nostack, preserves_flags));
    }
    sum
}

/// -offset times the sum of a column's values, from memory: most of what could compute it uses the units of dot products.
#[inline(always)]
fn start_of<V: Values>(x: &ActBlock) -> __m512i {
    // SAFETY: called only from methods of the token.
    unsafe {
        if const { (V::OFFSET as u32).is_power_of_two() } {
            let (start, times) = x.start_of::<V>();
            let by = times.trailing_zeros() as i32 - V::OFFSET.trailing_zeros() as i32;
            _mm512_sra_epi32(_mm512_set1_epi32(start), _mm_cvtsi32_si128(by))
        } else {
            _mm512_mullo_epi32(_mm512_set1_epi32(x.minus_sum()), _mm512_set1_epi32(V::OFFSET))
        }
    }
}

/// The same of each column's half.
#[inline(always)]
fn start_of_half<V: Values, const SECOND: bool, const R: usize, const C: usize>(
    x: [&ActBlock; C],
) -> [[__m512i; C]; R] {
    assert!(V::OFFSET == 0 || (V::OFFSET as u32).is_power_of_two() && V::OFFSET <= HALVES_OFFSET);
    // SAFETY: called only from methods of the token.
    unsafe {
        let mut acc = [[_mm512_setzero_si512(); C]; R];
        if const { V::OFFSET > 0 } {
            let by = _mm_cvtsi32_si128(
                const { HALVES_OFFSET.trailing_zeros() as i32 - V::OFFSET.trailing_zeros() as i32 },
            );
            for c in 0..C {
                let start = _mm512_sra_epi32(_mm512_set1_epi32(x[c].starts[SECOND as usize]), by);
                for acc in &mut acc {
                    acc[c] = start;
                }
            }
        }
        acc
    }
}

/// sums += dots * scales.
#[inline(always)]
fn add_products<const R: usize, const C: usize>(
    sums: &mut [[__m512i; C]; R],
    dots: [[__m512i; C]; R],
    scales: [__m512i; R],
) {
    for r in 0..R {
        for c in 0..C {
            // SAFETY: called only from methods of the token.
            sums[r][c] = unsafe { _mm512_add_epi32(sums[r][c], _mm512_mullo_epi32(dots[r][c], scales[r])) };
        }
    }
}

/// The empty asm makes the sums a fence. Else compilers put off one tile's products until the other's are done, and keep every
/// broadcast activation meanwhile, which no CPU has registers for; of one tile they put all products of a column after one
/// another, a chain of which a scheduler holds but a few.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline]
#[allow(clippy::needless_range_loop)]
fn add_group<V: Values, const R: usize, const C: usize>(
    s: Avx512,
    acc: &mut [[__m512i; C]; R],
    w: [&[u8]; R],
    x: [&ActBlock; C],
    group: usize,
) {
    // SAFETY: the token proves the CPU features.
    unsafe {
        let mut rows = [_mm512_setzero_si512(); R];
        for r in 0..R {
            rows[r] = V::group(s, w[r], group);
        }
        for c in 0..C {
            let v = broadcast(x[c], group);
            for r in 0..R {
                acc[r][c] = _mm512_dpbusd_epi32(acc[r][c], rows[r], v);
            }
        }
        if R > 1 || C > 2 {
            for r in 0..R {
                for c in 0..C {
                    asm!("/* {0} */", inout(zmm_reg) acc[r][c], options(nomem, nostack, preserves_flags));
                }
            }
        }
    }
}

/// Two numbers in every lane.
#[inline(always)]
fn splat_pair(&[first, second]: &[i16; 2]) -> __m512i {
    // SAFETY: called only from methods of the token.
    unsafe { _mm512_set1_epi32(first as u16 as i32 | (second as i32) << 16) }
}

/// Values 4 * group .. 4 * group + 4 in every lane.
#[inline(always)]
fn broadcast(x: &ActBlock, group: usize) -> __m512i {
    let v = &x.values;
    let i = group * 4;
    let four = i32::from_le_bytes([v[i] as u8, v[i + 1] as u8, v[i + 2] as u8, v[i + 3] as u8]);
    // SAFETY: called only from methods of the token.
    unsafe { _mm512_set1_epi32(four) }
}
