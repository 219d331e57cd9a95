//! Writes a model of our own as a Hugging Face folder, which [`super::Checkpoint`] and transformers read. Never a tokenizer.

use crate::{ModelError, Spec, TensorSource, families, half};
use safetensors::{Dtype, tensor::TensorView};
use std::{fs, path::Path};

/// Writes `config.json` and `model.safetensors` (f32) into `folder`, which is made if need be.
///
/// # Errors
/// A file that cannot be written; what the source says; a rotation that is stretched.
pub fn save(folder: &Path, spec: &Spec, source: &dyn TensorSource) -> Result<(), ModelError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| ModelError::Io { path, source }
    };
    let mut tensors = Vec::new();
    for slot in spec.slots() {
        let values = half::values(spec, source, slot)?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.push((slot.hugging_face_name(), spec.shape(slot), bytes));
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a shape fits its bytes"))
    });
    let format = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let weights = safetensors::serialize(views, Some(format)).expect("plain tensors serialise");
    let config = serde_json::to_vec_pretty(&families::to_config(spec)?).expect("plain data serialises");
    fs::create_dir_all(folder).map_err(io(folder))?;
    for (name, bytes) in [("config.json", config), ("model.safetensors", weights)] {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(io(&path))?;
    }
    Ok(())
}
