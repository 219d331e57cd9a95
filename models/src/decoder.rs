//! The one forward walk and the one backward walk over half-layers, for prefill, decode and training alike. Never sees how a
//! half is computed, nor a tensor.

use crate::half::{At, Halves, Pass};
use crate::{Adapter, Batch, HeadGradient, KvSequence, ModelError, Scores, Span, Spec, Target, TargetTokens};
use std::ops::{Deref, Range};
use std::sync::Arc;

/// A decoder of whatever form, as [`crate::Model`] holds it. Its methods are those of the model.
pub(crate) trait Decode: Send + Sync {
    fn sequence(&self) -> KvSequence;
    fn pausing(&self, pause: Arc<dyn Pause>) -> Box<dyn Decode>;
    fn forward(
        &self,
        batch: &Batch,
        adapters: &[Adapter<'_>],
        sequences: &mut [&mut KvSequence],
        wanted: &[usize],
    ) -> Result<Vec<f32>, ModelError>;
    fn pooled(&self, batch: &Batch, layer: usize) -> Result<Vec<Vec<f32>>, ModelError>;
    fn observe(&self, batch: &Batch, see: &mut dyn FnMut(usize, bool, &[Vec<f32>])) -> Result<(), ModelError>;
    fn begin(&self, adapter: Adapter<'_>) -> Result<KvSequence, ModelError>;
    fn keys_and_values(&self, batch: &Batch) -> Result<Vec<[Vec<f32>; 2]>, ModelError>;
    fn score(&self, batch: &Batch, adapters: &[Adapter<'_>], targets: &[Target]) -> Result<Scores, ModelError>;
    fn record<'m>(
        &'m self,
        batch: &'m Batch,
        adapters: &'m [Adapter<'m>],
        bytes_max: usize,
    ) -> Result<Box<dyn Recorded + Send + 'm>, ModelError>;
}

/// Whoever says when a pass of lower priority may go on.
pub trait Pause: Send + Sync {
    /// Returns when the next half-layer may run.
    fn pause(&self);
}

/// A recorded pass of whatever form, as [`crate::Recording`] holds it.
pub(crate) trait Recorded {
    fn scores(&mut self, targets: &[Target]) -> Result<Scores, ModelError>;
    fn backward(
        self: Box<Self>,
        targets: &[Target],
        gradient: HeadGradient<'_>,
        gradients: &mut [&mut [f32]],
    ) -> Result<(), ModelError>;
}

/// Half-layers in one form, and the walks over them. Halves are numbered in their order: `2 · layer` is a layer's attention
/// half, `2 · layer + 1` its MLP half.
pub(crate) struct Decoder<H> {
    pub(crate) spec: Arc<Spec>,
    pub(crate) halves: Arc<H>,
    pause: Option<Arc<dyn Pause>>,
}

/// The weights that a pass runs on.
enum Weights<'d, H> {
    Base(&'d H),
    Learned(Box<H>),
}

impl<H> Deref for Weights<'_, H> {
    type Target = H;
    fn deref(&self) -> &H {
        match self {
            Self::Base(halves) => halves,
            Self::Learned(halves) => halves,
        }
    }
}

/// What one half kept for its backward pass.
enum Saved<H: Halves> {
    Attention(H::Attention),
    Mlp(H::Mlp),
}

/// A finished forward walk.
struct Walked<H: Halves> {
    hidden: H::Hidden,
    /// Of the last halves, in their order.
    saved: Vec<Saved<H>>,
}

impl<H: Halves> Decoder<H> {
    pub(crate) fn new(spec: Arc<Spec>, halves: H) -> Self {
        Self { spec, halves: Arc::new(halves), pause: None }
    }

    /// Between two halves.
    fn let_others_go(&self) {
        self.pause.iter().for_each(|pause| pause.pause());
    }

