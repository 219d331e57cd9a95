//! Model families as data: how each one's configuration, in `config.json` or in GGUF metadata, becomes a [`Spec`]. Never reads a
//! weight. A family whose numbers are computed alike is one more row of [`FAMILIES`].

use crate::{Activation, LayerSlot, Metadata, ModelError, RopeScaling, Slot, Spec};
use serde_json::Value;

/// A family of architectures.
#[derive(Debug)]
pub(crate) struct Family {
    /// `model_type` in `config.json`, and `general.architecture` in GGUF.
    pub(crate) name: &'static str,
    /// Switches of `config.json` that the decoder does not have: they must be false, null or absent.
    refused: &'static [&'static str],
    /// Whether GGUF holds the rows of Q and K in rotary order.
    pub(crate) permuted_in_gguf: bool,
}

/// Every supported family.
static FAMILIES: &[Family] = &[Family {
    name: "llama",
    refused: &["attention_bias", "mlp_bias", "quantization_config"],
    permuted_in_gguf: true,
}];

/// GGUF's tensor of rotary divisors, `[head_dim / 2]`.
pub(crate) const GGUF_ROPE_FACTORS: &str = "rope_freqs.weight";

/// What a GGUF file says by its tensors and not by a key.
pub(crate) struct GgufFacts {
    /// The values of [`GGUF_ROPE_FACTORS`], if the file has that tensor.
    pub(crate) rope_factors: Option<Vec<f64>>,
    /// Whether the file has no output head of its own.
    pub(crate) tied_head: bool,
}

/// The keys of the hyper-parameters that every family has. `defaults` of the Hugging Face implementation apply to both.
struct Names {
    vocab: &'static str,
    hidden: &'static str,
    intermediate: &'static str,
    layers: &'static str,
    heads: &'static str,
    kv_heads: &'static str,
    head_dim: &'static str,
    norm_eps: &'static str,
    context: &'static str,
}

const CONFIG: Names = Names {
    vocab: "vocab_size",
    hidden: "hidden_size",
    intermediate: "intermediate_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    kv_heads: "num_key_value_heads",
    head_dim: "head_dim",
    norm_eps: "rms_norm_eps",
    context: "max_position_embeddings",
};

/// After the architecture's name and a dot.
const GGUF: Names = Names {
    vocab: "vocab_size",
    hidden: "embedding_length",
    intermediate: "feed_forward_length",
    layers: "block_count",
    heads: "attention.head_count",
    kv_heads: "attention.head_count_kv",
    head_dim: "attention.key_length",
    norm_eps: "attention.layer_norm_rms_epsilon",
    context: "context_length",
};

/// What `config.json` describes.
pub(crate) fn from_config(config: &Value) -> Result<(&'static Family, Spec), ModelError> {
    let keys = Keys { prefix: String::new(), lookup: &|key| config.get(key).cloned() };
    let family = find("model_type", keys.text("model_type")?.as_deref())?;
    for key in family.refused {
        match config.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(value) => return Err(wrong(key, format!("is {value}, which is not supported for {}", family.name))),
        }
    }
    keys.only("hidden_act", "silu")?;
    let (rope_theta, rope_scaling) = config_rope(config, &keys)?;
    let tied_head = keys.flag("tie_word_embeddings")?.unwrap_or(false);
    dense(family, &CONFIG, &keys, Rest { rope_theta, rope_scaling, tied_head }).map(|spec| (family, spec))
}

