//! Small adapters for tests. Never compiled into the program.

use super::{Base, LoraConfig, LoraWeights, SiteConfig};
use crate::common::Seed;
use socius_models::{Projection, Site, Spec};

/// `spec` under the names `org/Tiny` and `other-name`.
pub(crate) fn base(spec: &Spec) -> Base<'_> {
    static ALIASES: std::sync::LazyLock<Vec<String>> = std::sync::LazyLock::new(|| vec!["other-name".into()]);
    Base { spec, name: "org/Tiny", aliases: &ALIASES }
}

/// `config` with random values in both factors.
pub(crate) fn random(config: LoraConfig, spec: &Spec, seed: u64) -> LoraWeights {
    let count = config.layout(spec).unwrap().len();
    let mut rng = Seed::new(seed).rng();
    LoraWeights::new(config, spec, (0..count).map(|_| rng.normal() as f32).collect()).unwrap()
}

/// One rank and scale on some projections.
pub(crate) fn uniform(spec: &Spec) -> LoraWeights {
    random(LoraConfig::uniform(4, 8.0, &[Projection::Q, Projection::K, Projection::V, Projection::Down]), spec, 1)
}

/// Several ranks and scales, rsLoRA, dropout, and a site left out.
pub(crate) fn mixed(spec: &Spec) -> LoraWeights {
    let mut config = LoraConfig { rslora: true, dropout: 0.1, ..LoraConfig::uniform(4, 8.0, &Projection::ALL) };
    config.overrides.insert(Site { layer: 0, projection: Projection::K }, SiteConfig { rank: 2, alpha: 8.0 });
    config.overrides.insert(Site { layer: 1, projection: Projection::Up }, SiteConfig { rank: 5, alpha: 3.5 });
    config.without.insert(Site { layer: 2, projection: Projection::Down });
    random(config, spec, 2)
}
