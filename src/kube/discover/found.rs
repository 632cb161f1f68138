//! Blocks with where they were found, and what is to be said about them. PURE.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use subsea_api::cidr::CidrError;
use subsea_api::{Cidr, Family};

/// More blocks are not taken from one place.
const MAX_BLOCKS: usize = 64;
/// Longer texts are no list of blocks.
const MAX_TEXT: usize = 8 << 10;

/// How much a source counts. Sources of one rank must agree; one of a better rank counts before one of a worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rank {
    /// The operator said so.
    Flag,
    /// What hands the addresses out says so: it gives no others.
    Allocator,
    /// A running program was told so on its command line.
    Setting,
    /// It was written down when the cluster was made, or for another purpose.
    Record,
}

/// Where a block was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Source {
    /// How much it counts.
    pub rank: Rank,
    /// Object and field, as a person would look it up.
    pub place: String,
}

impl Source {
    /// A source.
    pub fn new(rank: Rank, place: impl Into<String>) -> Self {
        Self {
            rank,
            place: place.into(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.place)
    }
}

/// A block, and where it was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Found {
    /// The block.
    pub cidr: Cidr,
    /// Where it was found.
    pub from: Source,
}

/// How much a note should worry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weight {
    /// Good to know.
    Info,
    /// Look at it.
    Warning,
}

/// Something to show beside what was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Note {
    /// How much it should worry.
    pub weight: Weight,
    /// The sentence.
    pub text: String,
}

impl Note {
    /// Something good to know.
    pub fn info(text: impl Into<String>) -> Self {
        Self {
            weight: Weight::Info,
            text: text.into(),
        }
    }

    /// Something to look at.
    pub fn warning(text: impl Into<String>) -> Self {
        Self {
            weight: Weight::Warning,
            text: text.into(),
        }
    }
}

/// What one source says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// Blocks of pods.
    pub pod: Vec<Found>,
    /// Blocks of services.
    pub service: Vec<Found>,
    /// What is to be shown.
    pub notes: Vec<Note>,
}

impl Claims {
    /// Adds blocks of pods, in a list with commas.
    pub fn pods(&mut self, rank: Rank, place: &str, list: &str) {
        let found = read(rank, place, list, &mut self.notes);
        self.pod.extend(found);
    }

    /// Adds blocks of services, in a list with commas.
    pub fn services(&mut self, rank: Rank, place: &str, list: &str) {
        let found = read(rank, place, list, &mut self.notes);
        self.service.extend(found);
    }

    /// Adds all that another source says.
    pub fn extend(&mut self, other: Self) {
        self.pod.extend(other.pod);
        self.service.extend(other.service);
        self.notes.extend(other.notes);
    }
}

/// The blocks of a list with commas or blanks. Kubernetes takes a block with host bits set for the block that it lies in,
/// and so does this; it says so.
fn read(rank: Rank, place: &str, list: &str, notes: &mut Vec<Note>) -> Vec<Found> {
    if list.len() > MAX_TEXT {
        notes.push(Note::warning(format!(
            "{place}: too long for a list of blocks"
        )));
        return Vec::new();
    }
    let mut cidrs = BTreeSet::new();
    let mut found = Vec::new();
    let words = list
        .split([',', ' ', '\n', '\t'])
        .map(|w| w.trim().trim_matches('"'))
        .filter(|w| !w.is_empty());
    for (i, word) in words.enumerate() {
        if i == MAX_BLOCKS {
            notes.push(Note::warning(format!(
                "{place}: more than {MAX_BLOCKS} blocks; the rest is not looked at"
            )));
            break;
        }
        let cidr = match word.parse::<Cidr>() {
            Ok(cidr) => cidr,
            Err(CidrError::HostBits { given, canonical }) => {
                let block = Cidr::containing(canonical.addr(), canonical.prefix_len());
                notes.push(Note::info(format!(
                    "{place}: {given} has host bits set and counts as {block}"
                )));
                block
            }
            Err(error @ (CidrError::Syntax(_) | CidrError::AutoLength(_))) => {
                notes.push(Note::warning(format!("{place}: {error}")));
                continue;
            }
        };
        if cidrs.insert(cidr) {
            found.push(Found {
                cidr,
                from: Source::new(rank, place),
            });
        }
    }
    found
}

/// The blocks of one family among `found`.
pub(crate) fn of_family(found: &[Found], family: Family) -> impl Iterator<Item = &Found> {
    found.iter().filter(move |f| f.cidr.family() == family)
}

/// A list of blocks for a sentence, the first few by name.
pub(crate) fn listed(cidrs: impl IntoIterator<Item = Cidr>) -> String {
    const SHOWN: usize = 4;
    let all: BTreeSet<Cidr> = cidrs.into_iter().collect();
    let mut text: Vec<String> = all.iter().take(SHOWN).map(Cidr::to_string).collect();
    if all.len() > SHOWN {
        text.push(format!("... ({} in all)", all.len()));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_of_blocks_are_read_as_kubernetes_reads_them() {
        let mut claims = Claims::default();
        claims.pods(
            Rank::Record,
            "here",
            "10.244.0.0/16, fd00:10:244::/56,10.100.0.0/12,10.244.0.0/16,nonsense",
        );
        let blocks: Vec<String> = claims.pod.iter().map(|f| f.cidr.to_string()).collect();
        assert_eq!(
            blocks,
            ["10.244.0.0/16", "fd00:10:244::/56", "10.96.0.0/12"]
        );
        let notes: Vec<&str> = claims.notes.iter().map(|n| n.text.as_str()).collect();
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes[0].contains("10.100.0.0/12 has host bits set and counts as 10.96.0.0/12"));
        assert!(
            notes[1].starts_with("here: `nonsense` is not a CIDR block"),
            "{notes:?}"
        );
    }

    #[test]
    fn too_much_is_said_to_be_too_much() {
        let mut claims = Claims::default();
        claims.pods(Rank::Record, "here", &"x".repeat(1 << 20));
        assert!(claims.pod.is_empty());
        let many: Vec<String> = (0..100).map(|i| format!("10.{i}.0.0/16")).collect();
        claims.pods(Rank::Record, "here", &many.join(","));
        assert_eq!(claims.pod.len(), MAX_BLOCKS);
        assert_eq!(claims.notes.len(), 2);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_all_blocks_are_canonical(text: String) {
            let mut claims = Claims::default();
            claims.services(Rank::Flag, "here", &text);
            for found in claims.service {
                prop_assert_eq!(found.cidr.to_string().parse::<Cidr>().unwrap(), found.cidr);
            }
        }
    }
}
