"""Tiny checkpoints as their owners write them: a sharded Hugging Face folder (bf16, save_pretrained) and a GGUF of mixed tensor
types (the `gguf` package), with transformers' logits over what each one stores: models/golden/checkpoints/*, checkpoints.json.
"""
import shutil

import torch
import transformers
from gguf import GGMLQuantizationType as Type

import gguf_files
from common import GOLDEN, TINY, random_model, random_tokens, rounded, write_trace

SEED = 31
# Rows of 32 and of 256 values, so that block types fit; grouped queries, so that K's permutation is not Q's.
CONFIG = {**TINY, "hidden_size": 32, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
          "head_dim": 8, "vocab_size": 89, "rope_theta": 5e4, "tie_word_embeddings": False}  # fmt: skip
TYPES = {"token_embd": Type.Q8_0, "blk.0.attn_q": Type.Q4_0, "blk.1.attn_q": Type.F16, "attn_k": Type.Q5_1,
         "attn_v": Type.Q4_1, "attn_output": Type.Q5_0, "ffn_gate": Type.Q8_0, "ffn_up": Type.BF16,
         "blk.0.ffn_down": Type.Q4_K, "blk.1.ffn_down": Type.Q5_K, "blk.2.ffn_down": Type.Q6_K,
         "output": Type.Q8_0}  # fmt: skip
FOLDER = GOLDEN / "checkpoints"
TOKENS = random_tokens("checkpoint.text", 40, CONFIG["vocab_size"], SEED)
POSITIONS = [0, 1, 20, 39]


def logits(model):
    with torch.no_grad():
        return rounded(model(input_ids=torch.tensor([TOKENS])).logits[0][POSITIONS].tolist())


shutil.rmtree(FOLDER, ignore_errors=True)
FOLDER.mkdir(parents=True)

folder = FOLDER / "sharded-bf16"
random_model(CONFIG, SEED).to(torch.bfloat16).save_pretrained(folder, max_shard_size="60KB")
(folder / "generation_config.json").unlink(missing_ok=True)
sharded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

model, path = random_model(CONFIG, SEED), FOLDER / "mixed.gguf"
weights = {name: value.numpy() for name, value in model.state_dict().items()}
gguf_files.write_checkpoint(path, CONFIG, weights, TYPES)
stored = gguf_files.read_checkpoint(path, CONFIG, list(weights))
model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in stored.items()})
# transformers' own reader of GGUF must see the same weights: it undoes the permutation by code of its own.
theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=path.name, dtype=torch.float32).state_dict()
for name, value in model.state_dict().items():
    assert torch.equal(theirs[name], value), name

rows = [dict(path="sharded-bf16", logits=logits(sharded.eval())), dict(path="mixed.gguf", logits=logits(model.eval()))]
write_trace("checkpoints", tokens=TOKENS, positions=POSITIONS, checkpoints=rows)