    fn pass<'d, 'a>(
        &'d self,
        batch: &'a Batch,
        adapters: &'a [Adapter<'a>],
        recorded: Option<usize>,
    ) -> Result<(Weights<'d, H>, Pass<'a, H::Prepared>), ModelError> {
        assert!(batch.tokens().iter().all(|&token| (token as usize) < self.spec.vocab), "a token is in the vocabulary");
        assert!(
            batch.spans().iter().all(|span| span.adapter.is_none_or(|a| a < adapters.len())),
            "an adapter is listed"
        );
        assert!(adapters.iter().all(|a| a.theta.len() == a.layout.len()), "θ has its layout's length");
        let whole = batch.spans().iter().filter_map(|span| span.adapter).find(|&a| adapters[a].layout.is_whole());
        let weights = match whole {
            None => Weights::Base(&*self.halves),
            Some(learner) => {
                let alone = batch.spans().iter().all(|span| span.adapter == Some(learner));
                assert!(alone, "a learner of all weights has a pass to itself");
                Weights::Learned(Box::new(self.halves.of_learner(&adapters[learner])?))
            }
        };
        let prepared = weights.prepare(batch, adapters, recorded)?;
        Ok((weights, Pass { batch, adapters, segments: batch.segments(), whole, prepared }))
    }

    /// The halves in `range`, in their order.
    fn numbered(&self, range: Range<usize>) -> impl DoubleEndedIterator<Item = usize> + use<H> {
        let has_mlp = self.spec.has_mlp();
        range.filter(move |half| half % 2 == 0 || has_mlp)
    }

