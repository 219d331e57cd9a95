//! What the targets share: foreign bytes as files, and everything that a checkpoint can then be asked for. Knows no format.

#[path = "../../tests/cli/checkpoint.rs"]
#[allow(dead_code, reason = "adapters are written for tests")]
mod checkpoint;

use socius::{lora::Base, text::Text};
use socius_models::{Checkpoint, Spec, TensorSource};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};
use tempfile::TempDir;

/// The process's own folder, in which a run of a target overwrites what the last one wrote: targets run one at a time.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

/// The path of a file of that name that holds `bytes`.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = FOLDER.path().join(name);
    fs::write(&path, bytes).expect("a file in a temporary folder");
    path
}

/// `data` with room behind it for the tensors that its header may promise, unless its last bit says no.
pub fn padded(data: &[u8]) -> Vec<u8> {
    let truncated = data.last().is_some_and(|byte| byte & 1 == 1);
    let room = if truncated { 0 } else { 1 << 17 };
    [data, &vec![0; room]].concat()
}

/// Opens the checkpoint at `path` and, where that succeeds, reads all that can be asked for.
pub fn read_checkpoint(path: &Path) {
    let Ok(checkpoint) = Checkpoint::open(path) else { return };
    for slot in checkpoint.spec.slots() {
        let tensor = checkpoint.read(slot).expect("an opened checkpoint has every tensor");
        assert_eq!(tensor.dims(), checkpoint.spec.shape(slot));
    }
    let _ = Text::open(&checkpoint);
    let Some(metadata) = checkpoint.metadata() else { return };
    for key in metadata.keys() {
        let _ = (metadata.text(key), metadata.unsigned(key), metadata.float(key), metadata.bool(key));
        let _ = (metadata.texts(key), metadata.integers(key), metadata.floats(key), metadata.array_len(key));
    }
}

/// The golden folder of four shards, with `bytes` in the place of its file `name`.
pub fn sharded_with(name: &str, bytes: &[u8]) -> &'static Path {
    macro_rules! golden {
        ($($name:literal)*) => {
            [$(($name, &include_bytes!(concat!("../../models/golden/checkpoints/sharded-bf16/", $name))[..])),*]
        };
    }
    static GOLDEN: LazyLock<&Path> = LazyLock::new(|| {
        let files = golden!(
            "config.json" "model.safetensors.index.json"
            "model-00001-of-00004.safetensors" "model-00002-of-00004.safetensors"
            "model-00003-of-00004.safetensors" "model-00004-of-00004.safetensors"
        );
        files.into_iter().for_each(|(name, bytes)| drop(file(name, bytes)));
        FOLDER.path()
    });
    let folder = *GOLDEN;
    file(name, bytes);
    folder
}

/// The base that the golden adapters belong to.
pub fn base(spec: &Spec) -> Base<'_> {
    Base { spec, name: "tiny", aliases: &[] }
}

/// The text of a model whose tokens are bytes.
pub fn tiny() -> &'static Text {
    static TEXT: LazyLock<Text> = LazyLock::new(|| {
        let folder = FOLDER.path().join("tiny");
        checkpoint::write(&folder);
        let checkpoint = Checkpoint::open(&folder).expect("the checkpoint is whole");
        Text::open(&checkpoint).expect("it has a tokenizer")
    });
    &TEXT
}
