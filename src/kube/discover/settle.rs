//! Which of the blocks that were found for one kind count. PURE.

use std::collections::{BTreeMap, BTreeSet};

use subsea_api::{Cidr, Family};

use super::decide::Missing;
use super::found::{Found, Note, Rank, Source, listed, of_family};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The blocks of one kind, before they are decided on.
pub(super) struct Kind<'a> {
    pub(super) name: &'static str,
    pub(super) flag: &'static str,
    pub(super) given: &'a [Cidr],
    pub(super) claims: &'a [Found],
    pub(super) evidence: Vec<(Cidr, String)>,
}

impl Kind<'_> {
    /// The blocks that count; what is asked for, and why, goes to `missing`.
    pub(super) fn settle(
        &self,
        notes: &mut Vec<Note>,
        missing: &mut Vec<Missing>,
        nothing: &dyn Fn() -> String,
    ) -> Vec<Found> {
        let flag = Source::new(Rank::Flag, format!("flag {}", self.flag));
        let mut claims: Vec<Found> = self
            .given
            .iter()
            .map(|cidr| Found {
                cidr: *cidr,
                from: flag.clone(),
            })
            .collect();
        claims.extend(self.claims.iter().cloned());
        let mut chosen = Vec::new();
        for family in FAMILIES {
            let of: Vec<&Found> = of_family(&claims, family).collect();
            match self.best(&of, notes) {
                Ok(found) => chosen.extend(found),
                Err(why) => missing.push(Missing {
                    flag: self.flag,
                    why,
                }),
            }
        }
        let conflict = missing.iter().any(|m| m.flag == self.flag);
        if chosen.is_empty() && !conflict {
            missing.push(Missing {
                flag: self.flag,
                why: nothing(),
            });
            return chosen;
        }
        self.hold_against_evidence(&chosen, conflict, notes, missing);
        chosen
    }

    /// The blocks of the best rank, if its sources agree.
    fn best(&self, found: &[&Found], notes: &mut Vec<Note>) -> Result<Vec<Found>, String> {
        let mut sources: BTreeMap<&Source, BTreeSet<Cidr>> = BTreeMap::new();
        for f in found {
            sources.entry(&f.from).or_default().insert(f.cidr);
        }
        let Some(rank) = sources.keys().map(|s| s.rank).min() else {
            return Ok(Vec::new());
        };
        // Several objects of one kind make one allocator: each pool has its block, and all count.
        let top: Vec<(&Source, &BTreeSet<Cidr>)> = sources
            .iter()
            .filter(|(s, _)| s.rank == rank)
            .map(|(s, c)| (*s, c))
            .collect();
        let mut groups: BTreeMap<String, BTreeSet<Cidr>> = BTreeMap::new();
        for (source, cidrs) in &top {
            groups
                .entry(group(&source.place))
                .or_default()
                .extend(*cidrs);
        }
        let mut sets = groups.values();
        let first = sets.next().cloned().unwrap_or_default();
        if sets.any(|other| *other != first) {
            let said: Vec<String> = top
                .iter()
                .map(|(source, cidrs)| format!("{} ({source})", listed(cidrs.iter().copied())))
                .collect();
            return Err(format!(
                "sources contradict each other about the blocks of {}: {}",
                self.name,
                said.join("; ")
            ));
        }
        for (source, cidrs) in sources.iter().filter(|(s, _)| s.rank > rank) {
            if *cidrs != first {
                let by: BTreeSet<&str> = top.iter().map(|(s, _)| s.place.as_str()).collect();
                let text = format!(
                    "{source} says {} for {}; {} counts ({})",
                    listed(cidrs.iter().copied()),
                    self.name,
                    listed(first.iter().copied()),
                    by.into_iter().take(3).collect::<Vec<_>>().join("; ")
                );
                // A source of less weight that is within what was found says nothing against it.
                let within = cidrs.iter().all(|c| first.iter().any(|f| f.covers(*c)));
                notes.push(if within {
                    Note::info(text)
                } else {
                    Note::warning(text)
                });
            }
        }
        // Each block once, by the first source that has it.
        let mut seen = BTreeSet::new();
        let of_rank = found.iter().filter(|f| f.from.rank == rank);
        Ok(of_rank
            .filter(|f| seen.insert(f.cidr))
            .map(|f| (*f).clone())
            .collect())
    }

    fn hold_against_evidence(
        &self,
        chosen: &[Found],
        conflict: bool,
        notes: &mut Vec<Note>,
        missing: &mut Vec<Missing>,
    ) {
        let outside: Vec<&(Cidr, String)> = self
            .evidence
            .iter()
            .filter(|(block, _)| !chosen.iter().any(|f| f.cidr.covers(*block)))
            .collect();
        let Some((block, holder)) = outside.first() else {
            return;
        };
        let all = if outside.len() == 1 {
            format!("{block} of {holder} is")
        } else {
            format!(
                "{} blocks, among them {block} of {holder}, are",
                outside.len()
            )
        };
        let found = if chosen.is_empty() {
            "none was found".to_owned()
        } else {
            listed(chosen.iter().map(|f| f.cidr))
        };
        let text = format!("{all} outside of the blocks of {}: {found}", self.name);
        if self.given.is_empty() {
            // One reason for a flag is enough.
            if !conflict {
                missing.push(Missing {
                    flag: self.flag,
                    why: text,
                });
            }
        } else {
            notes.push(Note::warning(text));
        }
    }
}

/// The part of a place that is the same for all objects of one kind, so that pools add up and other sources do not. Also
/// of nodes and pods, which say the same each for itself and must agree.
fn group(place: &str) -> String {
    for kind in ["IPPool ", "CiliumPodIPPool ", "ServiceCIDR "] {
        if place.starts_with(kind) {
            return kind.to_owned();
        }
    }
    place.to_owned()
}
