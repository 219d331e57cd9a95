//! Bodies of requests: JSON into checked types, with the name of the field that is wrong. Knows no endpoint.

use super::error::ApiError;
use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::StatusCode,
    response::IntoResponse,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;
use tokio::time::timeout;

/// How long a body may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A body, whole.
pub(super) struct Whole(pub(super) Bytes);

/// A body as a `T`.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync> FromRequest<S> for Whole {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let read = timeout(PATIENCE, Bytes::from_request(request, state)).await;
        let bytes = read.map_err(|_| ApiError::slow_body(PATIENCE))?.map_err(|rejection| {
            match rejection.into_response().status() {
                StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large("the body is larger than this server takes"),
                _ => ApiError::bad("the body could not be read to its end"),
            }
        })?;
        Ok(Self(bytes))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Whole(bytes) = Whole::from_request(request, state).await?;
        parse(&bytes).map(Self)
    }
}

/// Reads a JSON object. A field that is null is one that is not there.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let wrong = |error: serde_json::Error| ApiError::bad(format!("the body is not JSON: {error}"));
    let mut value: Value = serde_json::from_slice(bytes).map_err(wrong)?;
    let Value::Object(fields) = &mut value else {
        return Err(ApiError::bad("the body must be a JSON object"));
    };
    fields.retain(|_, value| !value.is_null());
    // Clients send messages back as they received them, with null for what they had none of.
    if let Some(Value::Array(messages)) = fields.get_mut("messages") {
        messages.iter_mut().filter_map(Value::as_object_mut).for_each(|message| message.retain(|_, v| !v.is_null()));
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let message = error.inner().to_string();
        match unknown_field(&message) {
            Some(field) => {
                let param = if path == "." || path == field { field.to_owned() } else { format!("{path}.{field}") };
                let param = if path.ends_with(field) { path } else { param };
                ApiError::field(param.clone(), format!("{param} is not supported")).coded("unsupported_parameter")
            }
            None if path == "." => ApiError::bad(message),
            None => ApiError::field(path.clone(), format!("{path}: {message}")),
        }
    })
}

/// The name in "unknown field `name`, expected …".
fn unknown_field(message: &str) -> Option<&str> {
    message.strip_prefix("unknown field `")?.split('`').next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        name: String,
        #[serde(default)]
        messages: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        size: u32,
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        let rows = [
            ("{", "", "not JSON"),
            ("[]", "", "must be a JSON object"),
            (r#"{"messages":[]}"#, "", "missing field `name`"),
            (r#"{"name":1}"#, "name", "expected a string"),
            (r#"{"name":"a","audio":{}}"#, "audio", "audio is not supported"),
            (r#"{"name":"a","messages":[{"size":-1}]}"#, "messages[0].size", "expected u32"),
            (r#"{"name":"a","messages":[{"size":1},{"size":1,"x":2}]}"#, "messages[1].x", "not supported"),
        ];
        for (body, param, part) in rows {
            let error = parse::<Outer>(body.as_bytes()).unwrap_err();
            let shown = serde_json::to_value(error.body()).unwrap();
            assert_eq!(shown["error"]["param"].as_str().unwrap_or_default(), param, "{body}: {shown}");
            assert!(shown["error"]["message"].as_str().unwrap().contains(part), "{body}: {shown}");
        }
        let outer: Outer = parse(br#"{"name":"a","audio":null,"messages":[{"size":1,"refusal":null}]}"#).unwrap();
        assert_eq!((outer.name.as_str(), outer.messages[0].size), ("a", 1));
    }
}
