//! PEFT adapter directories: `adapter_config.json` beside `adapter_model.safetensors`. Knows nothing of skills.

mod config;
mod weights;

use super::{Base, LoraError, LoraWeights};
use crate::common::write_atomic;
use std::{
    fs,
    path::{Path, PathBuf},
};

const CONFIG_FILE: &str = "adapter_config.json";
/// The file of a PEFT directory that holds the tensors.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const PICKLE_FILE: &str = "adapter_model.bin";

/// The two files of a PEFT directory, as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeftFiles {
    /// `adapter_config.json`.
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`.
    pub weights: Vec<u8>,
}

/// `adapter_model.safetensors` of `lora`.
pub(super) fn tensors(lora: &LoraWeights) -> Vec<u8> {
    weights::write(&lora.layout, &lora.theta)
}

impl PeftFiles {
    /// `lora` in f32, as an adapter of `base`. The same adapter gives the same bytes.
    pub fn new(lora: &LoraWeights, base: Base<'_>) -> Self {
        Self { config: config::write(&lora.config, base), weights: tensors(lora) }
    }

    /// Checks both files against `base` and reads them; f32, f16 and bf16 tensors become f32.
    ///
    /// # Errors
    /// Names the key or the tensor that is wrong, unsupported or of another base.
    pub fn parse(&self, base: Base<'_>) -> Result<LoraWeights, LoraError> {
        let config = config::read(&self.config, base)?;
        let layout = config.layout(base.spec)?;
        let theta = weights::read(&self.weights, &layout)?;
        Ok(LoraWeights { config, layout, theta })
    }

    /// Reads a directory.
    ///
    /// # Errors
    /// If a file is missing or unreadable; a pickle in place of the safetensors file is refused, since it can run code.
    pub fn read(dir: &Path) -> Result<Self, LoraError> {
        if !dir.join(WEIGHTS_FILE).exists() && dir.join(PICKLE_FILE).exists() {
            let what = "a pickle can run code when it is read; save the adapter with safe_serialization=True instead";
            return Err(LoraError::Format { file: dir.join(PICKLE_FILE).display().to_string(), what: what.into() });
        }
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read(&path).map_err(|source| LoraError::Io { path, source })
        };
        Ok(Self { config: read(CONFIG_FILE)?, weights: read(WEIGHTS_FILE)? })
    }

    /// Writes a directory, made if it is missing, and returns its files; files of the same names are replaced.
    ///
    /// # Errors
    /// If the directory or a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<[PathBuf; 2], LoraError> {
        fs::create_dir_all(dir).map_err(|source| LoraError::Io { path: dir.into(), source })?;
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            match write_atomic(&path, bytes) {
                Ok(()) => Ok(path),
                Err(source) => Err(LoraError::Io { path, source }),
            }
        };
        // The configuration last: whoever sees it finds the tensors too.
        let weights = write(WEIGHTS_FILE, &self.weights)?;
        Ok([write(CONFIG_FILE, &self.config)?, weights])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{base, mixed};
    use super::*;
    use socius_models::Spec;

    #[test]
    fn a_directory_reads_back_as_it_was_written_and_a_pickle_is_refused() {
        let spec = Spec::tiny();
        let lora = mixed(&spec);
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("deep/adapter");
        PeftFiles::new(&lora, base(&spec)).write(&dir).unwrap();
        assert_eq!(PeftFiles::read(&dir).unwrap().parse(base(&spec)).unwrap(), lora);

        fs::rename(dir.join(WEIGHTS_FILE), dir.join(PICKLE_FILE)).unwrap();
        let error = PeftFiles::read(&dir).unwrap_err().to_string();
        assert!(error.contains(PICKLE_FILE) && error.contains("safe_serialization"), "{error}");
        fs::remove_file(dir.join(PICKLE_FILE)).unwrap();
        assert!(matches!(PeftFiles::read(&dir), Err(LoraError::Io { path, .. }) if path.ends_with(WEIGHTS_FILE)));
    }
}
