//! How byte-level vocabularies cut text before merging: llama.cpp's names (`tokenizer.ggml.pre`) as data.

/// A rule of cutting.
#[derive(Debug)]
pub(super) struct Pre {
    names: &'static [&'static str],
    /// Applied one after the other; every match and every gap becomes a piece.
    pub(super) splits: &'static [&'static str],
    /// Whether a piece that is a token is that token, however its merges go.
    pub(super) ignore_merges: bool,
    /// Whether texts begin with bos when the file does not say.
    pub(super) add_bos: bool,
    /// Whether characters are composed first, as the original tokenizer does.
    pub(super) nfc: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const PLAIN: Pre = Pre { names: &[], splits: &[], ignore_merges: false, add_bos: false, nfc: false };

static RULES: &[Pre] = &[
    Pre { names: &["gpt-2"], splits: &[GPT2], ..PLAIN },
    Pre { names: &["smollm", "starcoder", "refact"], splits: &[r"\p{N}", GPT2], ..PLAIN },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "smaug-bpe"],
        splits: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    Pre { names: &["qwen2", "deepseek-r1-qwen"], splits: &[QWEN2], nfc: true, ..PLAIN },
    Pre { names: &["default"], splits: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"], ..PLAIN },
];

/// The rule called `name`; files that do not say mean `default`.
pub(super) fn find(name: Option<&str>) -> Result<&'static Pre, String> {
    let name = name.unwrap_or("default");
    RULES.iter().find(|rule| rule.names.contains(&name)).ok_or_else(|| {
        let names: Vec<_> = RULES.iter().flat_map(|rule| rule.names).copied().collect();
        format!("is {name:?}; supported are {}", names.join(", "))
    })
}