/// What GGUF metadata describe.
pub(crate) fn from_gguf(metadata: &Metadata, facts: GgufFacts) -> Result<(&'static Family, Spec), ModelError> {
    let key = "general.architecture";
    let family = find(key, metadata.text(key)?)?;
    let vocab_key = format!("{}.{}", family.name, GGUF.vocab);
    // Older files leave the size of the vocabulary to the list of tokens.
    let listed = || metadata.array_len("tokenizer.ggml.tokens").map(Value::from);
    let lookup = |key: &str| metadata.json(key).or_else(|| listed().filter(|_| key == vocab_key));
    let keys = Keys { prefix: format!("{}.", family.name), lookup: &lookup };
    let (rope_theta, rope_scaling) = gguf_rope(&keys, facts.rope_factors)?;
    let rest = Rest { rope_theta, rope_scaling, tied_head: facts.tied_head };
    let spec = dense(family, &GGUF, &keys, rest)?;
    for key in ["rope.dimension_count", "attention.value_length"] {
        keys.equal(key, spec.head_dim)?;
    }
    Ok((family, spec))
}

/// The tensor's name in a GGUF checkpoint.
pub(crate) fn gguf_name(slot: Slot) -> String {
    match slot {
        Slot::Embedding => "token_embd.weight".into(),
        Slot::FinalNorm => "output_norm.weight".into(),
        Slot::Head => "output.weight".into(),
        Slot::Layer(layer, slot) => format!("blk.{layer}.{}.weight", gguf_module(slot)),
    }
}

/// Tensors that hold nothing that a [`Spec`] does not say: rotary tables, and a head that is the embedding.
pub(crate) fn is_ignored(name: &str) -> bool {
    name == GGUF_ROPE_FACTORS || name == "lm_head.weight" || name.ends_with(".rotary_emb.inv_freq")
}

fn gguf_module(slot: LayerSlot) -> &'static str {
    match slot {
        LayerSlot::AttentionNorm => "attn_norm",
        LayerSlot::Q => "attn_q",
        LayerSlot::K => "attn_k",
        LayerSlot::V => "attn_v",
        LayerSlot::O => "attn_output",
        LayerSlot::MlpNorm => "ffn_norm",
        LayerSlot::Gate => "ffn_gate",
        LayerSlot::Up => "ffn_up",
        LayerSlot::Down => "ffn_down",
    }
}

/// What `config.json` says of `spec`: the inverse of [`from_config`].
///
/// # Errors
/// If the rotation is stretched: nothing that is saved was trained so.
pub(crate) fn to_config(spec: &Spec) -> Result<Value, ModelError> {
    if spec.rope_scaling != RopeScaling::None {
        return Err(wrong("rope_scaling", "a stretched rotation cannot be saved".into()));
    }
    let Activation::Silu = spec.activation;
    let mut config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": spec.family, "hidden_act": "silu", "torch_dtype": "float32",
        "rope_theta": spec.rope_theta, "tie_word_embeddings": spec.tied_head, CONFIG.norm_eps: spec.norm_eps,
    });
    let counts = [
        (CONFIG.vocab, spec.vocab),
        (CONFIG.hidden, spec.hidden),
        (CONFIG.intermediate, spec.intermediate),
        (CONFIG.layers, spec.layers),
        (CONFIG.heads, spec.heads),
        (CONFIG.kv_heads, spec.kv_heads),
        (CONFIG.head_dim, spec.head_dim),
        (CONFIG.context, spec.context_max),
    ];
    counts.into_iter().for_each(|(key, count)| config[key] = count.into());
    Ok(config)
}

fn find(key: &str, name: Option<&str>) -> Result<&'static Family, ModelError> {
    let supported = || FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", ");
    let name = name.ok_or_else(|| wrong(key, format!("is missing; supported families are: {}", supported())))?;
    FAMILIES
        .iter()
        .find(|family| family.name == name)
        .ok_or_else(|| wrong(key, format!("is {name:?}; supported families are: {}", supported())))
}

/// What the two formats say in different ways.
struct Rest {
    rope_theta: f64,
    rope_scaling: RopeScaling,
    tied_head: bool,
}

