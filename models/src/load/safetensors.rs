//! Weights of a Hugging Face folder: model.safetensors, or the shards that model.safetensors.index.json names.
//! Knows no architecture.

use super::{Stored, encoding::Encoding, map::Mapped, read_json};
use crate::ModelError;
use safetensors::{Dtype, SafeTensors, tensor::TensorInfo};
use std::{
    collections::BTreeMap,
    path::{Component, Path},
    sync::Arc,
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Mapped files, and every tensor's place in them.
#[derive(Debug)]
pub(super) struct Shards {
    pub(super) files: Vec<Arc<Mapped>>,
    pub(super) tensors: BTreeMap<String, Stored>,
}

impl Shards {
    /// The single file if there is one, else the shards of the index.
    pub(super) fn open(folder: &Path) -> Result<Self, ModelError> {
        let mut shards = Self { files: Vec::new(), tensors: BTreeMap::new() };
        if folder.join(SINGLE).exists() {
            shards.add(&folder.join(SINGLE))?;
        } else if folder.join(INDEX).exists() {
            shards.add_indexed(folder)?;
        } else {
            let what = format!("holds neither {SINGLE} nor {INDEX}");
            return Err(ModelError::Format { path: folder.to_owned(), what });
        }
        Ok(shards)
    }

    fn add_indexed(&mut self, folder: &Path) -> Result<(), ModelError> {
        let path = folder.join(INDEX);
        let wrong = |what: String| ModelError::Format { path: path.clone(), what };
        let index = read_json(&path)?;
        let map = index.get("weight_map").and_then(|map| map.as_object());
        let map =
            map.ok_or_else(|| wrong("weight_map is missing; an object of tensor to file name is expected".into()))?;
        let mut by_file: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in map {
            let file = file.as_str().filter(|file| is_plain_name(file));
            let file =
                file.ok_or_else(|| wrong(format!("tensor {tensor}: a file name in the same folder is expected")))?;
            by_file.entry(file).or_default().push(tensor);
        }
        for (file, tensors) in by_file {
            self.add(&folder.join(file))?;
            if let Some(missing) = tensors.iter().find(|tensor| !self.tensors.contains_key(**tensor)) {
                return Err(wrong(format!("tensor {missing} is not in {file}")));
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path) -> Result<(), ModelError> {
        let file = Arc::new(Mapped::open(path)?);
        let (header, metadata) = SafeTensors::read_metadata(file.bytes()).map_err(|error| {
            file.error(format!(
                "{error}; a whole safetensors file is expected, this one has {} bytes",
                file.bytes().len()
            ))
        })?;
        for (name, info) in metadata.tensors() {
            // The data follows the eight bytes of the header's length, and the header.
            let stored =
                stored(info, 8 + header, self.files.len()).map_err(|e| file.error(format!("tensor {name}: {e}")))?;
            if self.tensors.insert(name.clone(), stored).is_some() {
                return Err(file.error(format!("tensor {name} is also in another file")));
            }
        }
        self.files.push(file);
        Ok(())
    }
}

fn is_plain_name(name: &str) -> bool {
    matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)])
}

fn stored(info: &TensorInfo, data: usize, file: usize) -> Result<Stored, String> {
    let encoding = match info.dtype {
        Dtype::F32 => Encoding::F32,
        Dtype::F16 => Encoding::F16,
        Dtype::BF16 => Encoding::Bf16,
        other => return Err(format!("type {other:?} is not supported; supported are F32, F16, BF16")),
    };
    let (start, end) = info.data_offsets;
    Ok(Stored { file, range: data + start..data + end, shape: info.shape.clone(), encoding })
}
