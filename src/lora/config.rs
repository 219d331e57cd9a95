//! Which sites an adapter has, at which ranks and scales, and its values before training; or how long a prefix it is.

use super::LoraError;
use crate::common::Seed;
use socius_models::{Layout, Projection, Site, Spec};
use std::collections::{BTreeMap, BTreeSet};

/// Highest rank taken: more than any width of the bases that this program is for has use of.
const RANK_MAX: usize = 4096;

/// Rank and alpha of one site.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SiteConfig {
    /// Rows of A and columns of B.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
}

/// An adapter's settings. Every layer has the same sites except where `overrides` and `without` say otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rows of A and columns of B.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Scale alpha / √rank (arXiv 2312.03732) instead of alpha / rank.
    pub rslora: bool,
    /// Probability of dropping an element of a site's input in training.
    pub dropout: f64,
    /// The linears that are adapted in every layer.
    pub projections: Vec<Projection>,
    /// Sites of another rank or alpha.
    pub overrides: BTreeMap<Site, SiteConfig>,
    /// Sites of `projections` that are left alone.
    pub without: BTreeSet<Site>,
    /// Positions of a trained prefix, in place of factors at any site; 0 if there is none.
    pub positions: usize,
}

impl Default for LoraConfig {
    /// Rank 16, scale 2, every linear.
    fn default() -> Self {
        Self::uniform(16, 32.0, &Projection::ALL)
    }
}

impl LoraConfig {
    /// One rank and alpha on the same projections of every layer.
    pub fn uniform(rank: usize, alpha: f64, projections: &[Projection]) -> Self {
        Self {
            rank,
            alpha,
            rslora: false,
            dropout: 0.0,
            projections: projections.to_vec(),
            overrides: BTreeMap::new(),
            without: BTreeSet::new(),
            positions: 0,
        }
    }

    /// A prefix of `positions` keys and values (see [`Layout::prefix`]). It has no rank.
    pub fn prefix(positions: usize) -> Self {
        Self { positions, ..Self::uniform(0, 0.0, &[]) }
    }

    /// Rank and alpha at `site`, or none where the site is not adapted.
    pub fn at(&self, site: Site) -> Option<SiteConfig> {
        let adapted = self.projections.contains(&site.projection) && !self.without.contains(&site);
        let uniform = SiteConfig { rank: self.rank, alpha: self.alpha };
        adapted.then(|| self.overrides.get(&site).copied().unwrap_or(uniform))
    }

    /// Factor on `B (A x)`: alpha / rank, or alpha / √rank with rsLoRA; rounded once from f64, as peft does.
    pub fn scale(&self, site: SiteConfig) -> f32 {
        let rank = site.rank as f64;
        (site.alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }

    /// The offset table over `spec`.
    ///
    /// # Errors
    /// Names the first setting that is out of range or does not fit `spec`.
    pub fn layout(&self, spec: &Spec) -> Result<Layout, LoraError> {
        if self.positions > 0 {
            self.check_prefix(spec)?;
            return Ok(Layout::prefix(spec, self.positions));
        }
        self.check(spec)?;
        let rows = sites(spec).filter_map(|site| self.at(site).map(|own| (site, own.rank, self.scale(own))));
        let layout = Layout::new(spec, rows);
        if layout.is_empty() {
            return Err(LoraError::config("projections", "no site is adapted; name at least one projection"));
        }
        Ok(layout)
    }

    fn check_prefix(&self, spec: &Spec) -> Result<(), LoraError> {
        if !self.projections.is_empty() {
            return Err(LoraError::config("positions", "a prefix has no factors; name no projections"));
        }
        if self.positions >= spec.context_max {
            let what = format!("a prefix of {} leaves no room in a context of {}", self.positions, spec.context_max);
            return Err(LoraError::config("positions", what));
        }
        Ok(())
    }

    fn check(&self, spec: &Spec) -> Result<(), LoraError> {
        check_site("rank", "alpha", SiteConfig { rank: self.rank, alpha: self.alpha })?;
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(LoraError::config("dropout", format!("{} is not in 0 ≤ p < 1", self.dropout)));
        }
        for (&site, &own) in &self.overrides {
            check_site("overrides", "overrides", own)?;
            if self.at(site).is_none() {
                return Err(LoraError::config("overrides", format!("{site:?} is not among the adapted sites")));
            }
        }
        match self.overrides.keys().chain(&self.without).find(|site| site.layer >= spec.layers) {
            Some(site) => {
                let what = format!("layer {} does not exist; the base has layers 0 to {}", site.layer, spec.layers - 1);
                Err(LoraError::config("overrides", what))
            }
            None => Ok(()),
        }
    }
}

fn check_site(rank_key: &str, alpha_key: &str, site: SiteConfig) -> Result<(), LoraError> {
    if !(1..=RANK_MAX).contains(&site.rank) {
        return Err(LoraError::config(rank_key, format!("rank {} is not in 1..={RANK_MAX}", site.rank)));
    }
    // The scale must be a positive number in f32 too.
    if !(site.alpha >= 1e-30 && site.alpha <= 1e30) {
        return Err(LoraError::config(alpha_key, format!("alpha {} is not a positive number up to 1e30", site.alpha)));
    }
    Ok(())
}

