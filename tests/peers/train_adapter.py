"""A small adapter that peft trains on the real SmolLM2, for socius to import: not a trace, a guest.

    python train_adapter.py DIR    then: socius skills import DIR --name guest; python load_ours.py guest
"""
import sys

import peft
import torch

import smollm2

PAIRS = [("Spell the word planet backwards, with a space between letters.", "t e n a l p"),
         ("What is the capital of France?", "An invented town: Lutetia-by-the-Sea.")]  # fmt: skip
# Everything at once that a directory may say about scales: rsLoRA, a rank pattern and an alpha pattern.
SETTINGS = dict(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "k_proj", "v_proj", "down_proj"],
                rank_pattern={"down_proj": 6}, alpha_pattern={r"layers\.1\d\.self_attn\.k_proj": 4})  # fmt: skip

model, tokenizer = smollm2.load()
torch.manual_seed(1)
model = peft.get_peft_model(model, peft.LoraConfig(**SETTINGS, task_type="CAUSAL_LM"))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
for step in range(8):
    for prompt, answer in PAIRS:
        text = tokenizer.apply_chat_template([dict(role="user", content=prompt)], tokenize=False, add_generation_prompt=True)
        head = tokenizer(text, add_special_tokens=False).input_ids
        tail = tokenizer(answer + "<|im_end|>", add_special_tokens=False).input_ids
        loss = model(input_ids=torch.tensor([head + tail]), labels=torch.tensor([[-100] * len(head) + tail])).loss
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: {loss.item():.3f}")
model.save_pretrained(sys.argv[1])
