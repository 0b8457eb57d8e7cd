//! F16 and BF16 to and from f32, in plain integer arithmetic: what the hardware instructions do.

/// Exact.
pub fn f16_to_f32(h: u16) -> f32 {
    let sign = (h as u32 & 0x8000) << 16;
    let exponent = (h >> 10) & 0x1f;
    let mantissa = h as u32 & 0x3ff;
    let magnitude = match exponent {
        0 => return f32::from_bits(sign | (mantissa as f32 * f32::from_bits(0x3380_0000)).to_bits()),
        31 => 0x7f80_0000 | (mantissa << 13) | if mantissa != 0 { 0x40_0000 } else { 0 },
        e => ((e as u32 + 112) << 23) | (mantissa << 13),
    };
    f32::from_bits(sign | magnitude)
}

/// To nearest, ties to even; infinity beyond 65,504.
pub fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00 | ((magnitude >> 13) & 0x3ff) as u16;
    }
    if magnitude >= 0x4780_0000 {
        return sign | 0x7c00;
    }
    if magnitude < 0x3880_0000 {
        // A subnormal F16 (or zero): adding 2^-1 puts the rounding where the last bit is 2^-24.
        let shifted = f32::from_bits(magnitude) + 0.5;
        return sign | (shifted.to_bits() - 0x3f00_0000) as u16;
    }
    let odd = (magnitude >> 13) & 1;
    sign | ((magnitude - 0x3800_0000 + 0xfff + odd) >> 13) as u16
}

/// The nearest F16 value, as f32.
pub fn round_f16(x: f32) -> f32 {
    f16_to_f32(f32_to_f16(x))
}

/// Exact.
pub fn bf16_to_f32(b: u16) -> f32 {
    f32::from_bits((b as u32) << 16)
}

/// Below this a product of two BF16 values may be too small to be exact: such values count as 0.
pub const BF16_TINY: f32 = 8.673_617e-19;

/// To nearest, ties to even, magnitudes under 2^-60 to zero.
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    if x.abs() < BF16_TINY {
        return (bits >> 16) as u16 & 0x8000;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// The nearest BF16 value, as f32.
pub fn round_bf16(x: f32) -> f32 {
    bf16_to_f32(f32_to_bf16(x))
}
