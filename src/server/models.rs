//! `GET /v1/models`, and vLLM's way to load adapters: a loaded adapter is an imported skill, so it outlives a restart.

use super::{
    app::Shared,
    body::Body,
    error::{ApiError, ErrorBody},
};
use crate::library::{Import, LibraryError, SkillName, SkillRef, SkillSummary};
use axum::{
    Json,
    extract::{Path as UrlPath, State},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use utoipa::ToSchema;

/// Something that can be asked for as `model`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelCard {
    id: String,
    /// `model`.
    object: &'static str,
    created: i64,
    owned_by: &'static str,
    /// The checkpoint, or the generation's digest.
    root: String,
    /// What a skill was learned on.
    parent: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelList {
    /// `list`.
    object: &'static str,
    data: Vec<ModelCard>,
}

/// The base, `auto`, and the skills over this base.
#[utoipa::path(get, path = "/v1/models", tag = "openai", responses(
    (status = 200, body = ModelList), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn list(State(app): State<Shared>) -> Result<Json<ModelList>, ApiError> {
    let data = app.blocking(|app| {
        let base = &app.session.base.id;
        let name = app.base_names()[0].to_owned();
        let card = |id: &str| ModelCard {
            id: id.to_owned(),
            object: "model",
            created: app.created,
            owned_by: "socius",
            root: base.name.clone(),
            parent: None,
        };
        let skill = |skill: &SkillSummary| ModelCard {
            created: skill.created.as_second(),
            root: skill.generation.to_string(),
            parent: Some(name.clone()),
            ..card(skill.name.as_str())
        };
        let skills = app.session.library.list()?.skills;
        let own = skills.iter().filter(|skill| skill.base == base.name);
        Ok([card(&name), card("auto")].into_iter().chain(own.map(skill)).collect())
    });
    Ok(Json(ModelList { object: "list", data: data.await? }))
}

/// One of them.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "openai", params(("model" = String, Path)), responses(
    (status = 200, body = ModelCard), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn show(
    State(app): State<Shared>,
    UrlPath(model): UrlPath<String>,
) -> Result<Json<ModelCard>, ApiError> {
    let Json(all) = list(State(app)).await?;
    let found = all.data.into_iter().find(|card| card.id == model);
    let missing = || ApiError::not_found(format!("the model {model:?} does not exist")).coded("model_not_found");
    found.map(Json).ok_or_else(missing)
}

/// An adapter to be loaded.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LoadRequest {
    /// What it will be asked for by.
    lora_name: String,
    /// A PEFT directory or a GGUF file in the server's folder of adapters.
    #[schema(value_type = String)]
    lora_path: PathBuf,
    /// Whether it may become the next generation of a name that exists.
    #[serde(default)]
    load_inplace: bool,
}

/// An adapter to be unloaded.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UnloadRequest {
    lora_name: String,
}

/// Load an adapter from a path, as vLLM does.
#[utoipa::path(post, path = "/v1/load_lora_adapter", tag = "vllm", request_body = LoadRequest, responses(
    (status = 200, body = String, content_type = "text/plain"), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn load(State(app): State<Shared>, Body(request): Body<LoadRequest>) -> Result<String, ApiError> {
    app.blocking(move |app| {
        let LoadRequest { lora_name, lora_path, load_inplace } = request;
        let name = skill_name(&lora_name)?;
        let path = confined(&app.config.adapters, &lora_path)?;
        let base = &app.session.base;
        if !load_inplace && app.session.library.show(&SkillRef::from(name.clone())).is_ok() {
            let message =
                format!("{name} is loaded already: with load_inplace it becomes the next generation of that name");
            return Err(ApiError::bad(message).of("lora_name"));
        }
        app.session.library.import(Import {
            path: &path,
            description: format!("loaded from {}", lora_path.display()),
            base: &base.id,
            spec: base.spec(),
            aliases: &base.aliases,
            routing: None,
            created: Timestamp::now(),
            name: name.clone(),
        })?;
        Ok(format!("Success: LoRA adapter '{name}' added successfully."))
    })
    .await
}

/// Unload an adapter that was loaded or imported, as vLLM does.
#[utoipa::path(post, path = "/v1/unload_lora_adapter", tag = "vllm", request_body = UnloadRequest, responses(
    (status = 200, body = String, content_type = "text/plain"), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn unload(State(app): State<Shared>, Body(request): Body<UnloadRequest>) -> Result<String, ApiError> {
    app.blocking(move |app| {
        let name = skill_name(&request.lora_name)?;
        let library = &app.session.library;
        let generation = library.show(&SkillRef::from(name.clone())).map_err(|error| match error {
            LibraryError::NotFound { .. } => {
                ApiError::not_found(format!("the adapter '{name}' cannot be found")).of("lora_name")
            }
            other => other.into(),
        })?;
        if generation.manifest.provenance.learner != "import" {
            let message = format!("{name} was learned here, not loaded: `socius skills remove {name}` takes it away");
            return Err(ApiError::bad(message).of("lora_name"));
        }
        library.remove(&name)?;
        app.default_skill().take_if(|skill| skill.name == name);
        Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
    })
    .await
}

fn skill_name(name: &str) -> Result<SkillName, ApiError> {
    name.parse().map_err(|error: crate::library::NameError| ApiError::field("lora_name", error.to_string()))
}

/// `path`, if it lies in `root` once every link is followed.
fn confined(root: &Path, path: &Path) -> Result<PathBuf, ApiError> {
    let outside = || {
        let message =
            format!("lora_path must lead to an adapter in the server's folder of adapters, {}", root.display());
        ApiError::field("lora_path", message)
    };
    let real_root = root.canonicalize().map_err(|_| outside())?;
    let real = real_root.join(path).canonicalize().map_err(|_| outside())?;
    if real.starts_with(&real_root) && real != real_root { Ok(real) } else { Err(outside()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_in_its_root_whatever_leads_out() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("adapters");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::create_dir_all(folder.path().join("secret")).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(folder.path().join("secret"), root.join("link")).unwrap();
        for good in ["a", "a/b", "a/../a/b", root.join("a").to_str().unwrap()] {
            assert!(confined(&root, Path::new(good)).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "../secret", "a/../../secret", "/etc", "link", "missing", "a\0b"] {
            assert!(confined(&root, Path::new(bad)).is_err(), "{bad}");
        }
        assert!(confined(&folder.path().join("none"), Path::new("a")).is_err());
    }
}
