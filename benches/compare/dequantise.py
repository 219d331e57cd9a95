"""The weights of a GGUF file as a Hugging Face folder in f32: dequantise.py FILE.gguf FOLDER"""
import pathlib
import sys

import torch
import transformers

source, target = map(pathlib.Path, sys.argv[1:])
model = transformers.AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
# It says that the weights are quantised, which from here on they are not.
model.config.__dict__.pop("quantization_config", None)
for attribute in ("is_quantized", "hf_quantizer", "quantization_method"):
    model.__dict__.pop(attribute, None)
model.save_pretrained(target)
