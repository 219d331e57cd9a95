//! Which tokens may come next under a grammar: JSON schemas, regular expressions and Lark grammars over a vocabulary, compiled once
//! (llguidance). Never sees a logit.

use super::{TextError, Tokenizer};
use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokRxInfo, TokTrie},
};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

/// Compiled grammars that are kept.
const KEPT: usize = 64;
/// A description longer than this is refused.
const BYTES_MAX: usize = 256 << 10;

/// Grammars are compiled by recursion: a level of nesting takes ten bytes of a description, a reference thirty, and neither more than some
/// 5 kB of stack, so this holds any description of [`BYTES_MAX`]. Pages that are not touched cost nothing.
const STACK: usize = 256 << 20;

/// What a text must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// A JSON object, whatever is in it.
    JsonObject,
    /// JSON that fits a schema.
    Schema(Value),
    /// All of it matches a regular expression.
    Regex(String),
    /// A sentence of a Lark grammar, as llguidance reads them.
    Lark(String),
}

impl Grammar {
    fn top_level(&self) -> TopLevelGrammar {
        match self {
            Self::JsonObject => TopLevelGrammar::from_json_schema(compact(json!({ "type": "object" }))),
            Self::Schema(schema) => TopLevelGrammar::from_json_schema(compact(schema.clone())),
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        }
    }

    fn key(&self) -> String {
        match self {
            Self::JsonObject => "object".into(),
            Self::Schema(schema) => format!("schema {schema}"),
            Self::Regex(regex) => format!("regex {regex}"),
            Self::Lark(grammar) => format!("lark {grammar}"),
        }
    }
}

/// Small models write white space without end where a grammar lets them: one line of JSON, spaced as Python spaces it.
fn compact(mut schema: Value) -> Value {
    if let Value::Object(fields) = &mut schema {
        let spacing = json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
        fields.entry("x-guidance").or_insert(spacing);
    }
    schema
}

/// Grammars over one vocabulary; the last ones used are kept compiled.
pub struct Grammars {
    factory: ParserFactory,
    kept: Mutex<VecDeque<(String, GrammarState)>>,
}

impl Grammars {
    /// Over the tokens of `tokenizer`; `end` is the token that ends a text.
    ///
    /// # Errors
    /// If the vocabulary cannot be used.
    pub fn new(tokenizer: &Tokenizer, end: u32) -> Result<Self, TextError> {
        let vocabulary: Vec<Vec<u8>> = (0..tokenizer.len() as u32)
            .map(|id| match tokenizer.is_special(id) {
                // Control tokens stand for no text.
                true => [&[TokTrie::SPECIAL_TOKEN_MARKER], tokenizer.bytes(id)].concat(),
                false => tokenizer.bytes(id).to_vec(),
            })
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocabulary.len() as u32, end), &vocabulary);
        let environment = Arc::new(ApproximateTokEnv::new(trie)) as _;
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &[])
            .map_err(|error| TextError::Grammar(format!("this vocabulary takes no grammar: {error}")))?;
        factory.quiet();
        Ok(Self { factory, kept: Mutex::default() })
    }

    /// The start of `grammar`.
    ///
    /// # Errors
    /// If it is malformed, too large or of a kind that is not supported.
    pub fn compile(&self, grammar: &Grammar) -> Result<GrammarState, TextError> {
        let key = grammar.key();
        if key.len() > BYTES_MAX {
            return Err(TextError::Grammar(format!("{} bytes; at most {BYTES_MAX} are taken", key.len())));
        }
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, state)) = kept().iter().find(|(other, _)| *other == key) {
            return Ok(state.clone());
        }
        let matcher = thread::scope(|scope| {
            let compile = || Matcher::new(self.factory.create_parser(grammar.top_level()));
            let compiling = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, compile);
            compiling
                .map_err(|error| TextError::Grammar(format!("the system gives no thread: {error}")))?
                .join()
                .map_err(|_| TextError::Grammar("the compiler gave up".into()))
        })?;
        if let Some(error) = matcher.get_error() {
            return Err(TextError::Grammar(error.lines().next().unwrap_or("it cannot be followed").to_owned()));
        }
        let state = GrammarState { matcher };
        let mut kept = kept();
        kept.push_back((key, state.clone()));
        if kept.len() > KEPT {
            kept.pop_front();
        }
        Ok(state)
    }
}

/// How far a text is in a grammar. A copy goes on by itself.
pub struct GrammarState {
    matcher: Matcher,
}

impl Clone for GrammarState {
    fn clone(&self) -> Self {
        Self { matcher: self.matcher.deep_clone() }
    }
}

impl fmt::Debug for GrammarState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GrammarState")
    }
}

impl GrammarState {
    /// Calls `ruled_out` for every id below `vocabulary` that may not come next; false if the grammar gave up (its limits of work were
    /// reached). Once the text is complete, only the end may come.
    pub fn rule_out(&mut self, vocabulary: usize, mut ruled_out: impl FnMut(usize)) -> bool {
        let Ok(allowed): Result<SimpleVob, _> = self.matcher.compute_mask_or_eos() else { return false };
        (0..vocabulary).filter(|&id| id >= allowed.len() || !allowed.get(id)).for_each(&mut ruled_out);
        true
    }

    /// `token` came next; false if it may not.
    pub fn accept(&mut self, token: u32) -> bool {
        self.matcher.is_stopped() || self.matcher.consume_token(token).is_ok()
    }
}
