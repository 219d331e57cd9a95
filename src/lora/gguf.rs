//! GGUF LoRA files, as llama.cpp reads and writes them. Knows nothing of skills.
//!
//! The format has one alpha and no rsLoRA: a site's factor is alpha / rank. Written alpha is therefore scale · rank; sites where
//! that differs from the first site's get the quotient multiplied into B, which leaves `scale · B A` as it was.

use super::{Base, LoraConfig, LoraError, LoraWeights, SiteConfig, config::sites, names::gguf_tensor};
use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file},
};
use socius_models::{Gguf, Metadata, Projection, Site, SiteParameters, Slot, Spec};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    io::Cursor,
    path::Path,
};

const FILE: &str = "GGUF adapter";
const ALPHA: &str = "adapter.lora.alpha";

/// `lora` as a GGUF adapter of `base`, in f32. The same adapter gives the same bytes.
///
/// # Errors
/// If a folded value is not finite; of a prefix, which has no such form.
pub fn to_gguf(lora: &LoraWeights, base: Base<'_>) -> Result<Vec<u8>, LoraError> {
    if lora.layout.positions() > 0 {
        return Err(LoraError::config("positions", "GGUF has no trained prefixes; export it as a PEFT directory"));
    }
    let text = |text: &str| gguf_file::Value::String(text.to_owned());
    let alpha = lora.layout.sites().first().map_or(1.0, |site| f64::from(site.scale) * site.rank as f64) as f32;
    let metadata = [
        ("general.type", text("adapter")),
        ("general.architecture", text(&base.spec.family)),
        ("general.name", text(base.name)),
        ("adapter.type", text("lora")),
        (ALPHA, gguf_file::Value::F32(alpha)),
    ];
    let mut tensors = Vec::with_capacity(2 * lora.layout.sites().len());
    for site in lora.layout.sites() {
        let stem = gguf_tensor(site.site);
        let b = folded(site, site.b_of(&lora.theta), alpha, &stem)?;
        let b = permute_rows(base.spec, site, &b, Direction::ToGguf);
        let a = site.a_of(&lora.theta).to_vec();
        tensors.push((format!("{stem}.lora_a"), quantised(a, (site.rank, site.inputs))?));
        tensors.push((format!("{stem}.lora_b"), quantised(b.into_owned(), (site.outputs, site.rank))?));
    }
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut bytes = Cursor::new(Vec::new());
    gguf_file::write(&mut bytes, &metadata, &tensors).map_err(malformed)?;
    Ok(bytes.into_inner())
}

/// Checks the GGUF adapter at `path` against `base` and reads it; whatever type its tensors have, they become f32.
///
/// # Errors
/// Names the key or the tensor that is wrong, unsupported or of another base.
pub fn from_gguf(path: &Path, base: Base<'_>) -> Result<LoraWeights, LoraError> {
    let file = Gguf::open(path)?;
    let alpha = check_metadata(file.metadata(), base)?;
    let ranks = check_tensors(&file, base.spec)?;
    let config = configuration(&ranks, alpha, base.spec);
    let layout = config.layout(base.spec)?;
    let mut theta = vec![0.0; layout.len()];
    for site in layout.sites() {
        let stem = gguf_tensor(site.site);
        let (a, b) = site.factors_mut(&mut theta);
        a.copy_from_slice(&values(&file, &format!("{stem}.lora_a"))?);
        let stored = values(&file, &format!("{stem}.lora_b"))?;
        b.copy_from_slice(&permute_rows(base.spec, site, &stored, Direction::FromGguf));
    }
    Ok(LoraWeights { config, layout, theta })
}

fn malformed(error: candle_core::Error) -> LoraError {
    LoraError::Format { file: FILE.into(), what: error.to_string() }
}

fn quantised(values: Vec<f32>, shape: (usize, usize)) -> Result<QTensor, LoraError> {
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).map_err(malformed)?;
    QTensor::quantize(&tensor, GgmlDType::F32).map_err(malformed)
}

/// B times what the site's factor is above alpha / rank.
fn folded<'b>(site: &SiteParameters, b: &'b [f32], alpha: f32, name: &str) -> Result<Cow<'b, [f32]>, LoraError> {
    let own = (f64::from(site.scale) * site.rank as f64) as f32;
    if own == alpha {
        return Ok(Cow::Borrowed(b));
    }
    let factor = own / alpha;
    let b: Vec<f32> = b.iter().map(|value| value * factor).collect();
    match b.iter().all(|value| value.is_finite()) {
        true => Ok(Cow::Owned(b)),
        false => Err(LoraError::tensor(name, format!("overflows when its scale {factor} is folded into B"))),
    }
}

enum Direction {
    ToGguf,
    FromGguf,
}

