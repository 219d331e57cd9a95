//! How a learner's parameters lie in its flat buffer θ: low-rank factors at sites, every weight of the model, or the keys and values of a
//! prefix. Never their values.

use crate::{ModelError, Projection, Site, SiteParameters, Slot, Spec, TensorSource, half};
use candle_core::{Device, Tensor};
use std::ops::Range;

/// The offset table of a flat parameter buffer θ, without gaps: the low-rank factors of sites in ascending order, each `A` then `B`;
/// or whole tensors in the order of [`Spec::slots`]; or of each layer a prefix's keys, then its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    sites: Vec<SiteParameters>,
    index: Vec<Option<usize>>,
    tensors: Vec<(Slot, Range<usize>)>,
    len: usize,
    /// Values of a second sum that a gradient has: see [`Layout::gradient_len`].
    shared: usize,
    prefix: Prefix,
}

/// How much a prefix holds; nothing unless the layout is one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Prefix {
    positions: usize,
    /// Of a key, and of a value.
    width: usize,
}

impl Layout {
    /// The layout of `(site, rank, scale)` rows over `spec`; order and duplicates do not matter (the last row of a site wins).
    ///
    /// # Panics
    /// If a rank is 0 or the architecture has no such site: callers check user input first.
    pub fn new(spec: &Spec, rows: impl IntoIterator<Item = (Site, usize, f32)>) -> Self {
        let rows: std::collections::BTreeMap<_, _> =
            rows.into_iter().map(|(site, rank, scale)| (site, (rank, scale))).collect();
        let mut layout = Self {
            sites: Vec::with_capacity(rows.len()),
            index: vec![None; spec.layers * Projection::ALL.len()],
            tensors: Vec::new(),
            len: 0,
            shared: 0,
            prefix: Prefix::default(),
        };
        for (site, (rank, scale)) in rows {
            assert!(rank > 0 && spec.has(site), "site {site:?} of rank {rank} does not fit the base");
            let shape = spec.shape(Slot::Layer(site.layer, site.projection.slot()));
            let (outputs, inputs) = (shape[0], shape[1]);
            let (a, b) = (layout.len, layout.len + rank * inputs);
            layout.index[Self::key(site)] = Some(layout.sites.len());
            layout.sites.push(SiteParameters { site, rank, inputs, outputs, scale, a, b });
            layout.len = b + outputs * rank;
        }
        layout
    }

    /// One rank and scale on the same projections of every layer, as far as the architecture has them.
    pub fn uniform(spec: &Spec, projections: &[Projection], rank: usize, scale: f32) -> Self {
        let sites =
            (0..spec.layers).flat_map(|layer| projections.iter().map(move |&projection| Site { layer, projection }));
        Self::new(spec, sites.filter(|&site| spec.has(site)).map(|site| (site, rank, scale)))
    }

    /// Every weight of the model: what learns under it replaces the base. A pass runs on the weights of one such learner, or on the
    /// base's.
    pub fn whole(spec: &Spec) -> Self {
        let mut layout = Self::new(spec, []);
        for slot in spec.slots() {
            let end = layout.len + spec.shape(slot).iter().product::<usize>();
            layout.tensors.push((slot, layout.len..end));
            layout.len = end;
        }
        layout.shared = if spec.tied_head { spec.vocab * spec.hidden } else { 0 };
        layout
    }

    /// The keys, as they are after the rotary turn, and the values of `positions` positions, in every layer: `[positions, kv_dim]` each. What
    /// runs under it attends to them before its own tokens, which begin at position `positions`. (Prefix tuning, Li & Liang 2021, without a
    /// network that makes the prefix; a cartridge, Eyuboglu et al. 2025, arXiv 2506.06266.)
    ///
    /// # Panics
    /// If there is no position.
    pub fn prefix(spec: &Spec, positions: usize) -> Self {
        assert!(positions > 0, "a prefix has a position");
        let prefix = Prefix { positions, width: spec.kv_dim() };
        Self { prefix, len: 2 * spec.layers * positions * spec.kv_dim(), ..Self::new(spec, []) }
    }

    /// Positions of the trained prefix; 0 where θ is none.
    pub fn positions(&self) -> usize {
        self.prefix.positions
    }

    /// Parameters that every token is multiplied by: all of an adapter's, none of a prefix's, which are attended to.
    pub fn factors(&self) -> usize {
        if self.positions() > 0 { 0 } else { self.len() }
    }

