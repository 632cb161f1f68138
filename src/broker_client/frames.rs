//! Bytes of the watch stream to lines, with bounds. PURE.
//!
//! The broker sends newline-delimited JSON, either plain or as gzip members back to back. Chunks arrive as the
//! network cuts them. What is not taken yet is bounded by the longest line and one slice of input: a stream that
//! inflates without end is an error, not a full memory.

use std::collections::VecDeque;
use std::io::{self, Write};

use flate2::write::MultiGzDecoder;
use hyper::body::{Buf as _, Bytes};

/// How much input is decoded at a time: deflate makes at most about 1,000 times as much of it.
const SLICE: usize = 1024;

/// Cuts a stream into lines.
#[derive(Debug)]
pub(super) struct Frames {
    decoder: Decoder,
    input: Bytes,
}

#[derive(Debug)]
enum Decoder {
    Plain(Lines),
    Gzip(Box<MultiGzDecoder<Lines>>),
}

impl Frames {
    /// `max_line` bounds a line, decoded, in bytes.
    pub(super) fn new(gzip: bool, max_line: usize) -> Self {
        let lines = Lines {
            max_line,
            ..Lines::default()
        };
        let decoder = if gzip {
            Decoder::Gzip(Box::new(MultiGzDecoder::new(lines)))
        } else {
            Decoder::Plain(lines)
        };
        Self {
            decoder,
            input: Bytes::new(),
        }
    }

    /// Takes a chunk as it came. Lines must be taken before the next one.
    pub(super) fn push(&mut self, chunk: Bytes) {
        self.input = chunk;
    }

    /// The next whole line, without its end; none when more input is needed.
    ///
    /// # Errors
    /// When a line is too long or the compression is broken.
    pub(super) fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(line) = self.lines().whole.pop_front() {
                return Ok(Some(line));
            }
            if self.input.is_empty() {
                return Ok(None);
            }
            let slice = &self.input[..self.input.len().min(SLICE)];
            let taken = match &mut self.decoder {
                Decoder::Plain(lines) => lines.write(slice)?,
                Decoder::Gzip(gzip) => {
                    let taken = gzip.write(slice)?;
                    // Without a flush the last decoded bytes stay in the decoder until the next write.
                    gzip.flush()?;
                    taken
                }
            };
            if taken == 0 {
                return Err(io::Error::other("the compressed stream does not go on"));
            }
            self.input.advance(taken);
        }
    }

    /// Whether the stream ended between two lines.
    pub(super) fn is_between_lines(&mut self) -> bool {
        self.input.is_empty() && self.lines().partial.is_empty()
    }

    fn lines(&mut self) -> &mut Lines {
        match &mut self.decoder {
            Decoder::Plain(lines) => lines,
            Decoder::Gzip(gzip) => gzip.get_mut(),
        }
    }
}

#[derive(Debug, Default)]
struct Lines {
    max_line: usize,
    partial: Vec<u8>,
    whole: VecDeque<Vec<u8>>,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (text, ended) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                Some(_) | None => (piece, false),
            };
            if self.partial.len() + text.len() > self.max_line {
                return Err(io::Error::other(format!(
                    "a line is longer than {} bytes",
                    self.max_line
                )));
            }
            self.partial.extend_from_slice(text);
            if ended {
                let line = std::mem::take(&mut self.partial);
                // An empty line says nothing; a flood of them must not pile up either.
                if !line.is_empty() {
                    self.whole.push_back(line);
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn member(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(frames: &mut Frames, chunks: &[&[u8]]) -> io::Result<Vec<Vec<u8>>> {
        let mut lines = Vec::new();
        for chunk in chunks {
            frames.push(Bytes::copy_from_slice(chunk));
            while let Some(line) = frames.next_line()? {
                lines.push(line);
            }
        }
        Ok(lines)
    }

    #[test]
    fn a_line_is_there_as_soon_as_its_member_is() {
        let mut frames = Frames::new(true, 1_000);
        for text in ["one", "two", "three"] {
            let bytes = member(format!("{text}\n").as_bytes());
            assert_eq!(decode(&mut frames, &[&bytes]).unwrap(), [text.as_bytes()]);
        }
        assert!(frames.is_between_lines());
    }

    #[test]
    fn a_line_longer_than_allowed_is_refused() {
        for (gzip, ok, long) in [
            (false, b"1234\n".to_vec(), b"12345".to_vec()),
            (true, member(b"1234\n"), member(b"12345")),
        ] {
            let mut frames = Frames::new(gzip, 4);
            assert_eq!(decode(&mut frames, &[&ok]).unwrap(), [b"1234"]);
            assert!(decode(&mut frames, &[&long]).is_err());
        }
    }

    #[test]
    fn a_bomb_does_not_fill_the_memory() {
        // 64 MiB of one line, and 64 MiB of line ends, in about 64 KiB each.
        let limit = 1024 * 1024;
        let line = member(&vec![b' '; 64 * limit]);
        assert!(line.len() < limit);
        let error = decode(&mut Frames::new(true, limit), &[&line]).unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
        let ends = member(&vec![b'\n'; 64 * limit]);
        assert!(
            decode(&mut Frames::new(true, limit), &[&ends])
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn rubbish_is_an_error() {
        assert!(decode(&mut Frames::new(true, 100), &[b"this is not gzip at all"]).is_err());
        let mut cut = member(b"hello\n");
        cut[15] ^= 0xff;
        let result = decode(&mut Frames::new(true, 100), &[&cut, &member(b"x\n")]);
        assert!(result.is_err(), "{result:?}");
    }

    proptest! {
        /// However members and lines lie to each other and wherever the network cuts: the same lines come out.
        #[test]
        fn chunking_does_not_matter(
            lines in proptest::collection::vec("[a-z{}\": ]{1,40}", 0..20),
            gzip: bool,
            per_member in 1_usize..50,
            cuts in proptest::collection::vec(0_usize..2_000, 0..30),
        ) {
            let text = lines.iter().fold(String::new(), |text, line| text + line + "\n").into_bytes();
            let stream: Vec<u8> = if gzip {
                text.chunks(per_member).flat_map(member).collect()
            } else {
                text
            };
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &stream[w[0]..w[1]]).collect();
            let mut frames = Frames::new(gzip, 100);
            let decoded = decode(&mut frames, &chunks).unwrap();
            let wanted: Vec<Vec<u8>> = lines.into_iter().map(String::into_bytes).collect();
            prop_assert_eq!(decoded, wanted);
            prop_assert!(frames.is_between_lines());
        }

        /// Random bytes end in lines, an error or a wait for more, never in a panic or a loop.
        #[test]
        fn random_bytes_do_no_harm(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..10),
            gzip: bool,
        ) {
            let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let _ = decode(&mut Frames::new(gzip, 50), &chunks);
        }
    }
}
