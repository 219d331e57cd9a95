//! Counter-based dropout: a mask is a pure function of (key, token, element); knows no generator's state.

/// The mask of one token's input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mask {
    /// Probability of dropping an element, `0 ≤ p < 1`. What is kept is scaled by `1 / (1 − p)`.
    pub p: f32,
    /// The key of the row, layer and projection.
    pub key: u64,
    /// The token's index in its row.
    pub token: u64,
}

impl Mask {
    /// Writes the masked `x` to `out`.
    pub fn apply(&self, x: &[f32], out: &mut [f32]) {
        let (row, scale) = (self.row(), self.scale());
        for (i, (x, out)) in x.iter().zip(out).enumerate() {
            *out = if self.keeps(row, i) { x * scale } else { 0.0 };
        }
    }

    /// Adds the masked gradient `d` to `dx`.
    pub fn add(&self, d: &[f32], dx: &mut [f32]) {
        let (row, scale) = (self.row(), self.scale());
        for (i, (d, dx)) in d.iter().zip(dx).enumerate() {
            if self.keeps(row, i) {
                *dx += d * scale;
            }
        }
    }

    fn row(&self) -> u64 {
        mix(self.key ^ mix(self.token.wrapping_add(0x632b_e59b_d9b4_e019)))
    }

    fn scale(&self) -> f32 {
        1.0 / (1.0 - self.p)
    }

    /// Whether 24 uniform bits are at least p.
    #[inline]
    fn keeps(&self, row: u64, element: usize) -> bool {
        let bits = mix(row.wrapping_add((element as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        (bits >> 40) as f32 >= self.p * (1u32 << 24) as f32
    }
}

/// Whether element `element` of the input of token `token` is kept under `key`.
pub fn keep(key: u64, token: u64, element: usize, p: f32) -> bool {
    let mask = Mask { p, key, token };
    mask.keeps(mask.row(), element)
}

/// The finaliser of SplitMix64 (Steele, Lea & Flood 2014).
#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_p_is_dropped_whatever_key_or_token() {
        for p in [0.0, 0.1, 0.5, 0.9] {
            for (key, token) in [(0, 0), (0, 1), (1, 0), (u64::MAX, 7)] {
                let n = 40_000;
                let dropped = (0..n).filter(|&i| !keep(key, token, i, p)).count() as f32 / n as f32;
                // Five standard errors.
                assert!((dropped - p).abs() <= 5.0 * (p * (1.0 - p) / n as f32).sqrt(), "{dropped} for {p}");
            }
        }
    }

    #[test]
    fn gradient_and_value_share_the_mask() {
        let mask = Mask { p: 0.3, key: 9, token: 4 };
        let ones = vec![1.0; 100];
        let (mut value, mut gradient) = (vec![f32::NAN; 100], vec![0.0; 100]);
        mask.apply(&ones, &mut value);
        mask.add(&ones, &mut gradient);
        assert_eq!(value, gradient);
        assert!((0..100).all(|i| (value[i] != 0.0) == keep(9, 4, i, 0.3)));
    }
}
