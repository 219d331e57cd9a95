"""Logits of tiny random Llamas, one trace for each turn that an architecture can take: models/golden/llama-*.json."""
import torch

from common import TINY, random_model, random_tokens, rounded, write_trace

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)

# name → (what differs from TINY, lengths of the sequences). The long ones reach past every wavelength that the scaling bends.
CASES = {
    "gqa": ({}, [12, 40]),
    "mha-untied": (dict(vocab_size=101, hidden_size=32, num_attention_heads=4, num_key_value_heads=4, head_dim=8, tie_word_embeddings=False), [12, 40]),
    "mqa": (dict(num_key_value_heads=1, num_hidden_layers=2), [33]),
    "theta-1e5": (dict(vocab_size=131, hidden_size=48, num_attention_heads=3, num_key_value_heads=1, head_dim=16, rope_theta=1e5, rms_norm_eps=1e-6), [150]),
    "rope-llama3": (dict(hidden_size=48, num_attention_heads=3, num_key_value_heads=1, head_dim=16, rope_scaling=LLAMA3, max_position_embeddings=512, tie_word_embeddings=False), [20, 200]),
    "rope-linear": (dict(rope_scaling=dict(rope_type="linear", factor=4.0)), [100]),
    "wide-heads": (dict(num_attention_heads=4, num_key_value_heads=2, head_dim=16), [40]),
    "long-head-dim-odd-half": (dict(num_attention_heads=2, num_key_value_heads=1, head_dim=10, intermediate_size=75), [25]),
}  # fmt: skip

# The last four values of these are recorded, so that a difference of weights is not taken for one of arithmetic.
WEIGHTS = ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"]

worst = 0.0
for index, (name, (changes, lengths)) in enumerate(CASES.items()):
    config, seed = {**TINY, **changes}, 100 + index
    model, exact = random_model(config, seed), random_model(config, seed, torch.float64)
    sequences = []
    for length in lengths:
        tokens = random_tokens(f"tokens.{length}", length, config["vocab_size"], seed)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits[0]
            worst = max(worst, (logits - exact(input_ids=torch.tensor([tokens])).logits[0]).abs().max().item())
        positions = sorted({0, 1, length // 2, length - 1})
        sequences.append(dict(tokens=tokens, positions=positions, logits=rounded(logits[positions].tolist())))
    weights = {k: rounded(model.state_dict()[k].flatten()[-4:].tolist()) for k in WEIGHTS}
    write_trace(f"llama-{name}", config=config, seed=seed, weights=weights, sequences=sequences)
print(f"f32 against f64 (f64 weights and sums): {worst:.1e}")
