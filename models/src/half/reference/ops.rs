//! The arithmetic of the reference, one plain differentiable function an operation. Knows shapes; never layers or adapters.

use crate::{Activation, Dtype, Site, Span, Spec};
use candle_core::{D, DType, Device, Result, Tensor};

/// A linear, `[outputs, inputs]`.
pub(super) struct Linear {
    weight: Tensor,
    /// The input is rounded to bf16 first.
    rounds: bool,
}

impl Linear {
    /// In the form for `dtype` on the weight's device.
    pub(super) fn new(weight: Tensor, dtype: Dtype) -> Result<Self> {
        let weight = match dtype {
            Dtype::F64 => weight.to_dtype(DType::F64)?,
            Dtype::F32 => weight.to_dtype(DType::F32)?,
            Dtype::Bf16 | Dtype::Quantised if weight.device().is_cpu() => {
                weight.to_dtype(DType::BF16)?.to_dtype(DType::F32)?
            }
            Dtype::Bf16 | Dtype::Quantised => weight.to_dtype(DType::BF16)?,
        };
        Ok(Self { weight, rounds: matches!(dtype, Dtype::Bf16 | Dtype::Quantised) })
    }

    /// With what `leaf` makes of the weight.
    pub(super) fn with(self, leaf: fn(Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { weight: leaf(self.weight)?, ..self })
    }

    pub(super) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `x Wᵀ`, `[tokens, inputs]` → `[tokens, outputs]`, in the type of `x`.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let weight = self.weight.t()?;
        if !self.rounds {
            x.matmul(&weight)
        } else if weight.dtype() == DType::BF16 {
            x.to_dtype(DType::BF16)?.matmul(&weight)?.to_dtype(x.dtype())
        } else {
            round(x)?.matmul(&weight)
        }
    }
}

/// `x` rounded to bf16, in its own type. Straight through: the value is rounded, the gradient is not. `x + (rounded − x)` is exact.
pub(super) fn round(x: &Tensor) -> Result<Tensor> {
    let rounded = x.to_dtype(DType::BF16)?.to_dtype(x.dtype())?;
    x + (rounded - x)?.detach()
}

/// RMSNorm (arXiv 1910.07467): `w ⊙ x / √(mean(x²) + ε)`.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&scale)?.broadcast_mul(weight)
}

/// The gate's nonlinearity.
pub(super) fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => x / (x.neg()?.exp()? + 1.0)?,
    }
}

/// `log softmax` over the last dimension.
pub(super) fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

fn softmax(x: &Tensor) -> Result<Tensor> {
    let exp = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

/// Rotary tables of a batch's tokens (arXiv 2104.09864, halves rotated as in the Hugging Face implementation).
pub(super) struct Rope {
    /// `[tokens, 1, head_dim / 2]` each.
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    pub(super) fn new(spec: &Spec, positions: &[u32], device: &Device, dtype: DType) -> Result<Self> {
        let frequencies = spec.rope_frequencies();
        let angles = |of: fn(f64) -> f64| {
            let turn = |&p: &u32| frequencies.iter().map(move |f| of(f64::from(p) * f));
            let values: Vec<f64> = positions.iter().flat_map(turn).collect();
            Tensor::from_vec(values, (positions.len(), 1, frequencies.len()), &Device::Cpu)?
                .to_dtype(dtype)?
                .to_device(device)
        };
        Ok(Self { cos: angles(f64::cos)?, sin: angles(f64::sin)? })
    }

    /// Rotates `[tokens, heads, head_dim]`.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let half = x.dim(D::Minus1)? / 2;
        let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let turned_a = (a.broadcast_mul(&self.cos)? - b.broadcast_mul(&self.sin)?)?;
        let turned_b = (b.broadcast_mul(&self.cos)? + a.broadcast_mul(&self.sin)?)?;
        Tensor::cat(&[turned_a, turned_b], D::Minus1)
    }
}

/// What is added to a row's attention logits, `[tokens, position + tokens]`: 0 where a token sees, −∞ where it does not. `None`
/// for a single token, which sees all.
pub(super) fn causal_mask(span: &Span, device: &Device) -> Result<Option<Tensor>> {
    let (tokens, keys) = (span.tokens.len(), span.position + span.tokens.len());
    if tokens == 1 {
        return Ok(None);
    }
    let seen = |i: usize| (0..keys).map(move |j| if j <= span.position + i { 0.0 } else { f32::NEG_INFINITY });
    Tensor::from_vec((0..tokens).flat_map(seen).collect(), (tokens, keys), device).map(Some)
}

/// Grouped-query attention of one row: `q` `[tokens, heads, head_dim]`, `k` and `v` `[keys, kv_heads, head_dim]` →
/// `[tokens, heads · head_dim]`.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let (tokens, heads, head_dim) = q.dims3()?;
    let (keys, kv_heads, _) = k.dims3()?;
    let group = heads / kv_heads;
    // [kv_heads, group · tokens, head_dim]: heads of a group share their keys.
    let q = q.transpose(0, 1)?.contiguous()?.reshape((kv_heads, group * tokens, head_dim))?;
    let k = k.permute((1, 2, 0))?.contiguous()?;
    let v = v.transpose(0, 1)?.contiguous()?;
    let logits = (q.matmul(&k)? * (head_dim as f64).powf(-0.5))?;
    let logits = match mask {
        Some(mask) => logits.reshape((heads, tokens, keys))?.broadcast_add(mask)?,
        None => logits,
    };
    let weights = softmax(&logits)?.reshape((kv_heads, group * tokens, keys))?;
    weights
        .matmul(&v)?
        .reshape((heads, tokens, head_dim))?
        .transpose(0, 1)?
        .contiguous()?
        .reshape((tokens, heads * head_dim))
}

/// `x` times the dropout factors of every row at `site`; `x` itself when no row has dropout.
pub(super) fn dropout(x: &Tensor, spans: &[Span], site: Site) -> Result<Tensor> {
    if spans.iter().all(|span| span.dropout.is_none()) {
        return Ok(x.clone());
    }
    let width = x.dim(1)?;
    let mut factors = vec![1f32; x.elem_count()];
    for span in spans {
        let Some(dropout) = span.dropout else { continue };
        let own = factors[span.tokens.start * width..span.tokens.end * width].chunks_exact_mut(width);
        own.enumerate().for_each(|(token, factors)| dropout.factors(site, token, factors));
    }
    x * Tensor::from_vec(factors, x.shape(), x.device())?.to_dtype(x.dtype())?
}
