"""A skill of ours in peft: exported by socius, loaded by peft over transformers' model; the same greedy answers and logprobs.

    python load_ours.py SKILL [PROMPT…]      SOCIUS names the binary (default: target/release/socius)

Both export formats are checked: the PEFT directory by peft itself, the GGUF LoRA by the `gguf` package (its tensors, put back
into Hugging Face order, must be those of the directory up to the scale that it folds). Without prompts, the answers are to a
few fixed ones.
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import peft
import torch
from safetensors.numpy import load_file

import gguf_files
import smollm2
from common import ROOT

BOUND, NEW_TOKENS = 1e-3, 24
SOCIUS = os.environ.get("SOCIUS", str(ROOT / "target/release/socius"))
PROMPTS = ["Spell the word planet backwards, with a space between letters.", "What is the capital of France?",
           "Write a short story about a lighthouse keeper."]  # fmt: skip


def socius(*arguments: str) -> dict:
    done = subprocess.run([SOCIUS, *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def greedy(model, prompt: list[int], stop: set[int]) -> list[int]:
    tokens, cache, step = [], None, torch.tensor([prompt])
    while len(tokens) < NEW_TOKENS and not (tokens and tokens[-1] in stop):
        with torch.no_grad():
            out = model(input_ids=step, past_key_values=cache, use_cache=True)
        tokens.append(out.logits[0, -1].argmax().item())
        cache, step = out.past_key_values, torch.tensor([tokens[-1:]])
    return tokens


def completion_logprobs(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    with torch.no_grad():
        table = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    return table[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])[:, 0]


def check_answer(model, tokenizer, skill: str, prompt: str):
    messages = [dict(role="user", content=prompt)]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    under = ["--skill", skill, "--dtype", "f32"]
    ours = socius("generate", prompt, *under, "--temperature", "0", "--max-tokens", str(NEW_TOKENS))
    theirs = greedy(model, ids, {tokenizer.eos_token_id, 0})
    length = min(len(theirs), len(ours["tokens"]))  # one side may keep the end-of-turn token
    assert ours["prompt_tokens"] == len(ids), (ours["prompt_tokens"], len(ids))
    assert length and ours["tokens"][:length] == theirs[:length], f"{ours['tokens']} is not {theirs}"
    assert abs(len(ours["tokens"]) - len(theirs)) <= 1
    score = socius("score", "--prompt", prompt, "--completion", ours["text"], *under)
    expected = completion_logprobs(model, ids, score["tokens"])
    worst = (expected - torch.tensor(score["logprobs"])).abs().max().item()
    print(f"{prompt!r} → {ours['text']!r}: same tokens, logprobs within {worst:.1e}")
    assert worst <= BOUND, worst


def check_gguf(path: str, folder: str, config: dict):
    """scale · B A of every site, from both files."""
    settings, stored = json.load(open(f"{folder}/adapter_config.json")), load_file(f"{folder}/adapter_model.safetensors")
    tensors, alpha = gguf_files.read_lora(path, config)
    assert tensors.keys() == stored.keys(), tensors.keys() ^ stored.keys()
    for name in (name for name in stored if ".lora_A." in name):
        other = name.replace("lora_A", "lora_B")
        rank = stored[name].shape[0]
        scale = peft_scale(settings, name, rank)
        product = scale * stored[other] @ stored[name]
        assert np.allclose(alpha / rank * tensors[other] @ tensors[name], product, rtol=1e-4, atol=1e-6), name
    print(f"GGUF: {len(stored)} tensors, alpha {alpha:g}: the same adapter")


def peft_scale(settings: dict, name: str, rank: int) -> float:
    module = name.removeprefix("base_model.model.").partition(".lora_")[0]
    matches = [v for k, v in settings["alpha_pattern"].items() if module == k or module.endswith("." + k)]
    alpha = matches[0] if matches else settings["lora_alpha"]
    return alpha / rank**0.5 if settings["use_rslora"] else alpha / rank


skill, prompts = sys.argv[1], sys.argv[2:] or PROMPTS
model, tokenizer = smollm2.load()
with tempfile.TemporaryDirectory() as folder:
    exported = f"{folder}/peft"
    socius("skills", "export", skill, exported, "--format", "peft")
    model = peft.PeftModel.from_pretrained(model, exported).eval()
    unused = [name for name, p in model.named_parameters() if "lora_B" in name and not p.abs().max() > 0]
    size = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    print(f"peft loaded {skill}: {size} parameters, {len(unused)} sites untrained")
    socius("skills", "export", skill, f"{folder}/gguf", "--format", "gguf")
    files = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names if name.endswith(".gguf")]
    check_gguf(files[0] if files else f"{folder}/gguf", exported, model.config.to_dict())
    for prompt in prompts:
        check_answer(model, tokenizer, skill, prompt)
