//! Floating-point operations of a pass, counted from the architecture: a product of `[a, b]` and `[b, c]` is 2abc. Norms, softmax, rotary
//! turning and the optimiser are left out: they are linear in tokens or parameters with small factors. Never runs anything.

use socius_models::{Layout, Spec};

/// Tokens of a sequence that run after others which are cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Tokens that are attended to and not computed again.
    pub cached: usize,
    /// Tokens that are computed.
    pub tokens: usize,
    /// Of these, tokens whose logits are computed.
    pub scored: usize,
}

/// Products of every token with the weights of all linears of all layers.
pub fn linears(spec: &Spec, stretch: Stretch) -> f64 {
    let attention = spec.hidden * (spec.q_dim() + 2 * spec.kv_dim()) + spec.q_dim() * spec.hidden;
    let weights = spec.layers * (attention + 3 * spec.hidden * spec.intermediate);
    2.0 * weights as f64 * stretch.tokens as f64
}

/// Scores and mixing of values: 4 · q_dim for every pair of a token and one that it sees, in every layer.
pub fn attention(spec: &Spec, Stretch { cached, tokens, .. }: Stretch) -> f64 {
    let pairs = tokens as f64 * cached as f64 + tokens as f64 * (tokens as f64 + 1.0) / 2.0;
    4.0 * (spec.q_dim() * spec.layers) as f64 * pairs
}

/// Logits of the scored tokens.
pub fn head(spec: &Spec, stretch: Stretch) -> f64 {
    2.0 * (spec.vocab * spec.hidden) as f64 * stretch.scored as f64
}

/// A forward pass without an adapter.
pub fn forward(spec: &Spec, stretch: Stretch) -> f64 {
    linears(spec, stretch) + head(spec, stretch) + attention(spec, stretch)
}

/// A forward pass under a learner: an adapter, all weights, or a prefix, which is among what is cached.
pub fn forward_under(spec: &Spec, layout: &Layout, stretch: Stretch) -> f64 {
    if layout.is_whole() {
        return forward(spec, stretch);
    }
    forward(spec, stretch) + 2.0 * (layout.factors() * stretch.tokens) as f64
}

/// Forward and backward of a learner. Of an adapter over the frozen base: the gradient goes back through the base's weights and the head (2 a weight),
/// the adapter's own are computed as well (2 forward, 4 backward), and attention's backward pass computes scores again and four products, of
/// which a prefix's gradients are a part.
pub fn train_under(spec: &Spec, layout: &Layout, stretch: Stretch) -> f64 {
    if layout.is_whole() {
        return train_whole(spec, stretch);
    }
    let back = linears(spec, stretch) + head(spec, stretch);
    forward(spec, stretch) + back + 2.5 * attention(spec, stretch) + 6.0 * (layout.factors() * stretch.tokens) as f64
}

/// Forward and backward of all parameters: every weight's own gradient is another 2 a weight and token.
fn train_whole(spec: &Spec, stretch: Stretch) -> f64 {
    3.0 * forward(spec, stretch) + 0.5 * attention(spec, stretch)
}

/// Keys and values of `tokens` tokens in 32-bit floats.
pub fn cache_bytes(spec: &Spec, tokens: usize) -> u64 {
    (2 * 4 * spec.kv_dim() * spec.layers * tokens) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        common::Seed,
        lab::synthetic::{Circuit, Sizes},
    };

    #[test]
    fn attention_overtakes_the_linears_where_the_architecture_says() {
        let circuit = Circuit::new(Sizes { intermediate: 64, context_max: 100 }, Seed::new(0));
        let spec = circuit.spec();
        // 4 · 64 · 144 + 3 · 64 · 64 weights a layer, three layers.
        let stretch = |tokens| Stretch { cached: 0, tokens, scored: 0 };
        let all = |tokens| forward(spec, stretch(tokens));
        let linear = |tokens| linears(spec, stretch(tokens));
        assert_eq!(linear(1), 2.0 * 147_456.0);
        // 2 · 147,456 = 864 · (n + 1): the sums over a prefill are equal at 340 tokens.
        assert!(all(330) < 2.0 * linear(330) && all(350) > 2.0 * linear(350));
    }

    #[test]
    fn a_prefix_costs_what_attending_to_it_does() {
        let circuit = Circuit::new(Sizes { intermediate: 8, context_max: 100 }, Seed::new(0));
        let spec = circuit.spec();
        let stretch = |cached| Stretch { cached, tokens: 3, scored: 1 };
        let layout = Layout::prefix(spec, 10);
        assert_eq!(forward_under(spec, &layout, stretch(10)), forward(spec, stretch(10)));
        // Three layers, three tokens, ten positions, 4 · 144 forward and 2.5 times that backward.
        let trained = |cached| train_under(spec, &layout, stretch(cached));
        assert_eq!(trained(10) - trained(0), 3.5 * (3 * 3 * 10 * 4 * 144) as f64);
    }

    #[test]
    fn reading_in_two_stretches_costs_what_reading_at_once_does() {
        let circuit = Circuit::new(Sizes { intermediate: 8, context_max: 100 }, Seed::new(0));
        let cost = |cached, tokens| forward(circuit.spec(), Stretch { cached, tokens, scored: 0 });
        assert_eq!(cost(0, 40) + cost(40, 60), cost(0, 100));
    }
}