    /// Where the keys and the values of a layer's prefix lie in θ, each `[positions, kv_dim]`, row-major.
    pub fn keys_and_values(&self, layer: usize) -> [Range<usize>; 2] {
        let len = self.prefix.positions * self.prefix.width;
        [2 * layer, 2 * layer + 1].map(|part| part * len..(part + 1) * len)
    }

    /// Whether θ is every weight of the model.
    pub fn is_whole(&self) -> bool {
        !self.tensors.is_empty()
    }

    /// Where the tensor in `slot` lies in θ, row-major. The head of a tied embedding lies where the embedding does.
    ///
    /// # Panics
    /// Unless the layout is whole and the architecture has that slot.
    pub fn tensor(&self, slot: Slot) -> Range<usize> {
        let slot = if slot == Slot::Head && self.shared > 0 { Slot::Embedding } else { slot };
        let found = self.tensors.iter().find(|(of, _)| *of == slot);
        found.unwrap_or_else(|| panic!("a whole layout has no {slot:?}")).1.clone()
    }

    /// θ of a whole layout from weights.
    ///
    /// # Errors
    /// What the source says; a tensor of another shape.
    pub fn read(&self, spec: &Spec, source: &dyn TensorSource) -> Result<Vec<f32>, ModelError> {
        let mut theta = Vec::with_capacity(self.len);
        for &(slot, _) in &self.tensors {
            theta.extend_from_slice(&half::values(spec, source, slot)?);
        }
        Ok(theta)
    }

    /// Values of a gradient: those of θ, and where the head is the embedding, a second sum for what it is worth as the head. Each
    /// of the two is summed over the tokens in order, however these are cut into passes; [`Layout::fold`] makes one of them.
    pub fn gradient_len(&self) -> usize {
        self.len + self.shared
    }

    /// Adds what a tied embedding is worth as the head, which becomes 0, to what it is worth as the embedding.
    pub fn fold(&self, gradient: &mut [f32]) {
        let (own, second) = gradient.split_at_mut(self.len);
        if self.shared > 0 {
            let embedding = &mut own[self.tensor(Slot::Embedding)];
            embedding.iter_mut().zip(&*second).for_each(|(sum, value)| *sum += value);
            second.fill(0.0);
        }
    }

    /// The gradients of `slots`, in the order of the layout, in a gradient of this layout.
    pub(crate) fn gradients_of<'g, const N: usize>(
        &self,
        gradient: &'g mut [f32],
        slots: [Slot; N],
    ) -> [&'g mut [f32]; N] {
        let (mut rest, mut passed) = (gradient, 0);
        slots.map(|slot| {
            let second = slot == Slot::Head && self.shared > 0;
            let range = if second { self.len..self.gradient_len() } else { self.tensor(slot) };
            let skipped = rest.split_off_mut(..range.start - passed);
            skipped.expect("slots come in the order of the layout");
            passed = range.end;
            rest.split_off_mut(..range.len()).expect("a gradient is shaped like its layout")
        })
    }

    fn key(site: Site) -> usize {
        site.layer * Projection::ALL.len() + site.projection as usize
    }

    /// The factors at `site`, if the adapter has any there.
    pub fn at(&self, site: Site) -> Option<&SiteParameters> {
        self.index_of(site).map(|i| &self.sites[i])
    }

    /// Index of `site` in [`Layout::sites`].
    pub(crate) fn index_of(&self, site: Site) -> Option<usize> {
        self.index.get(Self::key(site)).copied().flatten()
    }

    /// Every site, ascending.
    pub fn sites(&self) -> &[SiteParameters] {
        &self.sites
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no parameter at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The weights in a whole layout's θ, as a model is loaded or saved from them.
#[derive(Clone, Copy, Debug)]
pub struct ThetaSource<'a> {
    /// The architecture.
    pub spec: &'a Spec,
    /// A whole layout over it.
    pub layout: &'a Layout,
    /// Of `layout.len()` values.
    pub theta: &'a [f32],
}

impl TensorSource for ThetaSource<'_> {
    fn read(&self, slot: Slot) -> Result<Tensor, ModelError> {
        Ok(Tensor::from_slice(&self.theta[self.layout.tensor(slot)], self.spec.shape(slot), &Device::Cpu)?)
    }

    fn held(&self, slot: Slot) -> Option<&[f32]> {
        Some(&self.theta[self.layout.tensor(slot)])
    }
}