    /// The forward walk over all halves up to the end of `recorded`, keeping what those need to go back.
    fn walk(
        &self,
        (halves, pass): (&H, &Pass<'_, H::Prepared>),
        recorded: Range<usize>,
        mut sequences: Option<&mut [&mut KvSequence]>,
    ) -> Result<Walked<H>, ModelError> {
        if sequences.is_none() {
            let spans = pass.batch.spans();
            let start = |span: &Span| span.prefix.map_or(pass.trained_positions(span), |prefix| spans[prefix].end());
            assert!(
                spans.iter().all(|span| span.position == start(span)),
                "without sequences a row starts after its prefix, in the batch or trained, or at 0"
            );
        }
        let mut saved = Vec::with_capacity(recorded.len());
        let mut x = halves.embed(pass.batch.tokens())?;
        for half in self.numbered(0..recorded.end) {
            self.let_others_go();
            let at = At { layer: half / 2, pass };
            x = match (half % 2 == 0, recorded.contains(&half)) {
                (true, false) => halves.attention(at, x, sequences.as_deref_mut())?,
                (false, false) => halves.mlp(at, x)?,
                (true, true) => {
                    let (y, kept) = halves.attention_recorded(at, x)?;
                    saved.push(Saved::Attention(kept));
                    y
                }
                (false, true) => {
                    let (y, kept) = halves.mlp_recorded(at, x)?;
                    saved.push(Saved::Mlp(kept));
                    y
                }
            };
        }
        Ok(Walked { hidden: x, saved })
    }

    /// The backward walk, from ∂loss/∂(last hidden state) down to the first recorded half, and to the embedding if that learns.
    fn walk_back(
        &self,
        (halves, pass): (&H, &Pass<'_, H::Prepared>),
        saved: Vec<Saved<H>>,
        dy: H::Hidden,
        gradients: &mut [&mut [f32]],
    ) -> Result<(), ModelError> {
        let mut gradient = dy;
        for (half, saved) in self.numbered(0..2 * self.spec.layers).rev().zip(saved.into_iter().rev()) {
            self.let_others_go();
            let at = At { layer: half / 2, pass };
            gradient = match saved {
                Saved::Attention(saved) => halves.attention_backward(at, saved, gradient, gradients)?,
                Saved::Mlp(saved) => halves.mlp_backward(at, saved, gradient, gradients)?,
            };
        }
        if pass.whole.is_some() { halves.embed_backward(pass, &gradient, gradients) } else { Ok(()) }
    }

    fn check(&self, batch: &Batch, targets: &[Target]) {
        let known = |token: u32| (token as usize) < self.spec.vocab;
        for target in targets {
            assert!(target.position < batch.tokens().len(), "a target stands after a token of the batch");
            assert!(
                match &target.tokens {
                    TargetTokens::Token(token) => known(*token),
                    TargetTokens::Soft(tokens) => tokens.iter().all(|&(token, _)| known(token)),
                },
                "a target is in the vocabulary"
            );
        }
    }
}

/// The first half with parameters of any of `adapters`: nothing before it needs a gradient. Past the last half if there is none.
fn first_learning(spec: &Spec, adapters: &[Adapter<'_>]) -> usize {
    let half = |site: crate::Site| 2 * site.layer + usize::from(site.projection.in_mlp());
    let first = |adapter: &Adapter<'_>| match adapter.layout.sites().first() {
        Some(parameters) => Some(half(parameters.site)),
        None => (!adapter.layout.is_empty()).then_some(0),
    };
    adapters.iter().filter_map(first).min().unwrap_or(2 * spec.layers)
}

impl<H: Halves + 'static> Decode for Decoder<H> {
    fn pausing(&self, pause: Arc<dyn Pause>) -> Box<dyn Decode> {
        Box::new(Self { spec: self.spec.clone(), halves: self.halves.clone(), pause: Some(pause) })
    }

    fn sequence(&self) -> KvSequence {
        let layers = (0..self.spec.layers).map(|_| self.halves.empty_kv()).collect();
        KvSequence { prefix: None, layers, own: 0 }
    }

    fn forward(
        &self,
        batch: &Batch,
        adapters: &[Adapter<'_>],
        sequences: &mut [&mut KvSequence],
        wanted: &[usize],
    ) -> Result<Vec<f32>, ModelError> {
        assert_eq!(batch.spans().len(), sequences.len(), "one sequence a row");
        for (span, sequence) in batch.spans().iter().zip(&*sequences) {
            assert!(span.prefix.is_none(), "a served row's prefix is in its sequence, not in the batch");
            assert_eq!(span.position, sequence.len(), "a served row continues its sequence");
        }
        let (halves, pass) = self.pass(batch, adapters, None)?;
        assert!(
            batch.spans().iter().all(|span| span.position >= pass.trained_positions(span)),
            "a row under a trained prefix continues a sequence that was begun with it"
        );
        let all = 2 * self.spec.layers;
        let hidden = self.walk((&halves, &pass), all..all, Some(&mut *sequences))?.hidden;
        for (span, sequence) in batch.spans().iter().zip(sequences) {
            sequence.own += span.tokens.len();
        }
        if wanted.is_empty() { Ok(Vec::new()) } else { halves.logits(&hidden, wanted) }
    }

    fn pooled(&self, batch: &Batch, layer: usize) -> Result<Vec<Vec<f32>>, ModelError> {
        assert!(layer <= self.spec.layers, "layer {layer} of {}", self.spec.layers);
        let segments = vec![(0..batch.tokens().len(), None)];
        let prepared = self.halves.prepare(batch, &[], None)?;
        let pass = Pass { batch, adapters: &[], segments, whole: None, prepared };
        let hidden = self.walk((&self.halves, &pass), 2 * layer..2 * layer, None)?.hidden;
        self.halves.means(&hidden, batch.spans())
    }

    fn observe(&self, batch: &Batch, see: &mut dyn FnMut(usize, bool, &[Vec<f32>])) -> Result<(), ModelError> {
        let (_, pass) = self.pass(batch, &[], None)?;
        let mut x = self.halves.embed(batch.tokens())?;
        for layer in 0..self.spec.layers {
            let at = At { layer, pass: &pass };
            see(layer, true, &self.halves.normed(layer, true, &x)?);
            x = self.halves.attention(at, x, None)?;
            if self.spec.has_mlp() {
                see(layer, false, &self.halves.normed(layer, false, &x)?);
                x = self.halves.mlp(at, x)?;
            }
        }
        Ok(())
    }

    fn begin(&self, adapter: Adapter<'_>) -> Result<KvSequence, ModelError> {
        let own = adapter.layout.positions();
        let layer = |layer| {
            let [keys, values] = adapter.layout.keys_and_values(layer);
            self.halves.kv(&adapter.theta[keys], &adapter.theta[values])
        };
        Ok(KvSequence { prefix: None, layers: (0..self.spec.layers).map(layer).collect::<Result<_, _>>()?, own })
    }

    fn keys_and_values(&self, batch: &Batch) -> Result<Vec<[Vec<f32>; 2]>, ModelError> {
        let (halves, pass) = self.pass(batch, &[], None)?;
        let mut x = halves.embed(batch.tokens())?;
        let mut all = Vec::with_capacity(self.spec.layers);
        for layer in 0..self.spec.layers {
            let at = At { layer, pass: &pass };
            all.push(halves.keys_and_values(at, &x)?);
            x = halves.attention(at, x, None)?;
            if self.spec.has_mlp() {
                x = halves.mlp(at, x)?;
            }
        }
        Ok(all)
    }

    fn score(&self, batch: &Batch, adapters: &[Adapter<'_>], targets: &[Target]) -> Result<Scores, ModelError> {
        self.check(batch, targets);
        let (halves, pass) = self.pass(batch, adapters, None)?;
        let all = 2 * self.spec.layers;
        halves.scores(&self.walk((&halves, &pass), all..all, None)?.hidden, targets)
    }

    fn record<'m>(
        &'m self,
        batch: &'m Batch,
        adapters: &'m [Adapter<'m>],
        bytes_max: usize,
    ) -> Result<Box<dyn Recorded + Send + 'm>, ModelError> {
        let (weights, pass) = self.pass(batch, adapters, Some(bytes_max))?;
        let recorded = first_learning(&self.spec, adapters)..2 * self.spec.layers;
        let walked = self.walk((&weights, &pass), recorded, None)?;
        Ok(Box::new(Tape { decoder: self, weights, pass, walked, head: None }))
    }
}