fn dense(family: &Family, names: &Names, keys: &Keys<'_>, rest: Rest) -> Result<Spec, ModelError> {
    let hidden = keys.count(names.hidden)?;
    let heads = keys.count(names.heads)?;
    let kv_heads = keys.count_or(names.kv_heads, heads)?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(keys.wrong(names.kv_heads, format!("is {kv_heads}, which does not divide the {heads} heads")));
    }
    let head_dim = keys.count_or(names.head_dim, hidden / heads)?;
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(keys.wrong(names.head_dim, format!("is {head_dim}; an even number is expected")));
    }
    if let RopeScaling::Factors(factors) = &rest.rope_scaling
        && factors.len() != head_dim / 2
    {
        let (name, found, expected) = (GGUF_ROPE_FACTORS.into(), vec![factors.len()], vec![head_dim / 2]);
        return Err(ModelError::Shape { name, found, expected });
    }
    Ok(Spec {
        family: family.name.into(),
        vocab: keys.count(names.vocab)?,
        hidden,
        // 0 where layers are attention alone, as small models of our own have them.
        intermediate: if keys.is_zero(names.intermediate) { 0 } else { keys.count(names.intermediate)? },
        layers: keys.count(names.layers)?,
        heads,
        kv_heads,
        head_dim,
        norm_eps: keys.positive(names.norm_eps)?.unwrap_or(1e-6),
        rope_theta: rest.rope_theta,
        rope_scaling: rest.rope_scaling,
        activation: Activation::Silu,
        tied_head: rest.tied_head,
        context_max: keys.count_or(names.context, 2048)?,
    })
}

/// transformers 5 writes `rope_parameters` with everything in it; before, `rope_theta` stood beside `rope_scaling`.
fn config_rope(config: &Value, keys: &Keys<'_>) -> Result<(f64, RopeScaling), ModelError> {
    let present = |key: &&str| config.get(key).is_some_and(|value| !value.is_null());
    let Some(parent) = ["rope_parameters", "rope_scaling"].into_iter().find(present) else {
        return Ok((keys.positive("rope_theta")?.unwrap_or(10_000.0), RopeScaling::None));
    };
    let parameters = &config[parent];
    if !parameters.is_object() {
        return Err(wrong(parent, format!("is {parameters}; an object is expected")));
    }
    let rope = Keys { prefix: format!("{parent}."), lookup: &|key| parameters.get(&key[parent.len() + 1..]).cloned() };
    let theta = rope.positive("rope_theta")?.or(keys.positive("rope_theta")?).unwrap_or(10_000.0);
    let (key, kind) = match rope.text("rope_type")? {
        Some(kind) => ("rope_type", Some(kind)),
        None => ("type", rope.text("type")?),
    };
    if let Some(partial) = rope.positive("partial_rotary_factor")?.filter(|partial| *partial != 1.0) {
        return Err(rope.wrong("partial_rotary_factor", format!("is {partial}; only 1 is supported")));
    }
    let scaling = match kind.as_deref() {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: rope.required("factor")? },
        Some("llama3") => llama3(&rope)?,
        Some(other) => return Err(rope.wrong(key, format!("is {other:?}; supported are default, linear, llama3"))),
    };
    Ok((theta, scaling))
}

fn llama3(rope: &Keys<'_>) -> Result<RopeScaling, ModelError> {
    let low_frequency = rope.required("low_freq_factor")?;
    let high_frequency = rope.required("high_freq_factor")?;
    if high_frequency <= low_frequency {
        return Err(
            rope.wrong("high_freq_factor", format!("is {high_frequency}; more than low_freq_factor is expected"))
        );
    }
    let original_context = rope.required("original_max_position_embeddings")?;
    Ok(RopeScaling::Llama3 { factor: rope.required("factor")?, low_frequency, high_frequency, original_context })
}

