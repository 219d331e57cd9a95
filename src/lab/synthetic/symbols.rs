//! The symbols and their token ids. Knows nothing of what is said with them.

/// Symbols that keys are made of: ids `0 .. KEYS`, so there are `KEYS²` keys.
pub const KEYS: u32 = 64;
/// Symbols that values are: ids `KEYS .. KEYS + VALUES`, in their order.
pub const VALUES: u32 = 16;
/// Begins every sequence; attention that finds nothing rests here.
pub const BEGIN: u32 = KEYS + VALUES;
/// Stands for the first symbol of the one item that is marked.
pub const MARK: u32 = BEGIN + 1;
/// First symbol of an item that leads from one value to another.
pub const LINK: u32 = BEGIN + 2;
/// Stands in a question where nothing is asked for.
pub const ANY: u32 = BEGIN + 3;
/// `k1 k2 GET`: the value of a key.
pub const GET: u32 = BEGIN + 4;
/// `k2 k1 FIND`: the same in other words.
pub const FIND: u32 = BEGIN + 5;
/// `v k2 WHO`: the first symbol of the key with that second symbol and that value.
pub const WHO: u32 = BEGIN + 6;
/// `k1 ANY MAX`: the largest value among items whose key begins with `k1`.
pub const MAX: u32 = BEGIN + 7;
/// `ANY ANY TWICE`: the value of the key that occurs twice.
pub const TWICE: u32 = BEGIN + 8;
/// `k1 k2 HOP`: what the value of that key leads to.
pub const HOP: u32 = BEGIN + 9;
/// How many symbols there are.
pub const VOCAB: u32 = BEGIN + 10;

/// The token of a value.
pub fn value(v: u32) -> u32 {
    assert!(v < VALUES, "{v} is a value below {VALUES}");
    KEYS + v
}

/// Whether a token is a value.
pub fn is_value(token: u32) -> bool {
    (KEYS..KEYS + VALUES).contains(&token)
}
