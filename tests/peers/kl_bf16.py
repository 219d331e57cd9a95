"""KL(transformers in f32 ‖ our bf16 path) over the 2,000 tokens of smollm2.json, with full distributions on both sides.

    python kl_bf16.py [bf16|f32]    prints mean and largest KL in nats; fails above 1e-3
"""
import json
import subprocess
import sys
import tempfile

import numpy as np
import torch

import smollm2
from common import GOLDEN, ROOT, logprobs

BOUND = 1e-3
dtype = sys.argv[1] if len(sys.argv) > 1 else "bf16"
command = ["cargo", "run", "-q", "--example", "logits", "--", dtype]
model, _ = smollm2.load()
divergences = []
for window in json.loads((GOLDEN / "smollm2.json").read_text())["windows"]:
    tokens = window["tokens"][:-1]
    with tempfile.TemporaryDirectory() as folder:
        (given, out) = (f"{folder}/tokens.json", f"{folder}/logits.f32")
        open(given, "w").write(json.dumps(tokens))
        subprocess.run([*command, given, out], cwd=ROOT, check=True)
        ours = torch.from_numpy(np.fromfile(out, "<f4").reshape(len(tokens), -1)).double().log_softmax(-1)
    theirs = logprobs(model, tokens).double()
    divergences += (theirs.exp() * (theirs - ours)).sum(-1).tolist()
mean = sum(divergences) / len(divergences)
print(f"KL(transformers f32 ‖ socius {dtype}) over {len(divergences)} tokens: mean {mean:.2e}, largest {max(divergences):.1e} nats")
assert mean <= BOUND, f"{mean} is above {BOUND}"