fn gguf_rope(keys: &Keys<'_>, factors: Option<Vec<f64>>) -> Result<(f64, RopeScaling), ModelError> {
    let theta = keys.positive("rope.freq_base")?.unwrap_or(10_000.0);
    let key = "rope.scaling.type";
    let kind = keys.text(key)?;
    let scaling = match (kind.as_deref(), factors) {
        (None | Some("none"), Some(factors)) => {
            if let Some(factor) = factors.iter().find(|factor| !factor.is_finite() || **factor <= 0.0) {
                return Err(wrong(GGUF_ROPE_FACTORS, format!("holds {factor}; positive numbers are expected")));
            }
            RopeScaling::Factors(factors)
        }
        // Files from before `rope.scaling.*` have `rope.scale_linear`.
        (None | Some("none"), None) => match keys.positive("rope.scale_linear")? {
            None | Some(1.0) => RopeScaling::None,
            Some(factor) => RopeScaling::Linear { factor },
        },
        (Some("linear"), None) => RopeScaling::Linear { factor: keys.required("rope.scaling.factor")? },
        (Some("linear"), Some(_)) => {
            return Err(keys.wrong(key, format!("is \"linear\" beside {GGUF_ROPE_FACTORS}: one of them is expected")));
        }
        (Some(other), _) => return Err(keys.wrong(key, format!("is {other:?}; supported are none, linear"))),
    };
    Ok((theta, scaling))
}

fn wrong(key: &str, what: String) -> ModelError {
    ModelError::Config { key: key.to_owned(), what }
}

/// Hyper-parameters by key, whatever file they come from. Null is absent.
struct Keys<'a> {
    prefix: String,
    lookup: &'a dyn Fn(&str) -> Option<Value>,
}

impl Keys<'_> {
    /// No count of an architecture is larger: products of three fit in 64 bits.
    const COUNT_MAX: u64 = 1 << 21;

    fn wrong(&self, key: &str, what: String) -> ModelError {
        wrong(&format!("{}{key}", self.prefix), what)
    }

    fn get<T>(&self, key: &str, expected: &str, read: fn(&Value) -> Option<T>) -> Result<Option<T>, ModelError> {
        match (self.lookup)(&format!("{}{key}", self.prefix)).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(value) => read(&value)
                .map(Some)
                .ok_or_else(|| self.wrong(key, format!("is {}; {expected} is expected", shortened(&value)))),
        }
    }

    fn text(&self, key: &str) -> Result<Option<String>, ModelError> {
        self.get(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.get(key, "true or false", Value::as_bool)
    }

    fn positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.get(key, "a positive number", |value| value.as_f64().filter(|v| v.is_finite() && *v > 0.0))
    }

    fn required(&self, key: &str) -> Result<f64, ModelError> {
        self.positive(key)?.ok_or_else(|| self.wrong(key, "is missing; a positive number is expected".into()))
    }

    fn optional_count(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.get(key, "an integer from 1 to 2097152", |value| {
            value.as_u64().filter(|n| (1..=Self::COUNT_MAX).contains(n)).map(|n| n as usize)
        })
    }

    fn is_zero(&self, key: &str) -> bool {
        (self.lookup)(&format!("{}{key}", self.prefix)).is_some_and(|value| value.as_u64() == Some(0))
    }

    fn count(&self, key: &str) -> Result<usize, ModelError> {
        self.optional_count(key)?.ok_or_else(|| self.wrong(key, "is missing; a positive integer is expected".into()))
    }

    fn count_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        Ok(self.optional_count(key)?.unwrap_or(default))
    }

    fn only(&self, key: &str, supported: &str) -> Result<(), ModelError> {
        match self.text(key)? {
            Some(other) if other != supported => {
                Err(self.wrong(key, format!("is {other:?}; only {supported:?} is supported")))
            }
            _ => Ok(()),
        }
    }

    fn equal(&self, key: &str, expected: usize) -> Result<(), ModelError> {
        match self.optional_count(key)? {
            Some(found) if found != expected => {
                Err(self.wrong(key, format!("is {found}; the width of a head, {expected}, is expected")))
            }
            _ => Ok(()),
        }
    }
}

/// A value as an error shows it.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}