/// A recorded pass in one form.
struct Tape<'m, H: Halves> {
    decoder: &'m Decoder<H>,
    weights: Weights<'m, H>,
    pass: Pass<'m, H::Prepared>,
    walked: Walked<H>,
    /// What was scored last, and what the head kept of it.
    head: Option<(Vec<Target>, H::Head)>,
}

impl<H: Halves> Recorded for Tape<'_, H> {
    fn scores(&mut self, targets: &[Target]) -> Result<Scores, ModelError> {
        self.decoder.check(self.pass.batch, targets);
        let (scores, saved) = self.weights.scores_recorded(&self.pass, &self.walked.hidden, targets)?;
        self.head = Some((targets.to_vec(), saved));
        Ok(scores)
    }

    fn backward(
        self: Box<Self>,
        targets: &[Target],
        gradient: HeadGradient<'_>,
        gradients: &mut [&mut [f32]],
    ) -> Result<(), ModelError> {
        let Self { decoder, weights, pass, walked, head } = *self;
        decoder.check(pass.batch, targets);
        assert_eq!(gradient.logprobs.len(), targets.len(), "one ∂loss/∂logprob a target");
        assert!(gradient.entropies.is_none_or(|g| g.len() == targets.len()), "one ∂loss/∂entropy a target");
        let lengths = pass.adapters.iter().map(|adapter| adapter.layout.gradient_len());
        assert!(lengths.eq(gradients.iter().map(|g| g.len())), "one gradient an adapter, of its layout's length");
        let saved = head.filter(|(of, _)| of == targets).map(|(_, saved)| saved);
        let dy = weights.head_backward(&pass, &walked.hidden, (targets, saved), gradient, gradients)?;
        decoder.walk_back((&weights, &pass), walked.saved, dy, gradients)
    }
}