/// Puts B's rows into the order of the other format. Llama-family GGUF files interleave the two halves of each rotary head:
/// row (head, half, i) of Hugging Face is row (head, i, half) there.
fn permute_rows<'b>(spec: &Spec, site: &SiteParameters, b: &'b [f32], direction: Direction) -> Cow<'b, [f32]> {
    if spec.family != "llama" || !matches!(site.site.projection, Projection::Q | Projection::K) {
        return Cow::Borrowed(b);
    }
    let half = spec.head_dim / 2;
    let mut out = vec![0.0; b.len()];
    for row in 0..site.outputs {
        let (head, within) = (row / spec.head_dim, row % spec.head_dim);
        let there = head * spec.head_dim + (within % half) * 2 + within / half;
        let (from, to) = match direction {
            Direction::ToGguf => (row, there),
            Direction::FromGguf => (there, row),
        };
        out[to * site.rank..(to + 1) * site.rank].copy_from_slice(&b[from * site.rank..(from + 1) * site.rank]);
    }
    Cow::Owned(out)
}

/// Alpha, once everything else that the metadata says has been found to fit.
fn check_metadata(metadata: &Metadata, base: Base<'_>) -> Result<f64, LoraError> {
    const ARCHITECTURE: &str = "general.architecture";
    let missing = |key: &str| LoraError::config(key, "is missing");
    let text = |key: &str| metadata.text(key)?.ok_or_else(|| missing(key));
    for (key, expected) in [("general.type", "adapter"), ("adapter.type", "lora")] {
        let found = text(key)?;
        if found != expected {
            return Err(LoraError::config(key, format!("found {found:?}; {expected:?} is expected")));
        }
    }
    if let Some(key) = metadata.keys().find(|key| key.starts_with("adapter.alora.")) {
        return Err(LoraError::config(key, "adapters that are switched on by tokens are not supported"));
    }
    let found = text(ARCHITECTURE)?;
    if found != base.spec.family {
        let expected = base.spec.family.clone();
        return Err(LoraError::ForeignBase { key: ARCHITECTURE, found: found.to_owned(), expected });
    }
    metadata.float(ALPHA)?.ok_or_else(|| missing(ALPHA))
}

/// The rank of every site that has both factors, of a shape that fits.
fn check_tensors(file: &Gguf, spec: &Spec) -> Result<BTreeMap<Site, usize>, LoraError> {
    let mut shapes: BTreeMap<&str, &[usize]> = file.tensors().collect();
    let mut ranks = BTreeMap::new();
    for site in sites(spec) {
        let stem = gguf_tensor(site);
        let (a, b) = (format!("{stem}.lora_a"), format!("{stem}.lora_b"));
        let (shape_a, shape_b) = match (shapes.remove(a.as_str()), shapes.remove(b.as_str())) {
            (None, None) => continue,
            (Some(shape_a), Some(shape_b)) => (shape_a, shape_b),
            (only_a, _) => {
                let missing = if only_a.is_some() { b } else { a };
                return Err(LoraError::tensor(missing, "is missing beside its other factor"));
            }
        };
        let shape = spec.shape(Slot::Layer(site.layer, site.projection.slot()));
        let rank = shape_a.first().copied().unwrap_or(0);
        for (name, found, expected) in [(a, shape_a, [rank, shape[1]]), (b, shape_b, [shape[0], rank])] {
            if found != expected {
                let what = format!("has shape {found:?}, but rank and base need {expected:?}");
                return Err(LoraError::tensor(name, what));
            }
        }
        ranks.insert(site, rank);
    }
    match shapes.keys().next() {
        Some(name) => Err(LoraError::tensor(*name, "is no LoRA factor of a linear of this base's layers")),
        None => Ok(ranks),
    }
}

fn configuration(ranks: &BTreeMap<Site, usize>, alpha: f64, spec: &Spec) -> LoraConfig {
    let rank = ranks.values().next().copied().unwrap_or(1);
    let projections: BTreeSet<Projection> = ranks.keys().map(|site| site.projection).collect();
    let mut config = LoraConfig::uniform(rank, alpha, &projections.into_iter().collect::<Vec<_>>());
    config.overrides = ranks
        .iter()
        .filter(|(_, own)| **own != rank)
        .map(|(&site, &rank)| (site, SiteConfig { rank, alpha }))
        .collect();
    config.without = sites(spec).filter(|&site| config.at(site).is_some() && !ranks.contains_key(&site)).collect();
    config
}

