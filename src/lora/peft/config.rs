//! `adapter_config.json`: what peft writes, resolved over a base site by site; and the same, written.

use super::super::{
    Base, LoraConfig, LoraError, SiteConfig,
    config::sites,
    names::{leaf, module_path},
};
use fancy_regex::Regex;
use serde_json::{Map, Value, json};
use socius_models::{Projection, Site, Spec};
use std::collections::{BTreeMap, BTreeSet};

/// Keys that change nothing about what a trained adapter computes on a linear.
const HARMLESS: [&str; 16] = [
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "layers_pattern",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "parent_library",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "velora_config",
];

/// Keys that [`read`] gives a meaning to.
const READ: [&str; 16] = [
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "init_lora_weights",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "use_dora",
    "use_rslora",
];

/// Initialisations that move part of the base's weights into the adapter, so that it fits only a base changed the same way.
const BASE_CHANGING: [&str; 6] = ["pissa", "olora", "loftq", "corda", "lora_ga", "mica"];

/// Keys that peft writes for a prefix and that [`read`] gives a meaning to.
const READ_OF_PREFIX: [&str; 9] = [
    "base_model_name_or_path",
    "encoder_hidden_size",
    "num_attention_heads",
    "num_layers",
    "num_transformer_submodules",
    "num_virtual_tokens",
    "peft_type",
    "prefix_projection",
    "token_dim",
];

pub(super) fn write(config: &LoraConfig, base: Base<'_>) -> Vec<u8> {
    let object = if config.positions > 0 { prefix(config.positions, base) } else { factors(config, base) };
    let mut bytes = serde_json::to_vec_pretty(&object).expect("JSON of plain values");
    bytes.push(b'\n');
    bytes
}

/// What the base makes of a prefix, as peft counts it: heads are those of keys and values.
fn prefix_shape(spec: &Spec) -> [(&'static str, usize); 4] {
    [
        ("num_attention_heads", spec.kv_heads),
        ("num_layers", spec.layers),
        ("num_transformer_submodules", 1),
        ("token_dim", spec.kv_dim()),
    ]
}

fn prefix(positions: usize, base: Base<'_>) -> Value {
    let mut object = json!({
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": null,
        "num_virtual_tokens": positions,
        "prefix_projection": false,
        "encoder_hidden_size": null,
        "inference_mode": true,
    });
    prefix_shape(base.spec).into_iter().for_each(|(key, value)| object[key] = json!(value));
    object
}

fn factors(config: &LoraConfig, base: Base<'_>) -> Value {
    let adapted: Vec<Site> = sites(base.spec).filter(|&site| config.at(site).is_some()).collect();
    let targets: Vec<String> = if config.without.is_empty() {
        let ordered: BTreeSet<Projection> = config.projections.iter().copied().collect();
        ordered.into_iter().map(|projection| leaf(projection).to_owned()).collect()
    } else {
        adapted.iter().map(|&site| module_path(site)).collect()
    };
    let pattern = |value: fn(&SiteConfig) -> Value, uniform: Value| -> Map<String, Value> {
        let rows = config.overrides.iter().map(|(&site, own)| (module_path(site), value(own)));
        rows.filter(|(_, value)| *value != uniform).collect()
    };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": null,
        "r": config.rank,
        "lora_alpha": number(config.alpha),
        "target_modules": targets,
        "rank_pattern": pattern(|own| json!(own.rank), json!(config.rank)),
        "alpha_pattern": pattern(|own| number(own.alpha), number(config.alpha)),
        "bias": "none",
        "lora_dropout": config.dropout,
        "fan_in_fan_out": false,
        "use_rslora": config.rslora,
        "use_dora": false,
        "modules_to_save": null,
        "inference_mode": true,
        "init_lora_weights": true,
    })
}

/// Whole numbers without a point, as peft (which declares alpha an integer) writes them.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

pub(super) fn read(bytes: &[u8], base: Base<'_>) -> Result<LoraConfig, LoraError> {
    let object: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| LoraError::Format {
        file: super::CONFIG_FILE.into(),
        what: format!("not a JSON object: {error}"),
    })?;
    let keys = Keys(&object);
    if keys.get("peft_type").is_some_and(|kind| kind == "PREFIX_TUNING") {
        return keys.prefix(base);
    }
    keys.refuse_unsupported()?;
    keys.check_base(base)?;
    let (rank, alpha) = (keys.rank("r", keys.get("r"))?, keys.number("lora_alpha", keys.get("lora_alpha"))?);
    let ranks = keys.patterns("rank_pattern")?;
    let alphas = keys.patterns("alpha_pattern")?;
    let targets = Targets::read(&keys)?;

    let mut config = LoraConfig {
        rank: rank.unwrap_or(8),
        alpha: alpha.unwrap_or(8.0),
        rslora: keys.flag("use_rslora")?,
        dropout: keys.number("lora_dropout", keys.get("lora_dropout"))?.unwrap_or(0.0),
        projections: Vec::new(),
        overrides: BTreeMap::new(),
        without: BTreeSet::new(),
        positions: 0,
    };
    let mut projections = BTreeSet::new();
    let mut left = Vec::new();
    for site in sites(base.spec) {
        let path = module_path(site);
        if !targets.select(site.layer, &path)? {
            left.push(site);
            continue;
        }
        projections.insert(site.projection);
        let rank = match first_match(&ranks, &path)? {
            Some(value) => keys.rank("rank_pattern", Some(value))?.unwrap_or(config.rank),
            None => config.rank,
        };
        let alpha = match first_match(&alphas, &path)? {
            Some(value) => keys.number("alpha_pattern", Some(value))?.unwrap_or(config.alpha),
            None => config.alpha,
        };
        if (rank, alpha) != (config.rank, config.alpha) {
            config.overrides.insert(site, SiteConfig { rank, alpha });
        }
    }
    if projections.is_empty() {
        return Err(LoraError::config("target_modules", "selects no linear of this base's layers"));
    }
    config.without = left.into_iter().filter(|site| projections.contains(&site.projection)).collect();
    config.projections = projections.into_iter().collect();
    Ok(config)
}

