//! Where an adapter attaches, and the flat layout of its parameters.

use crate::{LayerSlot, Spec};

/// A linear of a layer that an adapter may modify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are the field's own")]
pub enum Projection {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Projection {
    /// All of them, in layout order.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The weight that it names.
    pub fn slot(self) -> LayerSlot {
        match self {
            Self::Q => LayerSlot::Q,
            Self::K => LayerSlot::K,
            Self::V => LayerSlot::V,
            Self::O => LayerSlot::O,
            Self::Gate => LayerSlot::Gate,
            Self::Up => LayerSlot::Up,
            Self::Down => LayerSlot::Down,
        }
    }
}

/// One linear of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// Layer, from 0.
    pub layer: usize,
    /// Which linear of it.
    pub projection: Projection,
}

/// The low-rank factors of one site inside θ: `A` is `[rank, inputs]` at `a`, `B` is `[outputs, rank]` at `b`, both row-major.
/// The site computes `y = W x + scale · B (A x)`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "described above")]
pub struct SiteParameters {
    pub site: Site,
    pub rank: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub scale: f32,
    pub a: usize,
    pub b: usize,
}

impl SiteParameters {
    /// `A` inside θ (or a gradient, or an optimiser moment: all share the layout).
    pub fn a_of<'t>(&self, theta: &'t [f32]) -> &'t [f32] {
        &theta[self.a..self.a + self.rank * self.inputs]
    }

    /// `B` inside θ.
    pub fn b_of<'t>(&self, theta: &'t [f32]) -> &'t [f32] {
        &theta[self.b..self.b + self.outputs * self.rank]
    }

    /// `(A, B)` inside a mutable buffer of the same layout.
    pub fn factors_mut<'t>(&self, theta: &'t mut [f32]) -> (&'t mut [f32], &'t mut [f32]) {
        let both = &mut theta[self.a..self.b + self.outputs * self.rank];
        both.split_at_mut(self.b - self.a)
    }
}

/// The offset table of a flat parameter buffer θ: sites in ascending order, each `A` then `B`, without gaps.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    sites: Vec<SiteParameters>,
    index: Vec<Option<usize>>,
    len: usize,
}

impl Layout {
    /// The layout of `(site, rank, scale)` rows over `spec`; order and duplicates do not matter (the last row of a site wins).
    ///
    /// # Panics
    /// If a rank is 0 or a layer is outside `spec`: callers check user input first.
    pub fn new(spec: &Spec, rows: impl IntoIterator<Item = (Site, usize, f32)>) -> Self {
        let rows: std::collections::BTreeMap<_, _> =
            rows.into_iter().map(|(site, rank, scale)| (site, (rank, scale))).collect();
        let mut layout = Self {
            sites: Vec::with_capacity(rows.len()),
            index: vec![None; spec.layers * Projection::ALL.len()],
            len: 0,
        };
        for (site, (rank, scale)) in rows {
            assert!(rank > 0 && site.layer < spec.layers, "site {site:?} of rank {rank} does not fit the base");
            let shape = spec.shape(crate::Slot::Layer(site.layer, site.projection.slot()));
            let (outputs, inputs) = (shape[0], shape[1]);
            let (a, b) = (layout.len, layout.len + rank * inputs);
            layout.index[Self::key(site)] = Some(layout.sites.len());
            layout.sites.push(SiteParameters { site, rank, inputs, outputs, scale, a, b });
            layout.len = b + outputs * rank;
        }
        layout
    }

    /// One rank and scale on the same projections of every layer.
    pub fn uniform(spec: &Spec, projections: &[Projection], rank: usize, scale: f32) -> Self {
        let sites =
            (0..spec.layers).flat_map(|layer| projections.iter().map(move |&projection| Site { layer, projection }));
        Self::new(spec, sites.map(|site| (site, rank, scale)))
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

    /// Whether there is no site at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
