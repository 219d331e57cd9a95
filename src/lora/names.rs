//! What other programs call a site: Hugging Face module paths and GGUF tensor names.

use super::LoraError;
use socius_models::{Projection, Site};

/// Path of the module in a Hugging Face model: `model.layers.0.self_attn.q_proj`.
pub(super) fn module_path(site: Site) -> String {
    format!("model.layers.{}.{}", site.layer, site.projection.slot().hugging_face_module())
}

/// Last part of the module's path: `q_proj`.
pub(super) fn leaf(projection: Projection) -> &'static str {
    let module = projection.slot().hugging_face_module();
    module.rsplit('.').next().unwrap_or(module)
}

/// Name of the weight in a GGUF file: `blk.0.attn_q.weight`.
pub(super) fn gguf_tensor(site: Site) -> String {
    let stem = match site.projection {
        Projection::Q => "attn_q",
        Projection::K => "attn_k",
        Projection::V => "attn_v",
        Projection::O => "attn_output",
        Projection::Gate => "ffn_gate",
        Projection::Up => "ffn_up",
        Projection::Down => "ffn_down",
    };
    format!("blk.{}.{stem}.weight", site.layer)
}

/// The projection that `name` means, as in `q`, `q_proj` or `self_attn.q_proj`.
///
/// # Errors
/// If it is none of the seven.
pub fn projection_named(name: &str) -> Result<Projection, LoraError> {
    let last = name.rsplit('.').next().unwrap_or(name);
    let stem = last.strip_suffix("_proj").unwrap_or(last);
    Projection::ALL
        .into_iter()
        .find(|&projection| leaf(projection).strip_suffix("_proj") == Some(stem))
        .ok_or_else(|| LoraError::config("projections", format!("{name:?} is none of q, k, v, o, gate, up, down")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_projection_is_found_by_short_leaf_and_module_name() {
        for (short, projection) in ["q", "k", "v", "o", "gate", "up", "down"].into_iter().zip(Projection::ALL) {
            let module = projection.slot().hugging_face_module();
            for name in [short, leaf(projection), module] {
                assert_eq!(projection_named(name).unwrap(), projection, "{name}");
            }
        }
        for bad in ["", "lm_head", "qq", "q_proj_proj"] {
            assert!(projection_named(bad).is_err(), "{bad:?}");
        }
    }
}