/// The object, read key by key; `null` counts as absent.
struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn refuse_unsupported(&self) -> Result<(), LoraError> {
        match self.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            _ => return Err(self.wrong("peft_type", "only \"LORA\" and \"PREFIX_TUNING\" are supported")),
        }
        if self.get("bias").is_some_and(|bias| bias != "none") {
            return Err(self.wrong("bias", "only \"none\" is supported"));
        }
        if self.get("modules_to_save").is_some_and(|value| !is_empty(value)) {
            return Err(
                self.wrong("modules_to_save", "whole modules cannot be replaced; only LoRA factors are supported")
            );
        }
        for key in ["use_dora", "fan_in_fan_out"] {
            if self.flag(key)? {
                return Err(self.wrong(key, "only false is supported"));
            }
        }
        let initialised = self.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
        if BASE_CHANGING.iter().any(|name| initialised.starts_with(name)) {
            let what =
                "this initialisation changes the base's weights; convert the adapter to plain LoRA in peft first";
            return Err(self.wrong("init_lora_weights", what));
        }
        self.refuse_unknown(&READ)
    }

    /// Whatever a newer peft adds is refused when it is switched on, since it may change what the adapter computes.
    fn refuse_unknown(&self, read: &[&str]) -> Result<(), LoraError> {
        let unknown = self.0.keys().find(|key| {
            let known = HARMLESS.contains(&key.as_str()) || read.contains(&key.as_str());
            !known && self.get(key).is_some_and(|value| !is_empty(value))
        });
        match unknown {
            Some(key) => Err(self.wrong(key, "not supported; leave it out, null or false")),
            None => Ok(()),
        }
    }

    /// A prefix without a network that makes it.
    fn prefix(&self, base: Base<'_>) -> Result<LoraConfig, LoraError> {
        self.refuse_unknown(&READ_OF_PREFIX)?;
        self.check_base(base)?;
        if self.flag("prefix_projection")? {
            return Err(self.wrong("prefix_projection", "only false is supported"));
        }
        for (key, expected) in prefix_shape(base.spec) {
            if self.rank(key, self.get(key))?.is_some_and(|found| found != expected) {
                return Err(self.wrong(key, &format!("this base needs {expected}")));
            }
        }
        const LENGTH: &str = "num_virtual_tokens";
        let positions = self.rank(LENGTH, self.get(LENGTH))?;
        Ok(LoraConfig::prefix(positions.ok_or_else(|| self.wrong(LENGTH, "a positive whole number is expected"))?))
    }

    fn check_base(&self, base: Base<'_>) -> Result<(), LoraError> {
        const KEY: &str = "base_model_name_or_path";
        match self.string(KEY)? {
            Some(found) if !found.is_empty() && !base.is_named(found) => {
                Err(LoraError::ForeignBase { key: KEY, found: found.to_owned(), expected: base.name.to_owned() })
            }
            _ => Ok(()),
        }
    }

    fn string(&self, key: &str) -> Result<Option<&'a str>, LoraError> {
        let text = |value: &'a Value| value.as_str().ok_or_else(|| self.wrong(key, "a string is expected"));
        self.get(key).map(text).transpose()
    }

    fn flag(&self, key: &str) -> Result<bool, LoraError> {
        let flag = |value: &Value| value.as_bool().ok_or_else(|| self.wrong(key, "true or false is expected"));
        Ok(self.get(key).map(flag).transpose()?.unwrap_or(false))
    }

    fn rank(&self, key: &str, value: Option<&Value>) -> Result<Option<usize>, LoraError> {
        let rank = |value: &Value| {
            let rank = value.as_u64().filter(|&rank| rank > 0).and_then(|rank| usize::try_from(rank).ok());
            rank.ok_or_else(|| self.wrong(key, "a positive whole number is expected"))
        };
        value.map(rank).transpose()
    }

    fn number(&self, key: &str, value: Option<&Value>) -> Result<Option<f64>, LoraError> {
        let number = |value: &Value| value.as_f64().ok_or_else(|| self.wrong(key, "a number is expected"));
        value.map(number).transpose()
    }

    /// A rank or alpha pattern: peft takes the first key, in the file's order, that matches the end of a module's path.
    fn patterns(&self, key: &str) -> Result<Vec<(Regex, &'a Value)>, LoraError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let rows = value.as_object().ok_or_else(|| self.wrong(key, "an object of patterns is expected"))?;
        rows.iter().map(|(pattern, value)| Ok((regex(key, &format!(r"^(.*\.)?({pattern})$"))?, value))).collect()
    }

    fn wrong(&self, key: &str, what: &str) -> LoraError {
        let found = self.0.get(key).map_or("it is absent".to_owned(), |value| format!("found {}", brief(value)));
        LoraError::config(key, format!("{found}; {what}"))
    }
}

