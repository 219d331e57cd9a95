//! A learner as a file, optimiser state included: safetensors with a versioned, digest-checked header. Never sees models or rows.

use super::{Learner, TrainError, learner::Counters};
use crate::common::{Digest, write_atomic};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use socius_models::{Layout, Projection, Site, Spec};
use std::{collections::HashMap, path::Path};

/// Raised when the meaning of the file changes.
const VERSION: u32 = 1;
/// The one metadata key; its value is a [`Header`] as JSON.
const KEY: &str = "socius.learner";
/// The tensors, in the order of the digest.
const BUFFERS: [&str; 4] = ["theta", "gradient", "first_moment", "second_moment"];

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    /// Of the state's JSON, then each buffer's bytes.
    digest: Digest,
    state: State,
}

#[derive(Serialize, Deserialize)]
struct State {
    counters: Counters,
    /// `(layer, projection in layout order, rank, scale)`.
    sites: Vec<(usize, usize, usize, f32)>,
    /// Whether θ is every weight of the model.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    whole: bool,
    /// Positions of a trained prefix, if θ is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    positions: Option<std::num::NonZero<usize>>,
}

impl Learner {
    /// Writes the learner to `path`, whole or not at all. Equal learners give equal bytes.
    pub fn save(&self, path: &Path) -> Result<(), TrainError> {
        write_atomic(path, &self.to_bytes()).map_err(|source| TrainError::Io { path: path.into(), source })
    }

    /// Reads what [`Learner::save`] wrote; it goes on to the same bytes as a learner that was never put away.
    ///
    /// # Errors
    /// If the file is truncated, corrupt, of another version, or its sites do not fit `spec`.
    pub fn load(path: &Path, spec: &Spec) -> Result<Self, TrainError> {
        let bytes = std::fs::read(path).map_err(|source| TrainError::Io { path: path.into(), source })?;
        Self::from_bytes(&bytes, spec).map_err(|what| TrainError::File { path: path.into(), what })
    }

    fn to_bytes(&self) -> Vec<u8> {
        let site = |s: &socius_models::SiteParameters| (s.site.layer, s.site.projection as usize, s.rank, s.scale);
        let sites = self.layout.sites().iter().map(site).collect();
        let positions = std::num::NonZero::new(self.layout.positions());
        let state = State { counters: self.counters.clone(), sites, whole: self.layout.is_whole(), positions };
        let data = [&self.theta[..], self.gradient(), &self.moments[0], &self.moments[1]].map(little_endian);
        let digest = digest(&state, data.each_ref().map(|bytes| &bytes[..]));
        let header = serde_json::to_string(&Header { version: VERSION, digest, state }).expect("plain data serialises");
        let view = |bytes| TensorView::new(Dtype::F32, vec![self.theta.len()], bytes).expect("a length fits its bytes");
        let views = BUFFERS.into_iter().zip(data.iter().map(|bytes| view(bytes)));
        safetensors::serialize(views, Some(HashMap::from([(KEY.to_owned(), header)]))).expect("four plain tensors")
    }

    fn from_bytes(bytes: &[u8], spec: &Spec) -> Result<Self, String> {
        let damaged = |error| format!("not a whole safetensors file ({error}): restore it or start again");
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
        let file = SafeTensors::deserialize(bytes).map_err(damaged)?;
        let header = metadata.metadata().as_ref().and_then(|m| m.get(KEY));
        let header = header.ok_or_else(|| format!("its header lacks {KEY}: it holds no learner"))?;
        let Header { version, digest: expected, state } = serde_json::from_str(header)
            .map_err(|error| format!("header {KEY} cannot be read ({error}): version {VERSION} is expected"))?;
        if version != VERSION {
            return Err(format!("version {version}, but this program reads version {VERSION}"));
        }
        let layout = match state.positions {
            Some(positions) if positions.get() <= spec.context_max => Layout::prefix(spec, positions.get()),
            Some(positions) => {
                return Err(format!("a prefix of {positions} positions does not fit the base's context"));
            }
            None if state.whole => Layout::whole(spec),
            None => layout(&state.sites, spec)?,
        };
        let mut data: [&[u8]; 4] = [&[]; 4];
        for (data, name) in data.iter_mut().zip(BUFFERS) {
            let view = file.tensor(name).map_err(|error| format!("tensor {name}: {error}"))?;
            let (dtype, shape, expected) = (view.dtype(), view.shape(), layout.len());
            if dtype != Dtype::F32 || shape != [expected] {
                return Err(format!("tensor {name} is {dtype:?} {shape:?}, expected F32 [{expected}] from its sites"));
            }
            *data = view.data();
        }
        if digest(&state, data) != expected {
            return Err(
                "its content does not have the digest in its header: it is corrupt, restore it or start again".into()
            );
        }
        let [theta, mut gradient, first, second] = data.map(floats);
        gradient.resize(layout.gradient_len(), 0.0);
        Ok(Self { layout, theta, gradient, moments: [first, second], counters: state.counters })
    }
}

