//! What a fuzzer sees of requests: bodies through every check that needs no model. Never answers any.

use super::{
    body::parse,
    chat::{ChatRequest, Order, conversation},
    completions::CompletionRequest,
    learn::LearnRequest,
    llama::{AdapterScale, DetokenizeRequest, TemplateRequest, TokenizeRequest},
    models::{LoadRequest, UnloadRequest},
    request::Own,
    skills::{EmbeddingRequest, FeedbackRequest, RouteRequest},
    tools::Reader,
};

/// Reads `body` as the body of one of the endpoints, and `answer` as what a model said to it.
pub fn read(endpoint: u8, body: &[u8], answer: &str) {
    match endpoint % 11 {
        0 | 1 => chat(body, answer),
        2 => drop(parse::<CompletionRequest>(body).map(|r| r.common().plan(Own { max_tokens: 1, top_logprobs: 0 }))),
        3 => drop(parse::<EmbeddingRequest>(body)),
        4 => drop(parse::<LearnRequest>(body)),
        5 => drop(parse::<TokenizeRequest>(body).and(parse::<DetokenizeRequest>(body))),
        6 => drop(parse::<TemplateRequest>(body).map(|request| conversation(request.messages))),
        7 => drop(parse::<LoadRequest>(body).and(parse::<UnloadRequest>(body))),
        8 => drop(parse::<FeedbackRequest>(body)),
        9 => drop(parse::<RouteRequest>(body)),
        _ => drop(serde_json::from_slice::<Vec<AdapterScale>>(body)),
    }
}

fn chat(body: &[u8], answer: &str) {
    let Ok(order) = parse::<ChatRequest>(body).and_then(|request| Order::check(request, 16)) else { return };
    let Some(tools) = order.tools else { return };
    let mut reader = Reader::new(&tools);
    let mut said = String::new();
    for piece in answer.split_inclusive(' ') {
        said += &reader.push(piece);
    }
    let (rest, calls) = reader.finish(&tools, || "id".to_owned());
    said += &rest;
    assert!(answer.starts_with(&said), "what is shown is what was said");
    assert!(!calls.is_empty() || said == answer, "what is no call is shown");
}
