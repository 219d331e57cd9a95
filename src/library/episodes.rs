//! Episodes as one object: JSON lines under zstd.

use crate::{common::Digest, episode::Episode};
use std::io::{BufRead, BufReader, Write};

const LEVEL: i32 = 9;

/// One line per episode, in order; the same episodes give the same bytes.
pub(super) fn to_bytes(episodes: &[Episode]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL).expect("a known level");
    for episode in episodes {
        serde_json::to_writer(&mut encoder, episode).expect("an episode is plain data");
        encoder.write_all(b"\n").expect("memory does not fail");
    }
    encoder.finish().expect("memory does not fail")
}

/// Digest of the object that `episodes` are stored as; none without an episode, as nothing is then.
pub fn episodes_digest(episodes: &[Episode]) -> Option<Digest> {
    (!episodes.is_empty()).then(|| Digest::of(to_bytes(episodes)))
}

/// The episodes in order.
///
/// # Errors
/// In words, naming the line.
pub(super) fn from_bytes(bytes: &[u8]) -> Result<Vec<Episode>, String> {
    let decoder = zstd::Decoder::new(bytes).map_err(|error| error.to_string())?;
    let parse = |(number, line): (usize, std::io::Result<String>)| {
        let line = line.map_err(|error| format!("line {}: {error}", number + 1))?;
        serde_json::from_str(&line).map_err(|error| format!("line {}: {error}", number + 1))
    };
    BufReader::new(decoder).lines().enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::episode::Turn;

    #[test]
    fn episodes_read_back_in_order_to_the_bit() {
        let turn = |i: u32| Turn {
            prompt: vec![1, 2, i],
            action: vec![i],
            logprobs: vec![-0.1 * i as f32 - f32::MIN_POSITIVE],
            generation: (i > 0).then(|| "ab".repeat(32)),
        };
        let episodes: Vec<_> = (0..5)
            .map(|i| Episode {
                env: "reverse".into(),
                item: format!("item\n{i}"),
                wording: 3,
                turns: vec![turn(i); 2],
                reward: 1.0 / 3.0,
                strict: i == 2,
                lenient: true,
                feedback: Some("d o g".into()),
            })
            .collect();
        let bytes = to_bytes(&episodes);
        assert_eq!(bytes, to_bytes(&episodes));
        assert_eq!(from_bytes(&bytes).unwrap(), episodes);
        assert!(from_bytes(&bytes[..bytes.len() - 4]).is_err());
        assert!(from_bytes(&to_bytes(&[])).unwrap().is_empty());
    }
}
