//! Four words of four rows, turned: with what every CPU of a kind has, so that packing needs no token.

/// Word `i` of every row becomes row `i`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn turn_words(rows: [&[u8; 16]; 4]) -> [[u8; 16]; 4] {
    use core::arch::x86_64::*;
    // SAFETY: SSE2 is part of x86-64, and bytes are read from and become whole arrays.
    unsafe {
        let [a, b, c, d] = rows.map(|row| _mm_loadu_si128(row.as_ptr().cast()));
        let (first, second) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
        let (third, fourth) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
        core::mem::transmute([
            _mm_unpacklo_epi64(first, second),
            _mm_unpackhi_epi64(first, second),
            _mm_unpacklo_epi64(third, fourth),
            _mm_unpackhi_epi64(third, fourth),
        ])
    }
}

/// Word `i` of every row becomes row `i`.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub fn turn_words(rows: [&[u8; 16]; 4]) -> [[u8; 16]; 4] {
    use core::arch::aarch64::*;
    // SAFETY: NEON is part of AArch64, and bytes are read from and become whole arrays.
    unsafe {
        let [a, b, c, d] = rows.map(|row| vreinterpretq_u32_u8(vld1q_u8(row.as_ptr())));
        let wide = |v| vreinterpretq_u64_u32(v);
        let (first, second) = (wide(vzip1q_u32(a, b)), wide(vzip1q_u32(c, d)));
        let (third, fourth) = (wide(vzip2q_u32(a, b)), wide(vzip2q_u32(c, d)));
        core::mem::transmute([
            vzip1q_u64(first, second),
            vzip2q_u64(first, second),
            vzip1q_u64(third, fourth),
            vzip2q_u64(third, fourth),
        ])
    }
}

/// Word `i` of every row becomes row `i`; two rows' two words at a time as 64-bit numbers.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[inline(always)]
pub fn turn_words(rows: [&[u8; 16]; 4]) -> [[u8; 16]; 4] {
    let mut turned = [[0; 16]; 4];
    for i in [0, 2] {
        for k in [0, 2] {
            let pair = |row: &[u8; 16]| u64::from_le_bytes(std::array::from_fn(|byte| row[i * 4 + byte]));
            let (a, b) = (pair(rows[k]), pair(rows[k + 1]));
            let (low, high) = (a & 0xffff_ffff | b << 32, a >> 32 | b & !0xffff_ffff);
            turned[i][k * 4..k * 4 + 8].copy_from_slice(&low.to_le_bytes());
            turned[i + 1][k * 4..k * 4 + 8].copy_from_slice(&high.to_le_bytes());
        }
    }
    turned
}
