//! `adapter_model.safetensors`: θ as named tensors, and back.

use crate::lora::{LoraError, names::module_path};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use socius_models::{Layout, SiteParameters};
use std::collections::{BTreeMap, HashMap};

/// What peft calls the keys and values of a prefix: `[positions, layers · 2 · kv_dim]`, of each position a layer's keys, then its values.
const PREFIX: &str = "prompt_embeddings";

/// Names of A and B.
fn keys(site: &SiteParameters) -> [String; 2] {
    ["A", "B"].map(|factor| format!("base_model.model.{}.lora_{factor}.weight", module_path(site.site)))
}

pub(super) fn write(layout: &Layout, theta: &[f32]) -> Vec<u8> {
    if layout.positions() > 0 {
        return write_prefix(layout, theta);
    }
    let bytes: Vec<u8> = theta.iter().flat_map(|value| value.to_le_bytes()).collect();
    let part = |start: usize, rows: usize, columns: usize| {
        let bytes = &bytes[4 * start..4 * (start + rows * columns)];
        TensorView::new(Dtype::F32, vec![rows, columns], bytes).expect("a slice of the length that its shape needs")
    };
    let mut tensors = BTreeMap::new();
    for site in layout.sites() {
        let [a, b] = keys(site);
        tensors.insert(a, part(site.a, site.rank, site.inputs));
        tensors.insert(b, part(site.b, site.outputs, site.rank));
    }
    serialise(tensors)
}

fn serialise(tensors: BTreeMap<String, TensorView<'_>>) -> Vec<u8> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(tensors, Some(metadata)).expect("names and shapes of a layout are well-formed")
}

fn write_prefix(layout: &Layout, theta: &[f32]) -> Vec<u8> {
    let [parts, positions, width] = prefix_shape(layout);
    let values = exchanged(theta, [parts, positions, width]);
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![positions, parts * width], &bytes).expect("a value for each place");
    serialise(BTreeMap::from([(PREFIX.to_owned(), view)]))
}

/// Keys or values of a layer, positions, and the width of one: how θ of a prefix lies.
fn prefix_shape(layout: &Layout) -> [usize; 3] {
    let (part, positions) = (layout.keys_and_values(0)[0].len(), layout.positions());
    [layout.len() / part, positions, part / positions]
}

/// `[a, b, width]` as `[b, a, width]`.
fn exchanged(values: &[f32], [a, b, width]: [usize; 3]) -> Vec<f32> {
    let row = |i: usize, j: usize| &values[(i * b + j) * width..][..width];
    (0..b).flat_map(|j| (0..a).flat_map(move |i| row(i, j))).copied().collect()
}

pub(super) fn read(bytes: &[u8], layout: &Layout) -> Result<Vec<f32>, LoraError> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| LoraError::Format { file: super::WEIGHTS_FILE.into(), what: error.to_string() })?;
    let mut expected: BTreeMap<_, _> = layout.sites().iter().flat_map(expected).collect();
    if layout.positions() > 0 {
        let [parts, positions, width] = prefix_shape(layout);
        expected.insert(PREFIX.to_owned(), (0, [positions, parts * width]));
    }
    if let Some(name) = file.names().into_iter().filter(|name| !expected.contains_key(*name)).min() {
        return Err(LoraError::tensor(name, "is nothing that the adapter's settings call for in this base"));
    }
    let mut theta = vec![0.0; layout.len()];
    for (name, (start, shape)) in &expected {
        let tensor = file
            .tensor(name)
            .map_err(|_| LoraError::tensor(name, "is missing, but the adapter's settings call for it"))?;
        if tensor.shape() != shape {
            let what = format!("has shape {:?}, but rank and base need {shape:?}", tensor.shape());
            return Err(LoraError::tensor(name, what));
        }
        fill(&mut theta[*start..start + shape[0] * shape[1]], name, &tensor)?;
    }
    if layout.positions() > 0 {
        let [parts, positions, width] = prefix_shape(layout);
        return Ok(exchanged(&theta, [positions, parts, width]));
    }
    Ok(theta)
}

/// Name, place in θ and shape of A and of B.
fn expected(site: &SiteParameters) -> [(String, (usize, [usize; 2])); 2] {
    let [a, b] = keys(site);
    [(a, (site.a, [site.rank, site.inputs])), (b, (site.b, [site.outputs, site.rank]))]
}