fn layout(sites: &[(usize, usize, usize, f32)], spec: &Spec) -> Result<Layout, String> {
    let mut rows = Vec::with_capacity(sites.len());
    for &(layer, projection, rank, scale) in sites {
        let known = Projection::ALL.get(projection).filter(|_| layer < spec.layers && rank > 0);
        let Some(&projection) = known else {
            let site = format!("site {projection} of layer {layer} with rank {rank}");
            return Err(format!(
                "{site} does not fit the base, which has {} layers: load it with its own base",
                spec.layers
            ));
        };
        rows.push((Site { layer, projection }, rank, scale));
    }
    Ok(Layout::new(spec, rows))
}

fn digest(state: &State, data: [&[u8]; 4]) -> Digest {
    let state = serde_json::to_vec(state).expect("plain data serialises");
    Digest::of_parts(std::iter::once(&state[..]).chain(data))
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let float = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().expect("four bytes"));
    bytes.chunks_exact(4).map(float).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        common::Seed,
        train::{AdamW, optim_step},
    };

    fn learner() -> Learner {
        let spec = Spec::tiny();
        let layout = Layout::uniform(&spec, &[Projection::V, Projection::Down], 3, 0.3);
        let mut rng = Seed::new(5).rng();
        let theta = (0..layout.len()).map(|_| rng.normal() as f32).collect();
        let mut learner = Learner::new(layout, theta, u64::MAX, 0.1);
        learner.gradient.iter_mut().for_each(|g| *g = rng.normal() as f32);
        optim_step(&mut learner, &AdamW::default()).unwrap();
        learner.gradient[3] = -0.25;
        learner.counters.pending = 7;
        learner
    }

    #[test]
    fn a_learner_reads_back_as_it_was_and_equal_learners_give_equal_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("learner.safetensors");
        learner().save(&path).unwrap();
        assert_eq!(Learner::load(&path, &Spec::tiny()).unwrap(), learner());
        assert_eq!(std::fs::read(&path).unwrap(), learner().to_bytes());
    }

    #[test]
    fn a_learner_of_all_weights_or_of_a_prefix_reads_back_as_it_was() {
        let spec = Spec::tiny();
        for layout in [Layout::whole(&spec), Layout::prefix(&spec, 5)] {
            let theta = (0..layout.len()).map(|i| i as f32).collect();
            let mut learner = Learner::new(layout, theta, 1, 0.0);
            learner.gradient[7] = 0.5;
            let bytes = learner.to_bytes();
            assert_eq!(Learner::from_bytes(&bytes, &spec).unwrap(), learner);
            let message = Learner::from_bytes(&bytes, &Spec { layers: 2, ..spec.clone() }).unwrap_err();
            assert!(message.contains("expected F32 ["), "{message}");
        }
    }

    #[test]
    fn a_damaged_file_is_refused_by_name_wherever_the_damage_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("learner.safetensors");
        let whole = learner().to_bytes();
        let refuse = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let error = Learner::load(&path, &Spec::tiny()).unwrap_err();
            assert!(matches!(error, TrainError::File { .. }), "{error:?}");
            assert!(error.to_string().contains("learner.safetensors"), "{error}");
        };
        for length in [0, 4, 100, whole.len() / 2, whole.len() - 1] {
            refuse(&whole[..length]);
        }
        for place in (0..whole.len()).step_by(whole.len() / 97) {
            let mut bytes = whole.clone();
            bytes[place] ^= 0x10;
            refuse(&bytes);
        }
        assert!(matches!(Learner::load(&folder.path().join("none"), &Spec::tiny()), Err(TrainError::Io { .. })));
    }

    #[test]
    fn another_base_or_version_is_refused_with_what_was_expected() {
        let bytes = learner().to_bytes();
        let message = |bytes: &[u8], spec: &Spec| Learner::from_bytes(bytes, spec).unwrap_err();
        assert!(message(&bytes, &Spec { layers: 2, ..Spec::tiny() }).contains("the base, which has 2 layers"));
        assert!(message(&bytes, &Spec { intermediate: 60, ..Spec::tiny() }).contains("expected F32 ["));
        let text = String::from_utf8_lossy(&bytes[..60]).into_owned();
        let place = text.find("version").expect("the header comes first") + "version\\\":".len();
        let mut newer = bytes.clone();
        newer[place] = b'2';
        assert!(message(&newer, &Spec::tiny()).contains("version 2, but this program reads version 1"));
    }
}
