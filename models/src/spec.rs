//! An architecture as data. The decoder reads a [`Spec`] and nothing else about a model family.

use crate::{ModelError, Site};
use candle_core::Tensor;
use socius_kernels::quantised::Quantised;

/// The gate's nonlinearity in the MLP half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
}

/// How rotary frequencies are stretched beyond the length that the model was pre-trained at.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as they are.
    None,
    /// Every frequency divided by `factor` (position interpolation, arXiv 2306.15595).
    Linear {
        /// Divisor of every frequency.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_frequency` are divided.
        low_frequency: f64,
        /// Wavelengths below `original_context / high_frequency` are kept.
        high_frequency: f64,
        /// The context length before stretching, in tokens.
        original_context: f64,
    },
    /// Frequency `i` divided by factor `i`, `[head_dim / 2]`: how GGUF stores the stretching of Llama 3.1 (`rope_freqs.weight`).
    Factors(Vec<f64>),
}

/// Everything that the decoder needs to know about an architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The family's name as `config.json`'s `model_type` and GGUF's `general.architecture` spell it.
    pub family: String,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP; 0 where layers are attention alone.
    pub intermediate: usize,
    /// Number of layers (each an attention half and, unless `intermediate` is 0, an MLP half).
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// ε of every RMSNorm.
    pub norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// The gate's nonlinearity.
    pub activation: Activation,
    /// Whether the output head is the embedding.
    pub tied_head: bool,
    /// Longest context that the checkpoint declares, in tokens.
    pub context_max: usize,
}

impl Spec {
    /// Width of all query heads together.
    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The shape that the tensor in `slot` must have: `[out, in]` for linears, `[width]` for norms, `[vocab, hidden]` for the
    /// embedding and the head.
    pub fn shape(&self, slot: Slot) -> Vec<usize> {
        use LayerSlot::*;
        match slot {
            Slot::Embedding | Slot::Head => vec![self.vocab, self.hidden],
            Slot::FinalNorm | Slot::Layer(_, AttentionNorm | MlpNorm) => vec![self.hidden],
            Slot::Layer(_, Q) => vec![self.q_dim(), self.hidden],
            Slot::Layer(_, K | V) => vec![self.kv_dim(), self.hidden],
            Slot::Layer(_, O) => vec![self.hidden, self.q_dim()],
            Slot::Layer(_, Gate | Up) => vec![self.intermediate, self.hidden],
            Slot::Layer(_, Down) => vec![self.hidden, self.intermediate],
        }
    }

    /// A small Llama of `heads` heads as wide as fits into `hidden`, with a four times as wide MLP, a tied head and room for long contexts.
    pub fn small(vocab: usize, hidden: usize, layers: usize, heads: usize) -> Self {
        Self {
            family: "llama".into(),
            vocab,
            hidden,
            intermediate: 4 * hidden,
            layers,
            heads,
            kv_heads: heads,
            head_dim: hidden / heads,
            norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            activation: Activation::Silu,
            tied_head: true,
            context_max: 1 << 16,
        }
    }

    /// Whether layers have an MLP half.
    pub fn has_mlp(&self) -> bool {
        self.intermediate > 0
    }

    /// Whether the architecture has this site.
    pub fn has(&self, site: Site) -> bool {
        site.layer < self.layers && (self.has_mlp() || !site.projection.in_mlp())
    }

    /// Every place that holds a tensor; no head of its own where it is tied.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + use<> {
        use LayerSlot::*;
        const LAYER: [LayerSlot; 9] = [AttentionNorm, Q, K, V, O, MlpNorm, Gate, Up, Down];
        let head = (!self.tied_head).then_some(Slot::Head);
        let own = if self.has_mlp() { &LAYER[..] } else { &LAYER[..5] };
        let layers = (0..self.layers).flat_map(|layer| own.iter().map(move |&slot| Slot::Layer(layer, slot)));
        [Slot::Embedding].into_iter().chain(layers).chain([Slot::FinalNorm]).chain(head)
    }

    /// Number of weights.
    pub fn parameters(&self) -> usize {
        self.slots().map(|slot| self.shape(slot).iter().product::<usize>()).sum()
    }

    /// Rotary frequencies in radians a token, `[head_dim / 2]`, computed in f64 as the reference implementations do in f32.
    pub fn rope_frequencies(&self) -> Vec<f64> {
        let dim = self.head_dim as f64;
        (0..self.head_dim / 2).map(|i| self.stretch(i, self.rope_theta.powf(-2.0 * i as f64 / dim))).collect()
    }

    fn stretch(&self, index: usize, frequency: f64) -> f64 {
        match self.rope_scaling {
            RopeScaling::None => frequency,
            RopeScaling::Factors(ref factors) => frequency / factors[index],
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low_frequency, high_frequency, original_context } => {
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                if wavelength < original_context / high_frequency {
                    frequency
                } else if wavelength > original_context / low_frequency {
                    frequency / factor
                } else {
                    let smooth = (original_context / wavelength - low_frequency) / (high_frequency - low_frequency);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

/// A place in the architecture that holds one weight tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// Token embedding, `[vocab, hidden]`.
    Embedding,
    /// RMSNorm before the head, `[hidden]`.
    FinalNorm,
    /// Output head, `[vocab, hidden]`; absent when tied.
    Head,
    /// A tensor of one layer.
    Layer(usize, LayerSlot),
}

impl Slot {
    /// The tensor's name in a Hugging Face checkpoint of a decoder-only causal language model.
    pub fn hugging_face_name(self) -> String {
        match self {
            Self::Embedding => "model.embed_tokens.weight".into(),
            Self::FinalNorm => "model.norm.weight".into(),
            Self::Head => "lm_head.weight".into(),
            Self::Layer(layer, slot) => format!("model.layers.{layer}.{}.weight", slot.hugging_face_module()),
        }
    }
}

impl LayerSlot {
    /// The module's path inside a Hugging Face layer, as in `self_attn.q_proj`.
    pub fn hugging_face_module(self) -> &'static str {
        match self {
            Self::AttentionNorm => "input_layernorm",
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::MlpNorm => "post_attention_layernorm",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }
}

/// The tensors of one layer. Linears are `[out, in]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the field's own")]
pub enum LayerSlot {
    AttentionNorm,
    Q,
    K,
    V,
    O,
    MlpNorm,
    Gate,
    Up,
    Down,
}

/// Where weights come from: a checkpoint on disk, or a generator in tests.
pub trait TensorSource {
    /// The tensor in `slot`, as f32 on the CPU, in the orientation and row order of the Hugging Face implementation
    /// (GGUF's permuted Q and K rows already put back), of the shape that [`Spec::shape`] gives.
    fn read(&self, slot: Slot) -> Result<Tensor, ModelError>;

    /// The same values, row-major, where they are in memory: it spares a copy.
    fn held(&self, _: Slot) -> Option<&[f32]> {
        None
    }

    /// The same linear as it is stored, if it is quantised in a format that the kernels keep.
    fn read_quantised(&self, _: Slot) -> Result<Option<Quantised>, ModelError> {
        Ok(None)
    }
}
