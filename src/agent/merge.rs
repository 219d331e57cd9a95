//! Skills merged into one: the parents' adapters in, a new generation with all of them as parents out. Never judges it.

use super::{AgentError, Outline};
use crate::{
    common::Digest,
    library::{Candidate, GateDecision, Generation, Library, LibraryError, Provenance, RoutingFeatures, SkillName},
    lora::{self, LoraWeights, Merge, MergeSettings, Merged, Part},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What is to be merged, and how.
pub struct MergeRequest {
    /// What the outcome is called.
    pub name: SkillName,
    /// What is merged.
    pub parents: Vec<Arc<Generation>>,
    /// The parents' shares; only proportions matter.
    pub weights: Vec<f64>,
    /// How.
    pub merge: Merge,
    /// Rank of the outcome; the largest of the parents' without.
    pub rank: Option<usize>,
    /// Factor on the outcome.
    pub scale: f64,
    /// Of what is drawn.
    pub seed: u64,
    /// Whether the router is to know it by its parents' prompts.
    pub routed: bool,
}

/// What a merged generation records of how it came to be.
#[derive(Serialize, Deserialize)]
struct Recorded {
    weights: Vec<f64>,
    #[serde(flatten)]
    settings: MergeSettings,
}

/// Publishes the merged skill; also the share of the merged delta's squared norm that its rank keeps.
///
/// # Errors
/// If a parent belongs to another base or is damaged, a setting is out of range, or the library cannot be written.
pub fn merge(library: &Library, base: &Outline, request: &MergeRequest) -> Result<(Arc<Generation>, f64), AgentError> {
    let MergeRequest { name, parents, weights, merge, scale, seed, .. } = request;
    let rank = request.rank.or_else(|| parents.iter().map(|parent| parent.manifest.rank).max()).unwrap_or(1);
    let settings = MergeSettings { merge: *merge, rank, scale: *scale, seed: *seed };
    let recorded = Recorded { weights: weights.clone(), settings };
    let Merged { lora, kept } = merged(library, base, parents, &recorded)?;
    let names: Vec<String> = parents.iter().map(|parent| parent.manifest.name.to_string()).collect();
    let hyper_parameters = serde_json::to_value(&recorded).expect("settings are JSON");
    let provenance = Provenance {
        learner: "merge".into(),
        hyper_parameters: hyper_parameters.as_object().cloned().unwrap_or_default(),
        seed: Some(*seed),
        parents: parents.iter().map(|parent| parent.id).collect(),
        gate: GateDecision { admitted: true, reasons: vec!["merged; not measured here".into()] },
        ..Provenance::imported(jiff::Timestamp::now())
    };
    let candidate = Candidate {
        name: name.clone(),
        description: format!("merged of {}", names.join(", ")),
        base: base.id.clone(),
        spec: &base.spec,
        lora: &lora,
        episodes: &[],
        routing: if request.routed { united(library, parents)? } else { None },
        provenance,
    };
    Ok((library.publish(&candidate)?, kept))
}

/// Digests of the adapter's tensors merged again, and of those that the generation has.
pub(super) fn merge_again(
    library: &Library,
    base: &Outline,
    generation: &Generation,
) -> Result<(Digest, Digest), AgentError> {
    let provenance = &generation.manifest.provenance;
    let not = |what: String| AgentError::NotReplayable { skill: generation.manifest.name.to_string(), what };
    let recorded: Recorded = serde_json::from_value(provenance.hyper_parameters.clone().into())
        .map_err(|error| not(format!("its settings cannot be read ({error})")))?;
    let parents = provenance.parents.iter().map(|&id| library.generation(id)).collect::<Result<Vec<_>, _>>()?;
    let Merged { lora, .. } = merged(library, base, &parents, &recorded)?;
    Ok((lora.digest(), generation.manifest.blobs.adapter_weights.digest))
}

fn merged(
    library: &Library,
    base: &Outline,
    parents: &[Arc<Generation>],
    recorded: &Recorded,
) -> Result<Merged, AgentError> {
    if parents.len() != recorded.weights.len() {
        let (weights, parents) = (recorded.weights.len(), parents.len());
        return Err(AgentError::Merge { what: format!("there are {weights} weights for {parents} skills") });
    }
    let loras = parents.iter().map(|parent| library.load_weights(parent, &base.id, &base.spec));
    let loras = loras.collect::<Result<Vec<LoraWeights>, LibraryError>>()?;
    let parts: Vec<_> = loras.iter().zip(&recorded.weights).map(|(lora, &weight)| Part { lora, weight }).collect();
    Ok(lora::merge(&parts, &recorded.settings, &base.spec)?)
}

/// Rows and prompts of all parents, as one skill's.
fn united(library: &Library, parents: &[Arc<Generation>]) -> Result<Option<RoutingFeatures>, AgentError> {
    let own = parents.iter().map(|parent| library.routing_features(parent)).collect::<Result<Vec<_>, _>>()?;
    let own: Vec<RoutingFeatures> = own.into_iter().flatten().collect();
    let Some(first) = own.first() else { return Ok(None) };
    if own.iter().any(|features| (features.layer, features.hidden) != (first.layer, first.hidden)) {
        let what = "their routing features were taken after different layers: leave out --routed".to_owned();
        return Err(AgentError::Merge { what });
    }
    let rows: Vec<Vec<f32>> = own.iter().flat_map(|features| features.rows().map(<[f32]>::to_vec)).collect();
    let prompts = own.iter().flat_map(|features| features.prompts.clone()).collect();
    let all = RoutingFeatures::new(first.layer, &rows).map_err(|what| AgentError::Merge { what })?;
    Ok(Some(all.of_prompts(prompts)))
}
