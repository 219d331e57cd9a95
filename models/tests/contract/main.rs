//! What everything above relies on, of every form of a model, through the public interface alone: serving in `decode`, scores and
//! gradients in `training`.

mod decode;
mod training;

use candle_core::Device;
use socius_models::{
    Adapter, Batch, Dtype, Layout, Model, ModelError, Projection, RandomSource, RopeScaling, Row, Site, Spec, Target,
    TargetTokens, TensorSource,
};

/// Of every model's weights.
const SEED: u64 = 1;

/// The architectures that take another path somewhere: grouped, single and full key heads, tied and untied heads, both kinds of
/// stretched rotation, odd widths.
fn specs() -> Vec<Spec> {
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low_frequency: 1.0, high_frequency: 4.0, original_context: 64.0 };
    let linear = RopeScaling::Linear { factor: 4.0 };
    vec![
        Spec::tiny(),
        Spec { tied_head: false, rope_scaling: llama3, ..Spec::tiny() },
        Spec { heads: 3, kv_heads: 1, head_dim: 10, hidden: 23, intermediate: 31, vocab: 101, ..Spec::tiny() },
        Spec { heads: 4, kv_heads: 4, head_dim: 8, hidden: 32, rope_scaling: linear, ..Spec::tiny() },
    ]
}

/// A model, and how far its numbers may move relative to the largest of them.
struct Form {
    name: String,
    dtype: Dtype,
    model: Model,
    /// When rows are computed in other company: not at all, in the form that serves and trains on a CPU.
    company: f32,
}

impl Form {
    /// The same computation in other company.
    fn assert_same(&self, what: &str, found: &[f32], expected: &[f32]) {
        self.assert_within(self.company, what, found, expected);
    }

    /// The same numbers by another computation, of unrounded weights.
    fn assert_close(&self, what: &str, found: &[f32], expected: &[f32]) {
        let bound = if self.dtype == Dtype::Bf16 { 1e-2 } else { 1e-5 };
        self.assert_within(bound, what, found, expected);
    }

    fn assert_within(&self, bound: f32, what: &str, found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len(), "{}: {what}", self.name);
        let scale = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!(scale > 0.0, "{}: {what} is all zero", self.name);
        let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst <= bound * scale, "{}: {what} differs by {worst} of {scale}", self.name);
    }
}

/// Every form of every architecture.
fn forms() -> Vec<Form> {
    type Load = fn(Spec, &dyn TensorSource, &Device, Dtype) -> Result<Model, ModelError>;
    let kinds: [(&str, Load, Dtype, f32); 3] = [
        ("reference", Model::load_reference, Dtype::F32, 1e-5),
        ("fast", Model::load, Dtype::F32, 0.0),
        ("fast", Model::load, Dtype::Bf16, 0.0),
    ];
    let of = |spec: Spec| {
        kinds.map(|(kind, load, dtype, company)| {
            let source = RandomSource { spec: spec.clone(), seed: SEED };
            let name = format!("{kind} {dtype:?}, {} heads over {} keys", spec.heads, spec.kv_heads);
            Form { name, dtype, model: load(spec.clone(), &source, &Device::Cpu, dtype).expect("it loads"), company }
        })
    };
    specs().into_iter().flat_map(of).collect()
}

/// An adapter with every value set, `B` too.
struct Learner {
    layout: Layout,
    theta: Vec<f32>,
}

impl Learner {
    fn new(spec: &Spec, seed: u64, rank: usize, projections: &[Projection]) -> Self {
        Self::on(Layout::uniform(spec, projections, rank, 1.5), seed)
    }

    fn on(layout: Layout, seed: u64) -> Self {
        // Values like those of any other random checkpoint, of one row as wide as θ.
        let spec = Spec { vocab: 1, hidden: layout.len(), ..Spec::tiny() };
        let gain = 0.15 * (layout.len() as f32).sqrt();
        let theta =
            RandomSource { spec, seed }.values(socius_models::Slot::Embedding).iter().map(|x| gain * x).collect();
        Self { layout, theta }
    }

    fn adapter(&self) -> Adapter<'_> {
        Adapter::new(&self.layout, &self.theta)
    }
}

/// Three learners: every site, some sites, one site of the last layer.
fn learners(spec: &Spec) -> [Learner; 3] {
    let last = Site { layer: spec.layers - 1, projection: Projection::Up };
    [
        Learner::new(spec, 1, 3, &Projection::ALL),
        Learner::new(spec, 2, 1, &[Projection::Q, Projection::V, Projection::Down]),
        Learner::on(Layout::new(spec, [(last, 2, 0.5)]), 3),
    ]
}

fn token(position: usize, token: u32) -> Target {
    Target { position, tokens: TargetTokens::Token(token) }
}

/// Logits after every token of `rows`, each on its own sequence.
fn logits(model: &Model, rows: &[Row<'_>], adapters: &[Adapter<'_>]) -> Vec<f32> {
    let batch = Batch::new(rows.iter().cloned());
    let mut sequences: Vec<_> = rows.iter().map(|_| model.sequence()).collect();
    let wanted: Vec<usize> = (0..batch.tokens().len()).collect();
    model.forward(&batch, adapters, &mut sequences.iter_mut().collect::<Vec<_>>(), &wanted).expect("a forward pass")
}
