//! Blocks of a quantised row as GGUF stores them, read value by value; knows no panel and no arithmetic on rows.
//!
//! A weight is `scale · (code − offset) + min`; the offset is the format's, the scale is one of 32 inputs (of 16 in Q6_K), the
//! minimum of 32. In the K formats eight neighbouring blocks of 32 share two f16, which small integers multiply.
//! Layout: `ggml-common.h` and `ggml-quants.c` of <https://github.com/ggml-org/ggml>.

/// Inputs that share a scale, and an activation's.
pub(super) const BLOCK: usize = 32;
/// Blocks that share the f16 of a K format.
pub(super) const SUPER: usize = 8;

/// How a GGUF tensor is quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 4-bit codes less 8, an f16 scale.
    Q4_0,
    /// 4-bit codes, an f16 scale and minimum.
    Q4_1,
    /// 8-bit signed codes, an f16 scale.
    Q8_0,
    /// 4-bit codes, 6-bit scales and minima of blocks of 32 in superblocks of 256.
    Q4K,
    /// 6-bit codes less 32, 8-bit scales of 16 inputs in superblocks of 256.
    Q6K,
}

/// One block of 32 inputs of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Block {
    /// Unsigned; 8-bit codes are raised by 128.
    pub(super) codes: [u8; BLOCK],
    /// f16 that multiplies the integers of `scales` (which are 1 without them).
    pub(super) scale: u16,
    /// Of each 16 inputs; the same twice where a scale is that of 32.
    pub(super) scales: [i8; 2],
    /// f16 that multiplies `min`, its sign such that the product is added.
    pub(super) min_scale: u16,
    pub(super) min: i8,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 5] = [Self::Q4_0, Self::Q4_1, Self::Q8_0, Self::Q4K, Self::Q6K];

    /// Inputs that are stored together; a row is whole such blocks.
    pub const fn block(self) -> usize {
        if self.has_supers() { SUPER * BLOCK } else { BLOCK }
    }

    /// Bytes that they take.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }

    pub(super) const fn bits(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => 4,
            Self::Q6K => 6,
            Self::Q8_0 => 8,
        }
    }

    pub(super) const fn offset(self) -> i32 {
        match self {
            Self::Q4_1 | Self::Q4K => 0,
            Self::Q4_0 => 8,
            Self::Q6K => 32,
            Self::Q8_0 => 128,
        }
    }

    pub(super) const fn has_min(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q4K)
    }

    /// Whether a scale is that of 16 inputs.
    pub(super) const fn has_halves(self) -> bool {
        matches!(self, Self::Q6K)
    }

    pub(super) const fn has_supers(self) -> bool {
        matches!(self, Self::Q4K | Self::Q6K)
    }

    /// Block `index` of a stored row.
    pub(super) fn read(self, row: &[u8], index: usize) -> Block {
        let per_stored = self.block() / BLOCK;
        let stored = &row[index / per_stored * self.block_bytes()..][..self.block_bytes()];
        let within = index % per_stored;
        match self {
            Self::Q4_0 => plain(u16_at(stored, 0), nibbles(&stored[2..])),
            Self::Q4_1 => {
                let block = plain(u16_at(stored, 0), nibbles(&stored[4..]));
                Block { min_scale: u16_at(stored, 2), min: 1, ..block }
            }
            Self::Q8_0 => plain(u16_at(stored, 0), std::array::from_fn(|i| stored[2 + i] ^ 0x80)),
            Self::Q4K => q4k(stored, within),
            Self::Q6K => q6k(stored, within),
        }
    }
}

impl Block {
    /// The weights in f64, each with `|scale·(code − offset)| + |min|`: what rounding is bounded by.
    #[cfg(test)]
    pub(super) fn exact(&self, offset: i32) -> [(f64, f64); BLOCK] {
        let f16 = |bits| half::f16::from_bits(bits).to_f64();
        let min = f16(self.min_scale) * f64::from(self.min);
        std::array::from_fn(|i| {
            let scale = f16(self.scale) * f64::from(self.scales[i / 16]);
            let product = scale * f64::from(i32::from(self.codes[i]) - offset);
            (product + min, product.abs() + min.abs())
        })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn plain(scale: u16, codes: [u8; BLOCK]) -> Block {
    Block { codes, scale, scales: [1; 2], ..Block::default() }
}

/// 16 bytes: the low nibbles are the first 16 codes, the high ones the others.
fn nibbles(bytes: &[u8]) -> [u8; BLOCK] {
    std::array::from_fn(|i| bytes[i % 16] >> (i / 16 * 4) & 15)
}

/// f16 scale, f16 minimum, 12 bytes of 6-bit scales and minima, 128 bytes of codes: 32 bytes hold two blocks.
fn q4k(stored: &[u8], within: usize) -> Block {
    let (packed, codes) = (&stored[4..16], &stored[16 + within / 2 * BLOCK..]);
    let (scale, min) = if within < 4 {
        (packed[within] & 63, packed[within + 4] & 63)
    } else {
        let (low, scale_high, min_high) = (packed[within + 4], packed[within - 4], packed[within]);
        (low & 15 | scale_high >> 6 << 4, low >> 4 | min_high >> 6 << 4)
    };
    Block {
        codes: std::array::from_fn(|i| codes[i] >> (within % 2 * 4) & 15),
        scale: u16_at(stored, 0),
        scales: [scale as i8; 2],
        // The stored minimum is subtracted.
        min_scale: u16_at(stored, 2) ^ 0x8000,
        min: min as i8,
    }
}

/// 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales, an f16; each half of the superblock has half of them, in
/// which a byte of nibbles holds two blocks and a byte of pairs four.
fn q6k(stored: &[u8], within: usize) -> Block {
    let (half, block) = (within / 4, within % 4);
    let low = &stored[half * 64 + block % 2 * BLOCK..];
    let high = &stored[128 + half * BLOCK..];
    let scales = &stored[192 + within * 2..];
    let code = |i: usize| low[i] >> (block / 2 * 4) & 15 | (high[i] >> (block * 2) & 3) << 4;
    Block {
        codes: std::array::from_fn(code),
        scale: u16_at(stored, 208),
        scales: [scales[0] as i8, scales[1] as i8],
        ..Block::default()
    }
}