/// A value as it may stand in a message.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// `null`, `false`, and what holds nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(rows) => rows.is_empty(),
    }
}

fn regex(key: &str, pattern: &str) -> Result<Regex, LoraError> {
    Regex::new(pattern)
        .map_err(|error| LoraError::config(key, format!("{pattern:?} is not a regular expression: {error}")))
}

fn matches(key: &str, regex: &Regex, path: &str) -> Result<bool, LoraError> {
    regex.is_match(path).map_err(|error| LoraError::config(key, format!("{regex}: {error}")))
}

fn first_match<'a>(patterns: &[(Regex, &'a Value)], path: &str) -> Result<Option<&'a Value>, LoraError> {
    for (regex, value) in patterns {
        if matches("rank_pattern or alpha_pattern", regex, path)? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// Modules named by a list of path ends, or by a regular expression over whole paths.
enum Selection {
    Ends(Vec<String>),
    Whole(Regex),
}

impl Selection {
    fn read(keys: &Keys<'_>, key: &'static str) -> Result<Option<Self>, LoraError> {
        match keys.get(key) {
            None => Ok(None),
            Some(Value::String(pattern)) => Ok(Some(Self::Whole(regex(key, &format!("^(?:{pattern})$"))?))),
            Some(Value::Array(ends)) => {
                let ends = ends.iter().map(|end| {
                    end.as_str().map(str::to_owned).ok_or_else(|| keys.wrong(key, "a list of module names is expected"))
                });
                Ok(Some(Self::Ends(ends.collect::<Result<_, _>>()?)))
            }
            Some(_) => Err(keys.wrong(key, "a list of module names or a regular expression is expected")),
        }
    }

    fn selects(&self, key: &'static str, path: &str) -> Result<bool, LoraError> {
        match self {
            Self::Whole(regex) => matches(key, regex, path),
            Self::Ends(ends) => Ok(ends.iter().any(|end| ends_in(path, end))),
        }
    }
}

/// Whether `end` is `path` or some of its last components.
fn ends_in(path: &str, end: &str) -> bool {
    path.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

struct Targets {
    selection: Selection,
    excluded: Option<Selection>,
    layers: Option<Vec<u64>>,
}

impl Targets {
    fn read(keys: &Keys<'_>) -> Result<Self, LoraError> {
        const KEY: &str = "target_modules";
        let all_linear =
            keys.get(KEY).and_then(Value::as_str).is_some_and(|text| text.eq_ignore_ascii_case("all-linear"));
        // peft's "all-linear" leaves the output head out, so it is the seven projections.
        let selection = if all_linear {
            Selection::Ends(Projection::ALL.map(|projection| leaf(projection).to_owned()).into())
        } else {
            Selection::read(keys, KEY)?.ok_or_else(|| keys.wrong(KEY, "name the adapted modules"))?
        };
        if let Selection::Ends(ends) = &selection {
            // A name that selects nothing (`lm_head`, a module of another family) would be dropped silently.
            let known = |end: &&String| Projection::ALL.iter().any(|&projection| ends_in(end, leaf(projection)));
            if let Some(end) = ends.iter().find(|end| !known(end)) {
                return Err(LoraError::config(KEY, format!("{end:?} is not a linear of a layer of this base")));
            }
        }
        let layers = match keys.get("layers_to_transform") {
            None => None,
            Some(value) => {
                let one = std::slice::from_ref(value);
                let rows = value.as_array().map_or(one, Vec::as_slice).iter().map(Value::as_u64);
                let layers: Option<Vec<u64>> = rows.collect();
                let wrong = || keys.wrong("layers_to_transform", "a layer's index or a list of them is expected");
                Some(layers.ok_or_else(wrong)?).filter(|layers| !layers.is_empty())
            }
        };
        if layers.is_some() && matches!(selection, Selection::Whole(_)) {
            return Err(keys.wrong("layers_to_transform", "works only with `target_modules` as a list"));
        }
        Ok(Self { selection, excluded: Selection::read(keys, "exclude_modules")?, layers })
    }

    fn select(&self, layer: usize, path: &str) -> Result<bool, LoraError> {
        if self.layers.as_ref().is_some_and(|layers| !layers.contains(&(layer as u64))) {
            return Ok(false);
        }
        let excluded = match &self.excluded {
            Some(excluded) => excluded.selects("exclude_modules", path)?,
            None => false,
        };
        Ok(!excluded && self.selection.selects("target_modules", path)?)
    }
}

#[cfg(test)]
mod tests;
