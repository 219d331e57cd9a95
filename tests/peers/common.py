"""What every recorder shares: tiny models over random weights, and how a trace is written. Knows no trace's content."""
import copy
import json
import os
import pathlib

import numpy as np
import peft
import torch
import transformers

import random_weights

torch.set_num_threads(int(os.environ.get("PEER_THREADS", "2")))

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "models" / "golden"

# Spec::tiny() of models/src/random.rs, as its config.json.
TINY = dict(
    model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=97, hidden_size=36, intermediate_size=52,
    num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=6, rms_norm_eps=1e-5, rope_theta=1e4,
    hidden_act="silu", tie_word_embeddings=True, max_position_embeddings=256,
)  # fmt: skip


def random_model(config: dict, seed: int, dtype=torch.float32):
    """The Hugging Face model of `config` (as in config.json) over the weights of `seed`."""
    config = copy.deepcopy({k: v for k, v in config.items() if k != "model_type"})  # LlamaConfig edits what it is given
    config = transformers.LlamaConfig(**config)
    model = transformers.LlamaForCausalLM._from_config(config, attn_implementation="eager", dtype=torch.float32)
    tied = config.tie_word_embeddings
    tensors = {
        name: torch.from_numpy(random_weights.tensor(name, tuple(value.shape), seed))
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.to(dtype).eval()


def random_tokens(name: str, count: int, vocab: int, seed: int) -> list[int]:
    """Token ids drawn by the same generator."""
    uniform = random_weights.tensor(name, (count, 3), seed)[:, 0].astype(np.float64) / 2.0 + 0.5
    return [int(u * vocab) for u in uniform]


def logprobs(model, tokens: list[int]) -> torch.Tensor:
    """log p(next token), `[tokens, vocab]` f32 (log-softmax in f64)."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1).float()


def next_logprobs(model, tokens: list[int]) -> list[float]:
    """The logprob of each token after the first."""
    table = logprobs(model, tokens)[:-1]
    return table.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()


def rounded(values):
    """Nested lists with nine significant digits: enough to name any f32."""
    if isinstance(values, (list, tuple)):
        return [rounded(v) for v in values]
    return float(f"{values:.9g}")


def write_trace(name: str, **content):
    """models/golden/NAME.json, one top-level key a line."""
    peer = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, peft {peft.__version__}"
    content = dict(recorded_with=peer, **content)
    path = GOLDEN / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in content.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{path.relative_to(ROOT)}  {path.stat().st_size} bytes")