/// The values of a tensor whose shape has been checked.
fn values(file: &Gguf, name: &str) -> Result<Vec<f32>, LoraError> {
    let values = file.values(name).expect("the layout is of the file's own tensors");
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(LoraError::tensor(name, format!("holds {value}; every value must be finite"))),
        None => Ok(values),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{base, mixed, uniform};
    use super::*;

    /// What reading a file of these bytes gives.
    fn read(bytes: &[u8], spec: &Spec) -> Result<LoraWeights, LoraError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, bytes).unwrap();
        from_gguf(&path, base(spec))
    }

    #[test]
    fn an_adapter_survives_the_way_out_and_back() {
        let spec = Spec::tiny();
        let lora = uniform(&spec);
        let bytes = to_gguf(&lora, base(&spec)).unwrap();
        assert_eq!(bytes, to_gguf(&lora, base(&spec)).unwrap(), "the same bytes each time");
        assert_eq!(read(&bytes, &spec).unwrap(), lora);
    }

    #[test]
    fn mixed_scales_are_folded_into_b_so_that_every_product_stays() {
        let spec = Spec::tiny();
        let lora = mixed(&spec);
        let back = read(&to_gguf(&lora, base(&spec)).unwrap(), &spec).unwrap();
        assert_eq!(back.layout.sites().len(), lora.layout.sites().len());
        for (old, new) in lora.layout.sites().iter().zip(back.layout.sites()) {
            assert_eq!((old.site, old.rank), (new.site, new.rank));
            assert_eq!(old.a_of(&lora.theta), new.a_of(&back.theta));
            for (b, folded) in old.b_of(&lora.theta).iter().zip(new.b_of(&back.theta)) {
                let (was, is) = (old.scale * b, new.scale * folded);
                assert!((was - is).abs() <= 4.0 * f32::EPSILON * was.abs(), "{was} became {is}");
            }
        }
    }

    #[test]
    fn query_and_key_rows_of_b_are_interleaved_and_the_others_are_not() {
        let spec = Spec::tiny();
        let layout = LoraConfig::uniform(1, 1.0, &[Projection::K, Projection::V]).layout(&spec).unwrap();
        let rows: Vec<f32> = (0..12).map(|row| row as f32).collect();
        let k = permute_rows(&spec, &layout.sites()[0], &rows, Direction::ToGguf);
        // Two heads of width 6: (half, i) becomes (i, half).
        assert_eq!(k[..], [0., 3., 1., 4., 2., 5., 6., 9., 7., 10., 8., 11.]);
        assert_eq!(permute_rows(&spec, &layout.sites()[1], &rows, Direction::ToGguf), rows);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_named() {
        let spec = Spec::tiny();
        let write = |edit: fn(&mut Vec<(&str, gguf_file::Value)>, &mut Vec<(&str, (usize, usize))>)| {
            let text = |text: &str| gguf_file::Value::String(text.to_owned());
            let mut metadata = vec![
                ("general.type", text("adapter")),
                ("general.architecture", text("llama")),
                ("adapter.type", text("lora")),
                (ALPHA, gguf_file::Value::F32(4.0)),
            ];
            let mut tensors = vec![("blk.0.attn_q.weight.lora_a", (2, 36)), ("blk.0.attn_q.weight.lora_b", (36, 2))];
            edit(&mut metadata, &mut tensors);
            let built: Vec<_> =
                tensors.iter().map(|(name, (r, c))| (*name, quantised(vec![0.5; r * c], (*r, *c)).unwrap())).collect();
            let mut bytes = Cursor::new(Vec::new());
            let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
            let built: Vec<_> = built.iter().map(|(name, tensor)| (*name, tensor)).collect();
            gguf_file::write(&mut bytes, &metadata, &built).unwrap();
            bytes.into_inner()
        };
        assert!(read(&write(|_, _| {}), &spec).is_ok());
        let rows = [
            (write(|metadata, _| metadata[0].1 = gguf_file::Value::String("model".into())), "general.type"),
            (write(|metadata, _| metadata[1].1 = gguf_file::Value::String("qwen2".into())), "general.architecture"),
            (write(|metadata, _| metadata.truncate(3)), ALPHA),
            (write(|metadata, _| metadata.push(("adapter.alora.x", gguf_file::Value::U8(1)))), "adapter.alora.x"),
            (write(|_, tensors| tensors.truncate(1)), "blk.0.attn_q.weight.lora_b"),
            (write(|_, tensors| tensors[1].1 = (35, 2)), "blk.0.attn_q.weight.lora_b"),
            (write(|_, tensors| tensors.push(("blk.3.attn_q.weight.lora_a", (1, 1)))), "blk.3.attn_q.weight.lora_a"),
            (write(|_, tensors| tensors.clear()), "projections"),
            (b"GGUF".to_vec(), FILE),
            (write(|_, _| {})[..400].to_vec(), FILE),
            // The length of the first key: more than any memory has.
            ([&write(|_, _| {})[..24], &(1_u64 << 60).to_le_bytes()].concat(), FILE),
        ];
        for (bytes, name) in rows {
            let error = read(&bytes, &spec).unwrap_err().to_string();
            assert!(error.contains(name), "{name}: {error}");
        }
    }
}
