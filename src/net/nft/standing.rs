//! Puts a new table in the place of one that stands, without a moment between the two. PURE.
//!
//! Within one transaction the kernel switches to the new rules at a stroke, but fills sets of intervals only when it is done
//! with the rest: for tens of microseconds to milliseconds the new rules would find nothing in them, drop what should pass and
//! leave a source to be translated. So sets are made first, by names that no rule uses, and the rules follow in a transaction of
//! their own. Measured on Linux 6.18: replaced at once, a table with a set of 1,000 intervals drops 4 to 10 packets of 27,000 per
//! second each time; in two steps none.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// A table to be, in parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text {
    /// The sets: name, and what stands in their braces.
    pub sets: Vec<(String, String)>,
    /// Counters and chains, which refer to a set by `@` and its name.
    pub rest: String,
}

/// What follows the name of a set in the kernel: that of two which is free.
const TURNS: [&str; 2] = ["-a", "-b"];

impl Text {
    /// The sets by their names of this turn.
    fn sets(&self, turn: &str) -> String {
        let mut text = String::new();
        for (name, body) in &self.sets {
            let _ = writeln!(text, "\tset {name}{turn} {{\n{body}\t}}");
        }
        text
    }

    /// The rest, which refers to the sets of this turn. No name of a set begins another one's.
    fn rest(&self, turn: &str) -> String {
        let names = self.sets.iter().map(|(name, _)| name);
        names.fold(self.rest.clone(), |text, name| {
            text.replace(&format!("@{name}"), &format!("@{name}{turn}"))
        })
    }
}

/// What of a table stands in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    chains: Vec<String>,
    sets: Vec<String>,
    counters: Vec<String>,
    /// The sets that rules look into.
    used: BTreeSet<String>,
    /// Whether there is something in it that we never put there.
    strange: bool,
}

impl Standing {
    /// Reads the listing of a table, as `nft list table` prints it.
    pub fn of(listing: &str) -> Self {
        let mut standing = Self::default();
        for line in listing.lines() {
            let words = line.split([' ', '\t', ',', '{', '}']);
            let used = words.filter_map(|word| word.strip_prefix('@'));
            standing.used.extend(used.map(str::to_owned));
            let Some(object) = line.strip_prefix('\t').filter(|l| !l.starts_with('\t')) else {
                continue;
            };
            let mut words = object.split(' ');
            let all = match (words.next(), words.next(), words.next()) {
                (Some("}" | ""), None, None) => continue,
                (Some("chain"), Some(name), Some("{")) => Some((&mut standing.chains, name)),
                (Some("set"), Some(name), Some("{")) => Some((&mut standing.sets, name)),
                (Some("counter"), Some(name), Some("{")) => Some((&mut standing.counters, name)),
                _ => None,
            };
            match all {
                Some((all, name)) => all.push(name.to_owned()),
                None => standing.strange = true,
            }
        }
        standing
    }

    /// The transactions for `nft -f`, to be made in their order, that put `text` in the place of all that stands. No chain has a
    /// drop policy, and nobody else's table is named.
    pub fn transactions(&self, table: &str, text: &Text) -> Vec<String> {
        let is_free = |turn: &&&str| !self.used.iter().any(|name| name.ends_with(**turn));
        let Some(turn) = TURNS.iter().find(is_free).filter(|_| !self.strange) else {
            return whole(table, text);
        };
        let delete = |what: &str, names: &[&String]| {
            let mut text = String::new();
            for name in names {
                let _ = writeln!(text, "delete {what} inet {table} {name}");
            }
            text
        };
        // Of an earlier attempt that was cut short.
        let (left, before): (Vec<&String>, Vec<&String>) =
            self.sets.iter().partition(|name| name.ends_with(turn));
        let sets = format!(
            "add table inet {table}\n{}table inet {table} {{\n{}}}\n",
            delete("set", &left),
            text.sets(turn)
        );
        // Chains that others jump to, counters and sets go when no rule needs them any more.
        let rules = format!(
            "flush table inet {table}\n{}{}{}table inet {table} {{\n{}}}\n",
            delete("chain", &self.chains.iter().collect::<Vec<_>>()),
            delete("counter", &self.counters.iter().collect::<Vec<_>>()),
            delete("set", &before),
            text.rest(turn)
        );
        vec![sets, rules]
    }
}

/// The one transaction that replaces a table whatever stands in it, with a moment in which its sets are empty.
pub fn whole(table: &str, text: &Text) -> Vec<String> {
    let turn = TURNS[0];
    // The first line makes the second one succeed when there is no table.
    vec![format!(
        "add table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{}{}}}\n",
        text.sets(turn),
        text.rest(turn)
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> Text {
        Text {
            sets: vec![("remote4".into(), "\t\ttype ipv4_addr\n".into())],
            rest: "\tchain in {\n\t\tip saddr @remote4 accept\n\t}\n".into(),
        }
    }

    #[test]
    fn sets_come_before_the_rules_that_look_into_them() {
        let made = Standing::of("").transactions("subsea", &text());
        assert_eq!(
            made,
            [
                "add table inet subsea\ntable inet subsea {\n\tset remote4-a {\n\t\ttype ipv4_addr\n\t}\n}\n",
                "flush table inet subsea\ntable inet subsea {\n\tchain in {\n\t\tip saddr @remote4-a accept\n\t}\n}\n",
            ]
        );
    }

    #[test]
    fn what_stands_goes_with_the_new_rules() {
        let listing = "table inet subsea {
	set remote4-a {
		type ipv4_addr
		flags interval
		elements = { 10.0.0.0/8 }
	}

	set ours4-b {
		type ipv4_addr
	}

	counter drops {
		packets 0 bytes 0
	}

	chain old {
		type filter hook input priority 0; policy accept;
		ip saddr @remote4-a vmap { 1 : goto other }
	}
}
";
        let standing = Standing::of(listing);
        assert!(!standing.strange, "{standing:?}");
        let made = standing.transactions("subsea", &text());
        let [sets, rules] = made.as_slice() else {
            panic!("{made:?}");
        };
        assert!(sets.starts_with("add table inet subsea\ndelete set inet subsea ours4-b\ntable"));
        assert!(sets.contains("set remote4-b {"), "{sets}");
        let deleted = "flush table inet subsea\ndelete chain inet subsea old\ndelete counter inet subsea drops\ndelete set inet subsea remote4-a\ntable";
        assert!(rules.starts_with(deleted), "{rules}");
        assert!(rules.contains("@remote4-b accept"), "{rules}");
    }

    #[test]
    fn a_table_with_what_is_not_ours_is_made_anew_as_a_whole() {
        for strange in [
            "\tmap other {\n\t}\n",
            "\tflags dormant\n",
            "\tchain in {\n\t\tip saddr @x-a ip daddr @y-b drop\n\t}\n",
        ] {
            let standing = Standing::of(&format!("table inet subsea {{\n{strange}}}\n"));
            let made = standing.transactions("subsea", &text());
            assert_eq!(made.len(), 1, "{strange}");
            assert!(made[0].starts_with("add table inet subsea\ndelete table inet subsea\n"));
        }
    }
}
