//! The OpenAPI document, generated from the handlers and their types.

use super::{chat, completions, learn, llama, models, skills};
use axum::Json;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

#[derive(OpenApi)]
#[openapi(
    info(title = "socius", description = "Many small skills over one frozen transformer."),
    paths(
        chat::complete,
        completions::complete,
        skills::embed,
        models::list,
        models::show,
        models::load,
        models::unload,
        skills::list,
        skills::route,
        skills::feedback,
        learn::start,
        learn::list,
        learn::show,
        learn::cancel,
        learn::watch,
        llama::health,
        llama::props,
        llama::tokenize,
        llama::detokenize,
        llama::apply_template,
        llama::adapters,
        llama::set_adapters,
        llama::metrics,
    ),
    components(schemas(chat::ChatChunk)),
    modifiers(&Key)
)]
struct Document;

/// The key that a server may ask for.
struct Key;

impl Modify for Key {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        document.components.get_or_insert_default().add_security_scheme("key", bearer);
        document.security = Some(vec![SecurityRequirement::new("key", Vec::<String>::new())]);
    }
}

/// This document.
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
