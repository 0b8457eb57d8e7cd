//! Every kernel of one ISA, as a table that a plan is bound to once.

use crate::acts::{ActRow, NonFinite};
use crate::kernels::attend::AttendScratch;
use crate::kernels::attention::{AttendJob, StoreJob};
use crate::kernels::matmul::{GluJob, LinearJob};
use crate::kernels::rows::Activation;
use crate::packed::ActKind;
use crate::reference;
use crate::select::{
    Hashing, PackedKeys, PageScores, PageVector, RowScores, SampledScores, Shrinking, SmallRow, Sums,
};
#[cfg(all(target_family = "wasm", target_feature = "simd128"))]
use crate::simd::wasm;
#[cfg(all(target_family = "wasm", target_feature = "relaxed-simd"))]
use crate::simd::wasm_relaxed;
use crate::simd::{ActBlock, LANES};
use crate::view::Shared;
use std::ops::Range;

pub struct KernelTable {
    /// `scalar`, `avx2`, `avx-vnni`, `avx512`, `amx`, `neon`, `simd128` or `relaxed-simd`.
    pub isa: &'static str,
    pub linear: fn(&LinearJob),
    pub glu: fn(&GluJob),
    /// See [`crate::kernels::rows::gate_all`].
    pub gate_rows: fn(Activation, gates: &mut [f32], ups: &[f32]),
    pub rms_norm: fn(x: &mut [f32], weight: &[f32], eps: f32),
    /// cap * tanh(x / cap) in place.
    pub softcap: fn(x: &mut [f32], cap: f32),
    pub prepare: fn(ActKind, &[f32], ActRow<'_>) -> Result<(), NonFinite>,
    pub store_kv: fn(&StoreJob) -> Result<(), NonFinite>,
    pub attend: fn(&AttendJob, &mut AttendScratch),
    /// The states over some chunks; see [`crate::kernels::attend::attend_part`].
    pub attend_part: fn(&AttendJob, Range<usize>, Shared<f32>, &mut AttendScratch),
    pub merge_parts: fn(&AttendJob, &[f32], &mut AttendScratch),
    /// What chooses blocks of keys; see [`crate::select`].
    pub widen: fn(&[[u16; LANES]], &mut [[f32; LANES]]),
    pub expand_keys: fn(&PackedKeys, &mut [[u16; LANES]]),
    /// To the nearest F16 values, in place.
    pub round_halves: fn(&mut [f32]),
    pub row_scores: fn(&RowScores, &mut [[f32; LANES]]),
    pub row_sums: fn(scores: &[[f32; LANES]], &mut [[f32; 2]]),
    pub softmax: fn(&mut [[f32; LANES]]),
    /// See [`crate::select::shrink_keys`].
    pub shrink_keys: fn(&Shrinking, values: &mut [PageVector], scales: &mut [[f32; LANES]]),
    pub shrink_rows: ShrinkRows,
    pub sampled_sums: fn(&SampledScores, &mut [Sums]),
    pub add_shares: AddShares,
    pub buckets: fn(&Hashing, &mut [u16]),
    pub page_scores: fn(&PageScores, &mut [[f32; LANES]]),
    /// Queries whose bounds of pages are best computed at once.
    pub page_rows: usize,
    pub stand_out: StandOut,
    /// See [`crate::select::sign_halves`].
    pub sign_halves: fn(queries: &[f32], dim: usize, out: &mut [ActBlock]),
}

/// See [`crate::select::stand_out`].
pub type StandOut = fn(rows: &[[f32; LANES]], count: usize, most: &mut [[f32; LANES]]);

/// See [`crate::select::shrink_rows`].
pub type ShrinkRows = fn(rows: &[f32], dim: usize, values: &mut [[i8; LANES]], of: &mut [SmallRow]);

/// See [`crate::select::add_shares`].
pub type AddShares = fn(sums: &mut [Sums], real: &[[f32; LANES]], mass: &mut [[f32; LANES]]);

/// Few enough that their bounds stay in a first-level cache.
const PAGE_ROWS: usize = 4;

static SCALAR: KernelTable = KernelTable {
    isa: "scalar",
    linear: reference::linear,
    glu: reference::glu,
    gate_rows: reference::gate_rows,
    rms_norm: reference::rms_norm,
    softcap: reference::softcap,
    prepare: reference::prepare,
    store_kv: reference::store_kv,
    attend: reference::attend,
    attend_part: reference::attend_part,
    merge_parts: reference::merge_parts,
    widen: reference::widen,
    expand_keys: reference::expand_keys,
    round_halves: reference::round_halves,
    row_scores: reference::row_scores,
    row_sums: reference::row_sums,
    softmax: reference::softmax,
    shrink_keys: reference::shrink_keys,
    shrink_rows: reference::shrink_rows,
    sampled_sums: reference::sampled_sums,
    add_shares: reference::add_shares,
    buckets: reference::buckets,
    page_scores: reference::page_scores,
    page_rows: PAGE_ROWS,
    stand_out: reference::stand_out,
    sign_halves: reference::sign_halves,
};

/// One `#[target_feature]` entry per kernel: everything generic inlines into it.
#[allow(unused_macros)]
macro_rules! isa_table {
    ($table:ident, $module:ident, $token:ty, $name:literal, $features:literal) => {
        static $table: KernelTable = KernelTable {
            isa: $name,
            linear: $module::linear,
            glu: $module::glu,
            gate_rows: $module::gate_rows,
            rms_norm: $module::rms_norm,
            softcap: $module::softcap,
            prepare: $module::prepare,
            store_kv: $module::store_kv,
            attend: $module::attend,
            attend_part: $module::attend_part,
            merge_parts: $module::merge_parts,
            widen: $module::widen,
            expand_keys: $module::expand_keys,
            round_halves: $module::round_halves,
            row_scores: $module::row_scores,
            row_sums: $module::row_sums,
            softmax: $module::softmax,
            shrink_keys: $module::shrink_keys,
            shrink_rows: $module::shrink_rows,
            sampled_sums: $module::sampled_sums,
            add_shares: $module::add_shares,
            buckets: $module::buckets,
            page_scores: $module::page_scores,
            page_rows: PAGE_ROWS,
            stand_out: $module::stand_out,
            sign_halves: $module::sign_halves,
        };

        mod $module {
            use super::*;
            use crate::kernels::{attend, attention, matmul, rows};
            use crate::select;

            /// The table is handed out only after detection, so the token can be had again.
            fn token() -> $token {
                <$token>::detect().expect("the ISA was detected before")
            }

            isa_table!(@entry $features, linear(job: &LinearJob) -> (), matmul::linear);
            isa_table!(@entry $features, glu(job: &GluJob) -> (), matmul::glu);
            isa_table!(@entry $features,
                gate_rows(activation: Activation, gates: &mut [f32], ups: &[f32]) -> (), rows::gate_all);
            isa_table!(@entry $features, rms_norm(x: &mut [f32], weight: &[f32], eps: f32) -> (), rows::rms_norm);
            isa_table!(@entry $features, softcap(x: &mut [f32], cap: f32) -> (), rows::softcap_all);
            isa_table!(@entry $features,
                prepare(kind: ActKind, x: &[f32], to: ActRow<'_>) -> Result<(), NonFinite>, rows::prepare);
            isa_table!(@entry $features, store_kv(job: &StoreJob) -> Result<(), NonFinite>, attention::store_kv);
            isa_table!(@entry $features,
                attend(job: &AttendJob, scratch: &mut AttendScratch) -> (), attend::attend);
            isa_table!(@entry $features,
                attend_part(job: &AttendJob, chunks: Range<usize>, states: Shared<f32>, scratch: &mut AttendScratch) -> (),
                attend::attend_part);
            isa_table!(@entry $features,
                merge_parts(job: &AttendJob, states: &[f32], scratch: &mut AttendScratch) -> (),
                attend::merge_parts);
            isa_table!(@entry $features,
                widen(from: &[[u16; LANES]], to: &mut [[f32; LANES]]) -> (), select::widen);
            isa_table!(@entry $features,
                expand_keys(job: &PackedKeys, out: &mut [[u16; LANES]]) -> (), select::expand_keys);
            isa_table!(@entry $features, round_halves(x: &mut [f32]) -> (), select::round_halves);
            isa_table!(@entry $features,
                row_scores(job: &RowScores, out: &mut [[f32; LANES]]) -> (), select::row_scores);
            isa_table!(@entry $features,
                row_sums(scores: &[[f32; LANES]], out: &mut [[f32; 2]]) -> (), select::row_sums);
            isa_table!(@entry $features, softmax(row: &mut [[f32; LANES]]) -> (), select::softmax);
            isa_table!(@entry $features,
                shrink_keys(job: &Shrinking, values: &mut [PageVector], scales: &mut [[f32; LANES]]) -> (),
                select::shrink_keys);
            isa_table!(@entry $features,
                shrink_rows(rows: &[f32], dim: usize, values: &mut [[i8; LANES]], of: &mut [SmallRow]) -> (),
                select::shrink_rows);
            isa_table!(@entry $features,
                sampled_sums(job: &SampledScores, out: &mut [Sums]) -> (), select::sampled_sums);
            isa_table!(@entry $features,
                add_shares(sums: &mut [Sums], real: &[[f32; LANES]], mass: &mut [[f32; LANES]]) -> (),
                select::add_shares);
            isa_table!(@entry $features, buckets(job: &Hashing, out: &mut [u16]) -> (), select::buckets);
            isa_table!(@entry $features,
                page_scores(job: &PageScores, out: &mut [[f32; LANES]]) -> (), select::page_scores);
            isa_table!(@entry $features,
                stand_out(rows: &[[f32; LANES]], count: usize, most: &mut [[f32; LANES]]) -> (), select::stand_out);
            isa_table!(@entry $features,
                sign_halves(queries: &[f32], dim: usize, out: &mut [ActBlock]) -> (), select::sign_halves);
        }
    };
    (@entry $features:literal, $name:ident($($arg:ident: $type:ty),*) -> $result:ty, $body:path) => {
        pub fn $name($($arg: $type),*) -> $result {
            #[target_feature(enable = $features)]
            fn entry(token: impl crate::simd::Simd, $($arg: $type),*) -> $result {
                $body(token, $($arg),*)
            }
            // SAFETY: the token proves that this CPU has the features. (WebAssembly is checked as a whole.)
            #[cfg_attr(target_family = "wasm", allow(unused_unsafe))]
            unsafe { entry(token(), $($arg),*) }
        }
    };
}

#[cfg(target_arch = "x86_64")]
isa_table!(AVX2, avx2, crate::simd::avx2::Avx2<false>, "avx2", "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
isa_table!(
    AVX512,
    avx512,
    crate::simd::avx512::Avx512,
    "avx512",
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"
);
/// Where there are many columns, tiles multiply them; everything else is for vectors.
#[cfg(target_arch = "x86_64")]
static AMX: KernelTable = KernelTable {
    isa: "amx",
    linear: amx::linear,
    glu: amx::glu,
    page_scores: amx::page_scores,
    page_rows: crate::simd::amx::ROWS,
    ..AVX512
};

#[cfg(target_arch = "x86_64")]
mod amx {
    use super::*;
    use crate::kernels::matmul::tiles;
    use crate::select::bounds;
    use crate::simd::amx::Amx;

    /// As above.
    fn token() -> Amx {
        Amx::detect().expect("the ISA was detected before")
    }

    pub fn linear(job: &LinearJob) {
        if !tiles::linear(token(), job) {
            avx512::linear(job);
        }
    }

    pub fn glu(job: &GluJob) {
        if !tiles::glu(token(), job) {
            avx512::glu(job);
        }
    }

    pub fn page_scores(job: &PageScores, out: &mut [[f32; LANES]]) {
        if !bounds::tiles::page_scores(token(), job, out) {
            avx512::page_scores(job, out);
        }
    }
}

/// Dot products of bytes are one instruction; everything else is AVX2's.
#[cfg(target_arch = "x86_64")]
static AVX_VNNI: KernelTable = KernelTable {
    isa: "avx-vnni",
    linear: avx_vnni::linear,
    glu: avx_vnni::glu,
    page_scores: avx_vnni::page_scores,
    ..AVX2
};

#[cfg(target_arch = "x86_64")]
mod avx_vnni {
    use super::*;
    use crate::kernels::matmul;
    use crate::select;
    use crate::simd::avx2::Avx2;

    /// As above.
    fn token() -> Avx2<true> {
        Avx2::detect().expect("the ISA was detected before")
    }

    isa_table!(@entry "avx2,fma,f16c,avxvnni", linear(job: &LinearJob) -> (), matmul::linear);
    isa_table!(@entry "avx2,fma,f16c,avxvnni", glu(job: &GluJob) -> (), matmul::glu);
    isa_table!(@entry "avx2,fma,f16c,avxvnni",
        page_scores(job: &PageScores, out: &mut [[f32; LANES]]) -> (), select::page_scores);
}
#[cfg(target_arch = "aarch64")]
isa_table!(NEON, neon, crate::simd::neon::Neon<false>, "neon", "neon");
#[cfg(target_arch = "aarch64")]
isa_table!(NEON_DOT, neon_dot, crate::simd::neon::Neon<true>, "neon", "neon,dotprod");
#[cfg(all(target_family = "wasm", target_feature = "simd128", not(target_feature = "relaxed-simd")))]
isa_table!(SIMD128, simd128, wasm::Wasm<wasm::WordDots>, "simd128", "simd128");
#[cfg(all(target_family = "wasm", target_feature = "relaxed-simd"))]
isa_table!(RELAXED_WHOLE, relaxed_whole, wasm::Wasm<wasm_relaxed::WholeDots>, "relaxed-simd", "relaxed-simd");
#[cfg(all(target_family = "wasm", target_feature = "relaxed-simd"))]
isa_table!(RELAXED_PAIRS, relaxed_pairs, wasm::Wasm<wasm_relaxed::PairDots>, "relaxed-simd", "relaxed-simd");

/// The tables that this CPU can run, fastest first; the scalar reference is always last.
pub fn available() -> Vec<&'static KernelTable> {
    let mut tables = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if crate::simd::amx::Amx::detect().is_some() {
            tables.push(&AMX);
        }
        if crate::simd::avx512::Avx512::detect().is_some() {
            tables.push(&AVX512);
        }
        if crate::simd::avx2::Avx2::<true>::detect().is_some() {
            tables.push(&AVX_VNNI);
        }
        if crate::simd::avx2::Avx2::<false>::detect().is_some() {
            tables.push(&AVX2);
        }
    }
    #[cfg(target_arch = "aarch64")]
    if crate::simd::neon::Neon::<true>::detect().is_some() {
        tables.push(&NEON_DOT);
    } else if crate::simd::neon::Neon::<false>::detect().is_some() {
        tables.push(&NEON);
    }
    #[cfg(all(target_family = "wasm", target_feature = "simd128", not(target_feature = "relaxed-simd")))]
    tables.push(&SIMD128);
    #[cfg(all(target_family = "wasm", target_feature = "relaxed-simd"))]
    if wasm::Wasm::<wasm_relaxed::WholeDots>::detect().is_some() {
        tables.push(&RELAXED_WHOLE);
    } else if wasm::Wasm::<wasm_relaxed::PairDots>::detect().is_some() {
        tables.push(&RELAXED_PAIRS);
    }
    tables.push(&SCALAR);
    tables
}
