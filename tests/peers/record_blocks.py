"""models/golden/gguf-blocks.json: random bytes in every GGUF tensor type, and the values that the gguf package reads in them."""
import json
import pathlib

import gguf
import numpy as np

PATH = pathlib.Path(__file__).resolve().parents[2] / "models" / "golden" / "gguf-blocks.json"
TYPES = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K".split()
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}  # where a block's scales are, so that they can be made finite  # fmt: skip


def record(name: str, generator: np.random.Generator) -> dict:
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if block == 1:
        bytes_ = generator.standard_normal(8).astype(np.float32)
        bytes_ = gguf.quants.quantize(bytes_, kind) if kind > 1 else bytes_.astype([np.float32, np.float16][kind])
        bytes_ = bytes_.view(np.uint8).reshape(-1)
    else:
        bytes_ = generator.integers(0, 256, 2 * size, dtype=np.uint8)
        for start in (0, size):
            for offset in HALVES[name]:
                scale = generator.standard_normal(1).astype(np.float16).view(np.uint8)
                bytes_[start + offset : start + offset + 2] = scale
    values = gguf.quants.dequantize(bytes_, kind)
    return dict(type=name, number=int(kind), bytes=bytes_.tobytes().hex(), values=[float(f"{v:.9g}") for v in values])


generator = np.random.default_rng(1)
lines = ",\n".join(json.dumps(record(name, generator), separators=(",", ":")) for name in TYPES)
PATH.write_text(f"[\n{lines}\n]\n")
print(f"{PATH.name}  {PATH.stat().st_size} bytes")
