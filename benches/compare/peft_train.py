"""Seconds of a LoRA training step in peft, and the memory it takes: peft_train.py MODEL_FOLDER BATCH LENGTH RANK STEPS THREADS DTYPE

bfloat16 or float32, every linear adapted, random tokens, every position trained, fused AdamW; the median of STEPS after one that warms up."""
import json
import resource
import statistics
import sys
import time

import peft
import torch
import transformers

folder = sys.argv[1]
batch, length, rank, steps, threads = map(int, sys.argv[2:7])
dtype = getattr(torch, sys.argv[7])
torch.set_num_threads(threads)
torch.manual_seed(0)
base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
settings = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linears, task_type="CAUSAL_LM")
model = peft.get_peft_model(base, settings).train()
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4, fused=True)
tokens = torch.randint(0, base.config.vocab_size, (batch, length))


def step() -> float:
    start = time.perf_counter()
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


step()
seconds = statistics.median(step() for _ in range(steps))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # KiB to MiB, as socius counts
print(json.dumps({"tokens_per_s": batch * length / seconds, "ms_per_step": seconds * 1e3, "peak_mb": peak}))
