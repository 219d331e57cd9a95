"""Adapters that peft trained on a tiny checkpoint, and logprobs under each: models/golden/adapters/*, adapters.json."""
import shutil

import gguf
import peft
import torch
from safetensors.numpy import load_file

import gguf_files
from common import GOLDEN, TINY, next_logprobs, random_model, random_tokens, rounded, write_trace

SEED, BASE = 7, "tiny"
TEXT = random_tokens("adapter.text", 30, TINY["vocab_size"], SEED)
LESSON = torch.tensor([random_tokens("adapter.lesson", 24, TINY["vocab_size"], SEED)])

# One row for each way in which an adapter_config.json chooses sites, ranks and scales.
VARIANTS = {
    "plain": dict(r=4, lora_alpha=8, target_modules="all-linear"),
    "rslora": dict(r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "v_proj", "down_proj"]),
    "patterns": dict(r=3, lora_alpha=6, target_modules=["q_proj", "k_proj", "up_proj", "down_proj"],
                     rank_pattern={r"layers\.1\.self_attn\.q_proj": 5, "down_proj": 2},
                     alpha_pattern={"up_proj": 1, r"layers\.[02]\.self_attn\.k_proj": 12}),
    "rslora-patterns": dict(r=2, lora_alpha=4, use_rslora=True, target_modules=["o_proj", "gate_proj"],
                            rank_pattern={"gate_proj": 4}, alpha_pattern={r"0\.self_attn\.o_proj": 10}),
    "layers": dict(r=2, lora_alpha=2, target_modules=["q_proj", "k_proj"], layers_to_transform=[0, 2]),
    "regex": dict(r=2, lora_alpha=8, target_modules=r".*\.[12]\.(self_attn\.v|mlp\.(gate|down))_proj"),
    "excluded": dict(r=2, lora_alpha=4, target_modules="all-linear", exclude_modules=["k_proj", "up_proj"]),
    "prefix": dict(num_virtual_tokens=5),
}  # fmt: skip


def trained(settings: dict, seed: int):
    """A few steps far enough that the adapter is felt."""
    torch.manual_seed(seed)
    config = peft.PrefixTuningConfig if "num_virtual_tokens" in settings else peft.LoraConfig
    model = peft.get_peft_model(random_model(TINY, SEED), config(**settings, task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    for _ in range(8):
        model(input_ids=LESSON, labels=LESSON).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


base = next_logprobs(random_model(TINY, SEED), TEXT)
rows = []
for index, (name, settings) in enumerate(VARIANTS.items()):
    model = trained(settings, index)
    model.peft_config["default"].base_model_name_or_path = BASE
    folder = GOLDEN / "adapters" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()  # a model card of placeholders
    under = next_logprobs(model, TEXT)
    moved = max(abs(a - b) for a, b in zip(base, under))
    print(f"{name}: logprobs move by up to {moved:.2f}")
    assert moved > 0.3
    rows.append(dict(name=name, path=name, logprobs=rounded(under)))
    if name == "plain":
        tensors = load_file(folder / "adapter_model.safetensors")
        for kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            path = f"plain-{kind.name.lower()}.gguf"
            gguf_files.write_lora(GOLDEN / "adapters" / path, TINY, tensors, settings["lora_alpha"], kind)
            if kind == gguf.GGMLQuantizationType.F16:
                stored, _ = gguf_files.read_lora(GOLDEN / "adapters" / path, TINY)
                state = {k.replace(".weight", ".default.weight"): torch.from_numpy(v.copy()) for k, v in stored.items()}
                assert not model.load_state_dict(state, strict=False).unexpected_keys
            rows.append(dict(name=f"gguf {kind.name}", path=path, logprobs=rounded(next_logprobs(model, TEXT))))

write_trace("adapters", config=TINY, model_seed=SEED, base=BASE, tokens=TEXT, base_logprobs=rounded(base), adapters=rows)
