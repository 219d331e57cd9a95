"""The real SmolLM2 in transformers (f32): greedy answers, and logprobs of 2,000 tokens of text: models/golden/smollm2.json."""
import torch

import smollm2
from common import ROOT, logprobs, rounded, write_trace

PROMPTS = [
    "Write a short story about a lighthouse keeper.",
    "Explain how bread is made, step by step.",
    "List five animals that live in the sea and say one thing about each.",
]
# What tokenizers differ on: digits, spaces, contractions, scripts, combining and astral characters, controls.
TEXTS = [
    "In 1984 there were 12,345.67 of them; 3rd of 007.", "don't you'll WE'RE I'd've o'clock 's", "  two  spaces\n\n\n\tand a tab \r\n end   ",
    "naïve café — “quotes” … ½ №5 ²", "Привет, мир! Γειά σου κόσμε", "東京に行きました。你好，世界 안녕하세요",
    "हिन्दी में लिखा मराठी", "🙂👩‍👩‍👧‍👦 e\u0301 \u200bzero\u00a0nbsp", "fn main() { println!(\"{:?}\", x_1[2]); } // 0xFF == 255", "", "a", " ", "\n",
]  # fmt: skip
NEW_TOKENS = 64
WINDOW, WINDOWS = 500, 4
TOP_EVERY, TOP = 20, 8


def greedy(model, prompt: list[int]):
    """64 tokens, through the end of a turn if there is one, and the narrowest lead of a choice over the next best."""
    tokens, cache, lead = [], None, float("inf")
    step = torch.tensor([prompt])
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            out = model(input_ids=step, past_key_values=cache, use_cache=True)
        best = out.logits[0, -1].topk(2)
        lead = min(lead, (best.values[0] - best.values[1]).item())
        tokens.append(best.indices[0].item())
        cache, step = out.past_key_values, torch.tensor([tokens[-1:]])
    return tokens, lead


def window(model, tokens: list[int]):
    """`tokens[:-1]` as a sequence of its own: the logprob of each next token, and the best few after every 20th."""
    table = logprobs(model, tokens[:-1])
    chosen = table.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    top = table[::TOP_EVERY].topk(TOP)
    return dict(tokens=tokens, logprobs=rounded(chosen.tolist()), top_every=TOP_EVERY,
                top_tokens=top.indices.tolist(), top_logprobs=rounded(top.values.tolist()))  # fmt: skip


model, tokenizer = smollm2.load()
answers = []
for prompt in PROMPTS:
    messages = [dict(role="user", content=prompt)]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    tokens, lead = greedy(model, ids)
    print(f"lead {lead:.4f}: {tokenizer.decode(tokens)!r}")
    answers.append(dict(prompt=prompt, text=text, tokens=ids, greedy=tokens, narrowest_lead=rounded(lead)))

text = (ROOT / "LICENSE-APACHE").read_text()
ids = tokenizer(text, add_special_tokens=False).input_ids[: WINDOW * WINDOWS + 1]
assert len(ids) == WINDOW * WINDOWS + 1
windows = [window(model, ids[start : start + WINDOW + 1]) for start in range(0, WINDOW * WINDOWS, WINDOW)]
texts = [dict(text=text, tokens=tokenizer(text, add_special_tokens=False).input_ids) for text in TEXTS]
write_trace("smollm2", gguf_sha256=smollm2.SHA256, answers=answers, texts=texts,
            text="LICENSE-APACHE", windows=windows)  # fmt: skip
