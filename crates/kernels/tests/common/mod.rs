//! What several tests of kernels need.

use kernels::table::{KernelTable, available};

/// A small seeded generator (SplitMix64), so that cases are cheap and repeatable.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Mostly around 1, sometimes huge, tiny, or zero of either sign.
    pub fn float(&mut self) -> f32 {
        let unit = (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
        match self.next() % 40 {
            0 => 0.0,
            1 => -0.0,
            2 => unit * 3e4,
            3 => unit * 1e-6,
            4 => unit * 1e-30,
            _ => unit * 4.0,
        }
    }

    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

pub fn fast() -> Vec<&'static KernelTable> {
    let mut tables = available();
    tables.pop();
    println!("compared: {:?}", tables.iter().map(|table| table.isa).collect::<Vec<_>>());
    tables
}

pub fn scalar() -> &'static KernelTable {
    available().pop().unwrap()
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
