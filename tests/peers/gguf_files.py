"""GGUF files as llama.cpp's converters write them, with the `gguf` package: a tiny checkpoint, a LoRA. Knows no trace.

Names come from the package's own tensor map. Q and K rows are permuted as `LlamaModel.permute` of convert_hf_to_gguf.py does;
convert_lora_to_gguf.py does the same to the rows of their lora_b.
"""
import gguf
import numpy as np

import random_weights

K = gguf.GGMLQuantizationType
# The package reads k-quants but cannot make them: type → byte offsets of the f16 scales in a block, and values that give a
# row of random blocks a variance near 1 / 256.
K_SCALES = {K.Q4_K: {0: 2.5e-4, 2: 1.9e-3}, K.Q5_K: {0: 1.2e-4, 2: 1.9e-3}, K.Q6_K: {208: 6.2e-5}}


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Row (head, half, i) of Hugging Face becomes row (head, i, half)."""
    shape = rows.shape
    return rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def gguf_order(name: str, rows: np.ndarray, config: dict) -> np.ndarray:
    if ".q_proj." in name:
        return permute(rows, config["num_attention_heads"])
    if ".k_proj." in name:
        return permute(rows, config["num_key_value_heads"])
    return rows


def name_map(config: dict):
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])


def encode(name: str, values: np.ndarray, kind: K) -> np.ndarray:
    """`values` in `kind`; for a k-quant, blocks of random bytes under `name` in their place."""
    if kind not in K_SCALES:
        return gguf.quants.quantize(np.ascontiguousarray(values), kind)
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = (values.shape[0], values.shape[1] // block_values)
    random = random_weights.tensor(name, (blocks[0] * blocks[1], block_bytes), 0)
    data = ((random / np.abs(random).max() / 2 + 0.5) * 255).astype(np.uint8)
    for offset, scale in K_SCALES[kind].items():
        data[:, offset : offset + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return data.reshape(blocks[0], blocks[1] * block_bytes)


def finish(writer: gguf.GGUFWriter):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_checkpoint(path, config: dict, tensors: dict[str, np.ndarray], types: dict[str, gguf.GGMLQuantizationType]):
    """`tensors` under their Hugging Face names; those whose GGUF name (without `.weight`) ends in a key of `types` are stored in that type."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    names = name_map(config)
    for name, values in tensors.items():
        stem = names.get_name(name, try_suffixes=(".weight",))
        kind = next((t for end, t in types.items() if stem.removesuffix(".weight").endswith(end)), gguf.GGMLQuantizationType.F32)
        data = encode(name, gguf_order(name, values, config), kind)
        writer.add_tensor(stem, data, raw_dtype=kind)
    finish(writer)


def read_checkpoint(path, config: dict, names: list[str]) -> dict[str, np.ndarray]:
    """The dequantised tensors under their Hugging Face names and in their order of rows."""
    stored = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    mapped = name_map(config)
    tensors = {name: stored[mapped.get_name(name, try_suffixes=(".weight",))] for name in names}
    heads = {".q_proj.": config["num_attention_heads"], ".k_proj.": config["num_key_value_heads"]}
    for name, rows in tensors.items():
        for part, count in heads.items():
            if part in name:
                back = rows.reshape(count, rows.shape[0] // count // 2, 2, *rows.shape[1:]).swapaxes(1, 2)
                tensors[name] = back.reshape(rows.shape)
    return tensors


def write_lora(path, config: dict, tensors: dict[str, np.ndarray], alpha: float, kind=gguf.GGMLQuantizationType.F32):
    """`tensors` as in adapter_model.safetensors, all of one rank."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    names = name_map(config)
    for name, values in tensors.items():
        module, _, factor = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        values = gguf_order(name, values, config) if factor == "lora_B" else values
        data = gguf.quants.quantize(np.ascontiguousarray(values), kind)
        writer.add_tensor(f"{names.get_name(module)}.weight.{factor.lower()}", data, raw_dtype=kind)
    finish(writer)


def read_lora(path, config: dict):
    """(PEFT names → f32 values in Hugging Face row order, alpha) of a GGUF LoRA."""
    reader = gguf.GGUFReader(path)
    assert reader.fields[gguf.Keys.General.TYPE].contents() == gguf.GGUFType.ADAPTER
    assert reader.fields[gguf.Keys.Adapter.TYPE].contents() == "lora"
    stored = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    names, tensors = name_map(config), {}
    for layer in range(config["num_hidden_layers"]):
        for module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                       "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):  # fmt: skip
            path = f"model.layers.{layer}.{module}"
            for factor in ("lora_A", "lora_B"):
                values = stored.pop(f"{names.get_name(path)}.weight.{factor.lower()}", None)
                if values is None:
                    continue
                if factor == "lora_B" and module[-6] in "qk":
                    heads = config["num_attention_heads" if module[-6] == "q" else "num_key_value_heads"]
                    back = values.reshape(heads, values.shape[0] // heads // 2, 2, -1).swapaxes(1, 2)
                    values = back.reshape(values.shape)
                tensors[f"base_model.model.{path}.{factor}.weight"] = values
    assert not stored, f"tensors of no linear of this base: {sorted(stored)}"
    return tensors, reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents()
