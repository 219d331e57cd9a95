//! How numbers are stored in a checkpoint, and back to f32; knows neither names nor files.

use candle_core::{CpuStorage, quantized::GgmlDType};
use half::{bf16, f16};
use rayon::prelude::*;
use socius_kernels::quantised::Format;
use std::borrow::Cow;

/// A storage format of tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Encoding {
    F32,
    F16,
    Bf16,
    /// Quantised in blocks along a row.
    Blocks(GgmlDType),
}

/// What GGUF files may hold: (type number, name, encoding).
const GGUF: [(u32, &str, Encoding); 13] = [
    (0, "F32", Encoding::F32),
    (1, "F16", Encoding::F16),
    (30, "BF16", Encoding::Bf16),
    (2, "Q4_0", Encoding::Blocks(GgmlDType::Q4_0)),
    (3, "Q4_1", Encoding::Blocks(GgmlDType::Q4_1)),
    (6, "Q5_0", Encoding::Blocks(GgmlDType::Q5_0)),
    (7, "Q5_1", Encoding::Blocks(GgmlDType::Q5_1)),
    (8, "Q8_0", Encoding::Blocks(GgmlDType::Q8_0)),
    (10, "Q2_K", Encoding::Blocks(GgmlDType::Q2K)),
    (11, "Q3_K", Encoding::Blocks(GgmlDType::Q3K)),
    (12, "Q4_K", Encoding::Blocks(GgmlDType::Q4K)),
    (13, "Q5_K", Encoding::Blocks(GgmlDType::Q5K)),
    (14, "Q6_K", Encoding::Blocks(GgmlDType::Q6K)),
];

impl Encoding {
    /// By GGUF's type number; an error in words lists what is supported.
    pub(crate) fn from_gguf(number: u32) -> Result<Self, String> {
        match GGUF.iter().find(|(n, ..)| *n == number) {
            Some((.., encoding)) => Ok(*encoding),
            None => {
                let names: Vec<_> = GGUF.iter().map(|(_, name, _)| *name).collect();
                Err(format!("type {number} is not supported; supported are {}", names.join(", ")))
            }
        }
    }

    /// The format in which kernels keep it as it is.
    pub(crate) fn kept(self) -> Option<Format> {
        match self {
            Self::Blocks(GgmlDType::Q4_0) => Some(Format::Q4_0),
            Self::Blocks(GgmlDType::Q4_1) => Some(Format::Q4_1),
            Self::Blocks(GgmlDType::Q8_0) => Some(Format::Q8_0),
            Self::Blocks(GgmlDType::Q4K) => Some(Format::Q4K),
            Self::Blocks(GgmlDType::Q6K) => Some(Format::Q6K),
            _ => None,
        }
    }

    /// Values that are stored together.
    pub(crate) fn block(self) -> usize {
        match self {
            Self::Blocks(kind) => kind.block_size(),
            _ => 1,
        }
    }

    fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Blocks(kind) => kind.type_size(),
        }
    }

    /// Bytes of a tensor of `shape`; none if it does not fit in memory or a row is not whole blocks.
    pub(crate) fn bytes(self, shape: &[usize]) -> Option<usize> {
        let count = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n))?;
        let row = *shape.last()?;
        if !row.is_multiple_of(self.block()) {
            return None;
        }
        (count / self.block()).checked_mul(self.block_bytes())
    }

    /// The values of `bytes`, which holds whole blocks and, for blocks, starts at an even address.
    pub(crate) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        const BLOCKS_PER_TASK: usize = 1 << 12;
        assert!(bytes.len().is_multiple_of(self.block_bytes()), "whole blocks");
        let mut values = vec![0.0; bytes.len() / self.block_bytes() * self.block()];
        values
            .par_chunks_mut(BLOCKS_PER_TASK * self.block())
            .zip(bytes.par_chunks(BLOCKS_PER_TASK * self.block_bytes()))
            .for_each(|(values, bytes)| self.decode_into(bytes, values));
        values
    }

    fn decode_into(self, bytes: &[u8], values: &mut [f32]) {
        match self {
            Self::F32 => convert(bytes, values, f32::from_le_bytes),
            Self::F16 => convert(bytes, values, |b| f16::from_le_bytes(b).to_f32()),
            Self::Bf16 => convert(bytes, values, |b| bf16::from_le_bytes(b).to_f32()),
            Self::Blocks(kind) => {
                let decoded = kind.from_data(Cow::Borrowed(bytes)).dequantize(values.len());
                let Ok(CpuStorage::F32(decoded)) = decoded else { unreachable!("blocks decode to f32 on the CPU") };
                values.copy_from_slice(&decoded);
            }
        }
    }
}

fn convert<const N: usize>(bytes: &[u8], values: &mut [f32], number: impl Fn([u8; N]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
        *value = number(*bytes);
    }
}