fn fill(out: &mut [f32], name: &str, tensor: &TensorView<'_>) -> Result<(), LoraError> {
    let bytes = tensor.data();
    let two = |pair: &[u8]| [pair[0], pair[1]];
    match tensor.dtype() {
        Dtype::F32 => {
            let quads = bytes.chunks_exact(4).map(|quad| f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]));
            out.iter_mut().zip(quads).for_each(|(out, value)| *out = value);
        }
        Dtype::F16 => {
            let values = bytes.chunks_exact(2).map(|pair| f16::from_le_bytes(two(pair)).to_f32());
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value);
        }
        Dtype::BF16 => {
            let values = bytes.chunks_exact(2).map(|pair| bf16::from_le_bytes(two(pair)).to_f32());
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value);
        }
        other => return Err(LoraError::tensor(name, format!("is of type {other:?}; F32, F16 and BF16 are read"))),
    }
    match out.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(LoraError::tensor(name, format!("holds {value}; every value must be finite"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{mixed, random, uniform};
    use super::*;
    use crate::lora::LoraConfig;
    use socius_models::{Projection, Spec};

    fn file(rows: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
        let views = rows.iter().map(|(name, dtype, shape, bytes)| {
            (name.to_string(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    const A: &str = "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight";
    const B: &str = "base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight";

    fn one_site() -> Layout {
        let spec = Spec { layers: 1, ..Spec::tiny() };
        LoraConfig::uniform(1, 1.0, &[Projection::K]).layout(&spec).unwrap()
    }

    #[test]
    fn values_survive_the_way_out_and_back() {
        let spec = Spec::tiny();
        for lora in [uniform(&spec), mixed(&spec), random(LoraConfig::prefix(5), &spec, 3)] {
            let bytes = write(&lora.layout, &lora.theta);
            assert_eq!(bytes, write(&lora.layout, &lora.theta), "the same bytes each time");
            assert_eq!(read(&bytes, &lora.layout).unwrap(), lora.theta);
        }
    }

    #[test]
    fn a_prefix_lies_in_the_file_as_peft_cuts_it() {
        let spec = Spec::tiny();
        let lora = random(LoraConfig::prefix(3), &spec, 3);
        let bytes = write(&lora.layout, &lora.theta);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = file.tensor("prompt_embeddings").unwrap();
        let width = spec.kv_dim();
        assert_eq!((file.len(), tensor.shape()), (1, &[3, 2 * spec.layers * width][..]));
        // `past_key_values.view(positions, layers * 2, heads, width)`, permuted to layers and cut by two: keys, values.
        for (position, layer, value, i) in [(0, 0, 0, 0), (2, 0, 1, 5), (1, 2, 0, width - 1), (2, 2, 1, 7)] {
            let at = 4 * ((position * spec.layers + layer) * 2 * width + value * width + i);
            let found = f32::from_le_bytes(tensor.data()[at..at + 4].try_into().unwrap());
            let own = lora.layout.keys_and_values(layer)[value].clone();
            assert_eq!(found, lora.theta[own][position * width + i], "{position} {layer} {value} {i}");
        }
    }

    #[test]
    fn half_types_are_read_exactly() {
        let value = 0.15625_f32;
        let rows = [
            (Dtype::F32, value.to_le_bytes().to_vec()),
            (Dtype::F16, f16::from_f32(value).to_le_bytes().to_vec()),
            (Dtype::BF16, bf16::from_f32(value).to_le_bytes().to_vec()),
        ];
        for (dtype, one) in rows {
            let bytes = file(&[(A, dtype, vec![1, 36], one.repeat(36)), (B, dtype, vec![12, 1], one.repeat(12))]);
            assert_eq!(read(&bytes, &one_site()).unwrap(), vec![value; 48], "{dtype:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_is_named() {
        let zeros = |count: usize| vec![0; 4 * count];
        let a = (A, Dtype::F32, vec![1, 36], zeros(36));
        let b = (B, Dtype::F32, vec![12, 1], zeros(12));
        assert!(read(&file(&[a.clone(), b.clone()]), &one_site()).is_ok());
        let nan = f32::NAN.to_le_bytes().repeat(12);
        let rows = [
            (file(std::slice::from_ref(&a)), B),
            (
                file(&[a.clone(), b.clone(), ("lm_head.lora_A.weight", Dtype::F32, vec![1], zeros(1))]),
                "lm_head.lora_A.weight",
            ),
            (file(&[a.clone(), (B, Dtype::F32, vec![1, 12], zeros(12))]), "[12, 1]"),
            (file(&[a.clone(), (B, Dtype::I32, vec![12, 1], zeros(12))]), "I32"),
            (file(&[a.clone(), (B, Dtype::F32, vec![12, 1], nan)]), "finite"),
            (file(&[a, b])[..200].to_vec(), "adapter_model.safetensors"),
            (vec![], "adapter_model.safetensors"),
        ];
        for (bytes, name) in rows {
            let error = read(&bytes, &one_site()).unwrap_err().to_string();
            assert!(error.contains(name), "{name}: {error}");
        }
    }
}
