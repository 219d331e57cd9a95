"""Twenty steps of LoRA training in peft, f32: the loss of every step: models/golden/training-*.json.

Both sides make A (and B, where it does not start at zero) with random_weights, under the name that a PEFT file gives the tensor.
"""
import peft
import torch

import random_weights
import smollm2
from common import ROOT, TINY, random_model, random_tokens, rounded, write_trace

STEPS = 20
LORA = dict(r=8, lora_alpha=16)
ADAMW = dict(betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)


def with_adapter(model, seed: int, b_factor: float):
    """`model` under a LoRA on all linears: A from the generator, B `b_factor` (a power of two, or 0) times it."""
    model = peft.get_peft_model(model, peft.LoraConfig(**LORA, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            values = random_weights.tensor(name.replace(".default", ""), tuple(parameter.shape), seed)
            factor = b_factor if "lora_B" in name else 1.0
            parameter.data.copy_(torch.from_numpy(values) * factor)
    return model.train()


def padded(rows):
    """One batch of rows of unequal length: ids, mask, labels without the prompts."""
    length = max(len(row["tokens"]) for row in rows)
    ids, mask, labels = (torch.full((len(rows), length), fill) for fill in (0, 0, -100))
    for i, row in enumerate(rows):
        end = len(row["tokens"])
        ids[i, :end], mask[i, :end] = torch.tensor(row["tokens"]), 1
        labels[i, row["prompt"] : end] = ids[i, row["prompt"] : end]
    return dict(input_ids=ids, attention_mask=mask, labels=labels)


def train(model, rows, width: int, lr: float) -> list[float]:
    """The mean loss over the scored tokens of each step's batch; step s takes `width` rows from `width · s` on, around."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, **ADAMW)
    losses = []
    for step in range(STEPS):
        batch = [rows[(step * width + i) % len(rows)] for i in range(width)]
        loss = model(**padded(batch)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def record(name: str, base, rows, width: int, *, seed: int, b_factor: float, lr: float, **about):
    losses = train(with_adapter(base, seed, b_factor), rows, width, lr)
    print(f"{name}: {losses[0]:.4f} → {losses[-1]:.4f}")
    optimiser = dict(lr=lr, beta1=ADAMW["betas"][0], beta2=ADAMW["betas"][1], eps=ADAMW["eps"])
    lora = dict(**LORA, seed=seed, b_factor=b_factor)
    write_trace(f"training-{name}", **about, lora=lora, adamw=optimiser, rows_a_step=width,
                rows=rows, losses=rounded(losses))  # fmt: skip


def tiny_rows(count: int):
    for i in range(count):
        length = 9 + 3 * i
        yield dict(prompt=3 + i % 4, tokens=random_tokens(f"row.{i}", length, TINY["vocab_size"], 11))


def text_rows(tokenizer, count: int, length: int):
    ids = tokenizer((ROOT / "LICENSE-APACHE").read_text(), add_special_tokens=False).input_ids
    for i in range(count):
        start = i * length
        yield dict(prompt=6 + i, tokens=ids[start : start + length - i])


tiny = dict(config=TINY, model_seed=7)
record("tiny", random_model(TINY, 7), list(tiny_rows(6)), 4, seed=11, b_factor=0.25, lr=1e-2, **tiny)
model, tokenizer = smollm2.load()
rows = list(text_rows(tokenizer, 5, 28))
record("smollm2", model, rows, 2, seed=12, b_factor=0.0, lr=2e-4, gguf_sha256=smollm2.SHA256)
