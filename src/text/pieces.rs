//! Token ids back to text: the bytes of every token, and their reading as UTF-8, whole or as they come. Knows no encoding.

use std::collections::HashMap;

/// How a vocabulary spells bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Every byte is one printable character (GPT-2).
    ByteLevel,
    /// Text with `▁` for a space, and `<0x0A>` for a byte. `strip`: encoding adds a space in front, decoding takes it away.
    SentencePiece {
        /// See above.
        strip: bool,
    },
}

/// The bytes of every token.
#[derive(Clone, Debug)]
pub(super) struct Pieces {
    bytes: Vec<Vec<u8>>,
    special: Vec<bool>,
    strip: bool,
}

/// One token of a vocabulary.
pub(super) struct Piece<'a> {
    pub(super) id: u32,
    pub(super) text: &'a str,
    /// Whether it is matched in the text as it is written, rather than spelled.
    pub(super) literal: bool,
    pub(super) special: bool,
}

impl Pieces {
    pub(super) fn new<'a>(spelling: Spelling, pieces: impl IntoIterator<Item = Piece<'a>>) -> Self {
        let strip = matches!(spelling, Spelling::SentencePiece { strip: true });
        let mut table = Self { bytes: Vec::new(), special: Vec::new(), strip };
        let alphabet = byte_alphabet();
        for piece in pieces {
            let id = piece.id as usize;
            if id >= table.bytes.len() {
                table.bytes.resize(id + 1, Vec::new());
                table.special.resize(id + 1, false);
            }
            table.special[id] = piece.special;
            table.bytes[id] = match spelling {
                _ if piece.special => piece.text.as_bytes().to_vec(),
                Spelling::ByteLevel if piece.literal => piece.text.as_bytes().to_vec(),
                Spelling::ByteLevel => unspelled(piece.text, &alphabet),
                Spelling::SentencePiece { .. } => match byte_token(piece.text) {
                    Some(byte) => vec![byte],
                    None => piece.text.replace('▁', " ").into_bytes(),
                },
            };
        }
        table
    }

    /// Number of ids, unused ones among them included.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// Nothing for an id that no token has: models may have more rows than their tokenizers have tokens.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }
}

/// Text of tokens as they come. What it yields are whole characters; bytes that cannot become one are `U+FFFD`.
#[derive(Clone, Debug)]
pub struct Stream<'a> {
    pieces: &'a Pieces,
    show_special: bool,
    started: bool,
    pending: Vec<u8>,
}

impl<'a> Stream<'a> {
    pub(super) fn new(pieces: &'a Pieces, show_special: bool) -> Self {
        Self { pieces, show_special, started: false, pending: Vec::new() }
    }

    /// The characters that `id` completes.
    pub fn push(&mut self, id: u32) -> String {
        if !self.show_special && self.pieces.is_special(id) {
            return String::new();
        }
        let mut bytes = self.pieces.bytes(id);
        if !self.started && !bytes.is_empty() {
            self.started = true;
            if self.pieces.strip {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
        }
        self.pending.extend_from_slice(bytes);
        self.take_complete()
    }

    /// What is left: `U+FFFD` if the last character stayed incomplete, else nothing.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }

    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut kept = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            kept += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                break;
            }
            let incomplete = std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if incomplete && kept + invalid.len() == self.pending.len() {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            kept += invalid.len();
        }
        self.pending.drain(..kept);
        text
    }
}

/// GPT-2's characters for the 256 bytes: printable ones stand for themselves, the others for `U+0100` on, in order.
pub(super) fn byte_alphabet() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut shifted = (0x100..).filter_map(char::from_u32);
    let mut spell = |byte: u8| if printable(byte) { char::from(byte) } else { shifted.next().unwrap_or('\0') };
    (0..=255).map(|byte| (spell(byte), byte)).collect()
}

fn unspelled(text: &str, alphabet: &HashMap<char, u8>) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = text.chars().map(|c| alphabet.get(&c).copied()).collect();
    bytes.unwrap_or_else(|| text.as_bytes().to_vec())
}

fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && digits.is_ascii()).then(|| u8::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A vocabulary whose token `b` is byte `b`, and 256 is special.
    fn bytes() -> Pieces {
        let alphabet: HashMap<u8, char> = byte_alphabet().into_iter().map(|(c, b)| (b, c)).collect();
        let spelled: Vec<String> = (0..=255).map(|byte| alphabet[&byte].to_string()).collect();
        let pieces = spelled.iter().zip(0..).map(|(text, id)| Piece { id, text, literal: false, special: false });
        Pieces::new(Spelling::ByteLevel, pieces.chain([Piece { id: 256, text: "<s>", literal: true, special: true }]))
    }

    fn streamed(pieces: &Pieces, ids: &[u32]) -> (Vec<String>, String) {
        let mut stream = Stream::new(pieces, false);
        let parts = ids.iter().map(|id| stream.push(*id)).collect();
        (parts, stream.finish())
    }

    #[test]
    fn the_alphabet_is_gpt_2s() {
        let alphabet = byte_alphabet();
        assert_eq!(alphabet.len(), 256);
        for (c, byte) in [('Ġ', b' '), ('Ċ', b'\n'), ('!', b'!'), ('Ā', 0), ('Ń', 0xad), ('ÿ', 0xff), ('ł', 0xa0)]
        {
            assert_eq!(alphabet[&c], byte, "{c}");
        }
    }

    #[test]
    fn a_character_appears_with_its_last_byte_and_special_tokens_not_at_all() {
        let ids: Vec<u32> = "aé😀".bytes().map(u32::from).collect();
        let (parts, rest) = streamed(&bytes(), &[&ids[..], &[256, 999]].concat());
        assert_eq!(parts, ["a", "", "é", "", "", "", "😀", "", ""]);
        assert_eq!(rest, "");
        let mut shown = Stream::new(&Pieces::clone(&bytes()), true).push(256);
        assert_eq!(shown.split_off(0), "<s>");
    }

    #[test]
    fn sentence_pieces_are_spaces_bytes_and_one_space_less_in_front() {
        let texts = ["▁Hi", "▁▁there", "<0xE2>", "<0x82>", "<0xAC>", "</s>", "<0xZZ>"];
        let piece = |(text, id)| Piece { id, text, literal: false, special: id == 5 };
        for (strip, expected) in [(true, "Hi  there€<0xZZ> Hi"), (false, " Hi  there€<0xZZ> Hi")] {
            let pieces = Pieces::new(Spelling::SentencePiece { strip }, texts.into_iter().zip(0..).map(piece));
            let (parts, rest) = streamed(&pieces, &[5, 0, 1, 2, 3, 4, 5, 6, 0]);
            assert_eq!(parts.concat() + &rest, expected);
        }
    }

    proptest! {
        #[test]
        fn a_stream_adds_up_to_the_lossy_reading_of_all_bytes(ids in prop::collection::vec(prop_oneof![0u32..256, 0xc0u32..0xf8], 0..40)) {
            let bytes_: Vec<u8> = ids.iter().map(|id| *id as u8).collect();
            let (parts, rest) = streamed(&bytes(), &ids);
            prop_assert_eq!(parts.concat() + &rest, String::from_utf8_lossy(&bytes_));
        }
    }
}
