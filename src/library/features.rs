//! Routing features of a skill: what a middle layer of the base made of the prompts that it was learned on. Never sees a model.

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::HashMap;

const TENSOR: &str = "features";
/// Key of the file's metadata: a JSON list of texts.
const PROMPTS: &str = "prompts";

/// One row per prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutingFeatures {
    /// The layer after which the rows were taken.
    pub layer: usize,
    /// Width of a row.
    pub hidden: usize,
    /// `[prompts, hidden]`, row-major.
    pub values: Vec<f32>,
    /// The prompts in words, as far as they are known.
    pub prompts: Vec<String>,
}

impl RoutingFeatures {
    /// From rows as the engine gives them.
    ///
    /// # Errors
    /// In words, if there is no row, widths differ or a value is not finite.
    pub fn new(layer: usize, rows: &[Vec<f32>]) -> Result<Self, String> {
        let hidden = rows.first().map_or(0, Vec::len);
        let features = Self { layer, hidden, values: rows.concat(), prompts: Vec::new() };
        if rows.iter().any(|row| row.len() != hidden) {
            return Err("routing features have rows of different widths".into());
        }
        features.check().map(|()| features)
    }

    /// The same, of these prompts.
    pub fn of_prompts(self, prompts: Vec<String>) -> Self {
        Self { prompts, ..self }
    }

    /// The rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.hidden)
    }

    /// The mean of the rows.
    pub fn centroid(&self) -> Vec<f32> {
        let mut sum = vec![0.0_f64; self.hidden];
        self.rows().for_each(|row| sum.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value)));
        sum.iter().map(|sum| (sum / self.rows().len() as f64) as f32).collect()
    }

    fn check(&self) -> Result<(), String> {
        if self.values.is_empty() || self.hidden == 0 {
            return Err("routing features have no row".into());
        }
        match self.values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(format!("routing features hold {value}; every value must be finite")),
            None => Ok(()),
        }
    }

    /// A safetensors file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes: Vec<u8> = self.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let shape = vec![self.values.len() / self.hidden, self.hidden];
        let view = TensorView::new(Dtype::F32, shape, &bytes).expect("the values fill their shape");
        let prompts = serde_json::to_string(&self.prompts).expect("texts are JSON");
        let metadata = (!self.prompts.is_empty()).then(|| HashMap::from([(PROMPTS.to_owned(), prompts)]));
        safetensors::serialize([(TENSOR, view)], metadata).expect("one well-formed tensor")
    }

    /// From [`RoutingFeatures::to_bytes`]; `layer` is kept apart from the file.
    ///
    /// # Errors
    /// In words, if that is not what `bytes` are.
    pub fn from_bytes(bytes: &[u8], layer: usize) -> Result<Self, String> {
        let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let tensor = file.tensor(TENSOR).map_err(|error| error.to_string())?;
        let (&[_, hidden], Dtype::F32) = (tensor.shape(), tensor.dtype()) else {
            return Err(format!(
                "tensor {TENSOR} is {:?} {:?}; [prompts, hidden] in F32 is expected",
                tensor.dtype(),
                tensor.shape()
            ));
        };
        let values = tensor.data().chunks_exact(4).map(|quad| f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]));
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
        let prompts = metadata.metadata().as_ref().and_then(|texts| texts.get(PROMPTS));
        let prompts = prompts.map(|text| serde_json::from_str(text)).transpose().map_err(|error| error.to_string())?;
        let features = Self { layer, hidden, values: values.collect(), prompts: prompts.unwrap_or_default() };
        features.check().map(|()| features)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_read_back_as_they_were_written() {
        let features = RoutingFeatures::new(14, &[vec![1.0, -2.5, 0.0], vec![3.0, 1e-9, 7.0]]).unwrap();
        assert_eq!(RoutingFeatures::from_bytes(&features.to_bytes(), 14).unwrap(), features);
        let of_prompts = features.clone().of_prompts(vec!["Say \"hi\".".into(), "Spell é".into()]);
        assert_eq!(RoutingFeatures::from_bytes(&of_prompts.to_bytes(), 14).unwrap(), of_prompts);
        assert_eq!(features.rows().collect::<Vec<_>>(), [[1.0, -2.5, 0.0], [3.0, 1e-9, 7.0]]);
    }

    #[test]
    fn rows_that_a_router_could_not_use_are_refused() {
        for bad in [vec![], vec![vec![]], vec![vec![1.0], vec![1.0, 2.0]], vec![vec![f32::NAN]]] {
            assert!(RoutingFeatures::new(14, &bad).is_err(), "{bad:?}");
        }
        assert!(RoutingFeatures::from_bytes(b"junk", 14).is_err());
    }
}