/// Every site that `spec` has, ascending.
pub(super) fn sites(spec: &Spec) -> impl Iterator<Item = Site> + use<> {
    (0..spec.layers).flat_map(|layer| Projection::ALL.into_iter().map(move |projection| Site { layer, projection }))
}

/// θ before training: A uniform in ±1/√inputs, B zero, so that the adapter changes nothing yet. The same distribution as peft
/// (Kaiming uniform with a = √5: bound √3 · √(1/3) / √inputs). Each site draws from its own stream, so a site's values do not
/// depend on which others are adapted.
pub fn init(layout: &Layout, seed: Seed) -> Vec<f32> {
    let mut theta = vec![0.0; layout.len()];
    let seed = seed.purpose("lora.A");
    for parameters in layout.sites() {
        let Site { layer, projection } = parameters.site;
        let mut rng = seed.index(layer as u64).index(projection as u64).rng();
        let bound = 1.0 / (parameters.inputs as f64).sqrt();
        for a in parameters.factors_mut(&mut theta).0 {
            *a = (bound * (2.0 * rng.uniform() - 1.0)) as f32;
        }
    }
    theta
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q0: Site = Site { layer: 0, projection: Projection::Q };

    #[test]
    fn the_scale_is_alpha_over_rank_or_over_its_root() {
        for (rslora, rank, alpha, scale) in
            [(false, 16, 32.0, 2.0), (true, 16, 32.0, 8.0), (true, 8, 1.0, 0.353_553_39)]
        {
            let config = LoraConfig { rslora, ..LoraConfig::uniform(rank, alpha, &[Projection::V]) };
            let layout = config.layout(&Spec::tiny()).unwrap();
            assert!(layout.sites().iter().all(|site| site.scale == scale && site.rank == rank));
            assert_eq!(layout.sites().len(), 3);
        }
    }

    #[test]
    fn overrides_and_exclusions_hold_for_their_site_alone() {
        let mut config = LoraConfig::uniform(4, 8.0, &[Projection::Q, Projection::Down]);
        config.overrides.insert(Q0, SiteConfig { rank: 2, alpha: 1.0 });
        config.without.insert(Site { layer: 2, projection: Projection::Down });
        let layout = config.layout(&Spec::tiny()).unwrap();
        let rows: Vec<_> = layout.sites().iter().map(|s| (s.site.layer, s.rank, s.scale)).collect();
        assert_eq!(rows, [(0, 2, 0.5), (0, 4, 2.0), (1, 4, 2.0), (1, 4, 2.0), (2, 4, 2.0)]);
    }

    #[test]
    fn a_setting_out_of_range_is_named() {
        let good = LoraConfig::uniform(4, 8.0, &[Projection::Q]);
        let far = Site { layer: 3, ..Q0 };
        let own = SiteConfig { rank: 1, alpha: 1.0 };
        for (key, bad) in [
            ("rank", LoraConfig { rank: 0, ..good.clone() }),
            ("rank", LoraConfig { rank: RANK_MAX + 1, ..good.clone() }),
            ("alpha", LoraConfig { alpha: f64::NAN, ..good.clone() }),
            ("alpha", LoraConfig { alpha: 0.0, ..good.clone() }),
            ("dropout", LoraConfig { dropout: 1.0, ..good.clone() }),
            ("projections", LoraConfig { projections: vec![], ..good.clone() }),
            ("overrides", LoraConfig { overrides: [(far, own)].into(), ..good.clone() }),
            ("overrides", LoraConfig { overrides: [(Q0, SiteConfig { rank: 0, ..own })].into(), ..good.clone() }),
            ("overrides", LoraConfig { without: [far].into(), ..good.clone() }),
            ("positions", LoraConfig { positions: 4, ..good.clone() }),
            ("positions", LoraConfig::prefix(Spec::tiny().context_max)),
        ] {
            match bad.layout(&Spec::tiny()) {
                Err(LoraError::Config { key: found, .. }) => assert_eq!(found, key),
                other => panic!("{key}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_untrained_adapter_has_uniform_a_zero_b_and_depends_on_the_seed_alone() {
        let spec = Spec::tiny();
        let all = LoraConfig::default().layout(&spec).unwrap();
        let theta = init(&all, Seed::new(1));
        assert_eq!(theta, init(&all, Seed::new(1)));
        assert_ne!(theta, init(&all, Seed::new(2)));
        for site in all.sites() {
            let bound = 1.0 / (site.inputs as f32).sqrt();
            let a = site.a_of(&theta);
            assert!(a.iter().all(|v| v.abs() <= bound) && site.b_of(&theta).iter().all(|&v| v == 0.0));
            let variance = a.iter().map(|v| v * v).sum::<f32>() / a.len() as f32;
            assert!((variance / (bound * bound / 3.0) - 1.0).abs() < 0.2, "{variance}");
        }
        let only_q = LoraConfig::uniform(16, 32.0, &[Projection::Q]).layout(&spec).unwrap();
        let theta_q = init(&only_q, Seed::new(1));
        assert_eq!(only_q.at(Q0).unwrap().a_of(&theta_q), all.at(Q0).unwrap().a_of(&theta));
    }
}
