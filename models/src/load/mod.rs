//! Checkpoints on disk: a GGUF file or a Hugging Face folder, mapped, checked against its configuration, read tensor by tensor.
//! And the folder that a model of our own is written to. Never knows what a tensor is used for.

mod cursor;
mod encoding;
mod gguf;
mod map;
mod metadata;
mod safetensors;
mod save;

pub use gguf::Gguf;
pub use metadata::Metadata;
pub use save::save;

use crate::{
    LayerSlot, ModelError, Slot, Spec, TensorSource,
    families::{self, Family},
};
use candle_core::{Device, Tensor};
use encoding::Encoding;
use map::Mapped;
use socius_kernels::quantised::Quantised;
use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io::Read,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A JSON file beside weights has at most so many bytes; the index of a model of a thousand layers has about one million.
const JSON_BYTES_MAX: u64 = 64 << 20;

/// A tensor's place: bytes of one of the mapped files.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    file: usize,
    range: Range<usize>,
    shape: Vec<usize>,
    encoding: Encoding,
}

/// A checkpoint whose header and shapes have been checked; its weights stay on disk until they are read.
#[derive(Debug)]
pub struct Checkpoint {
    /// The architecture.
    pub spec: Spec,
    path: PathBuf,
    family: &'static Family,
    metadata: Option<Metadata>,
    files: Vec<Arc<Mapped>>,
    tensors: BTreeMap<String, Stored>,
}

impl Checkpoint {
    /// Opens a GGUF file, or a folder with `config.json` and safetensors.
    ///
    /// # Errors
    /// Names the file, key or tensor that is wrong, and what was expected: everything that [`TensorSource::read`] relies on is
    /// checked here.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let checkpoint = if path.is_dir() { Self::open_folder(path)? } else { Self::open_gguf(path)? };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    fn open_folder(path: &Path) -> Result<Self, ModelError> {
        let config = read_json(&path.join("config.json"))?;
        let (family, spec) = families::from_config(&config)?;
        let weights = safetensors::Shards::open(path)?;
        let (files, tensors) = (weights.files, weights.tensors);
        Ok(Self { spec, path: path.to_owned(), family, metadata: None, files, tensors })
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let gguf = gguf::Gguf::open(path)?;
        let rope_factors = gguf.rope_factors()?;
        let tied_head = !gguf.tensors.contains_key(&families::gguf_name(Slot::Head));
        let (family, spec) = families::from_gguf(&gguf.metadata, families::GgufFacts { rope_factors, tied_head })?;
        let metadata = Some(gguf.metadata);
        Ok(Self { spec, path: path.to_owned(), family, metadata, files: vec![gguf.file], tensors: gguf.tensors })
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold the weights: their content is the identity of the base.
    pub fn weight_files(&self) -> Vec<&Path> {
        self.files.iter().map(|file| file.path()).collect()
    }

    /// A GGUF file's metadata; none for a folder.
    pub fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// The name of the tensor in `slot`, as this checkpoint spells it.
    fn name(&self, slot: Slot) -> String {
        match self.metadata {
            Some(_) => families::gguf_name(slot),
            None => slot.hugging_face_name(),
        }
    }

    /// Every slot has a tensor of its shape, and every tensor has a slot.
    fn check(&self) -> Result<(), ModelError> {
        let mut known = HashSet::new();
        for slot in self.spec.slots() {
            self.stored(slot)?;
            known.insert(self.name(slot));
        }
        match self.tensors.keys().find(|name| !known.contains(*name) && !families::is_ignored(name)) {
            None => Ok(()),
            Some(name) => {
                let what = format!("tensor {name} is not part of a {} model", self.family.name);
                Err(ModelError::Format { path: self.path.clone(), what })
            }
        }
    }

    fn stored(&self, slot: Slot) -> Result<&Stored, ModelError> {
        let (name, expected) = (self.name(slot), self.spec.shape(slot));
        match self.tensors.get(&name) {
            None => Err(ModelError::MissingTensor { name, expected: format!("shape {expected:?}") }),
            Some(stored) if stored.shape != expected => {
                Err(ModelError::Shape { name, found: stored.shape.clone(), expected })
            }
            Some(stored) => Ok(stored),
        }
    }

    /// Whether the rows of the tensor in `slot` are in GGUF's rotary order.
    fn is_permuted(&self, slot: Slot) -> bool {
        let rotated = matches!(slot, Slot::Layer(_, LayerSlot::Q | LayerSlot::K));
        rotated && self.metadata.is_some() && self.family.permuted_in_gguf
    }
}

impl TensorSource for Checkpoint {
    fn read(&self, slot: Slot) -> Result<Tensor, ModelError> {
        let stored = self.stored(slot)?;
        let mut values = stored.encoding.decode(&self.files[stored.file].bytes()[stored.range.clone()]);
        if self.is_permuted(slot) {
            values = unpermuted(&values, stored.shape[1], self.spec.head_dim);
        }
        Ok(Tensor::from_vec(values, stored.shape.as_slice(), &Device::Cpu)?)
    }

    fn read_quantised(&self, slot: Slot) -> Result<Option<Quantised>, ModelError> {
        let stored = self.stored(slot)?;
        let (Some(format), &[outputs, inputs]) = (stored.encoding.kept(), stored.shape.as_slice()) else {
            return Ok(None);
        };
        let bytes = &self.files[stored.file].bytes()[stored.range.clone()];
        let row_bytes = bytes.len() / outputs.max(1);
        let permuted = self.is_permuted(slot);
        let row = |output| {
            let source = if permuted { permuted_row(output, self.spec.head_dim) } else { output };
            &bytes[source * row_bytes..][..row_bytes]
        };
        Ok(Some(Quantised::new(format, (outputs, inputs), row)))
    }
}

/// Puts the rows of a GGUF Llama's Q or K (`[heads · head_dim, width]`) back: GGUF pairs the two rotated rows as neighbours
/// (row `2 i + half` of a head), the Hugging Face implementation half a head apart (row `half · head_dim / 2 + i`).
fn unpermuted(values: &[f32], width: usize, head_dim: usize) -> Vec<f32> {
    let rows = values.len() / width;
    (0..rows).flat_map(|row| &values[permuted_row(row, head_dim) * width..][..width]).copied().collect()
}

/// Where GGUF has row `row` of a Llama's Q or K.
fn permuted_row(row: usize, head_dim: usize) -> usize {
    let (head, within, pairs) = (row / head_dim, row % head_dim, head_dim / 2);
    head * head_dim + 2 * (within % pairs) + within / pairs
}

/// A JSON file of bounded size.
fn read_json(path: &Path) -> Result<serde_json::Value, ModelError> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    let wrong = |what| ModelError::Format { path: path.to_owned(), what };
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(JSON_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > JSON_BYTES_MAX {
        return Err(wrong(format!("is longer than {JSON_BYTES_MAX} bytes")));
    }
    serde_json::from_slice(&bytes).map_err(|error| wrong(format!("is not JSON: {error}")))
}
