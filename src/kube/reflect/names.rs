//! What the objects are called. PURE.

use std::fmt::Write as _;

use subsea_api::{ClusterId, NodeName};

/// The longest name of an object.
const NAME: usize = 253;
/// The longest value of a label.
const LABEL: usize = 63;
/// Of a name that is too long, so many hexadecimal digits of its SHA-256 stand for its end.
const DIGITS: usize = 16;

/// The connection of the gateway on `node` to that of `cluster` on `remote`.
pub fn connection(node: &NodeName, cluster: &ClusterId, remote: &NodeName) -> String {
    within(format!("{node}.{cluster}.{remote}"), NAME)
}

/// A node as the value of a label, which is shorter than the name of a node may be.
pub fn label(node: &str) -> String {
    within(node.to_owned(), LABEL)
}

fn within(name: String, most: usize) -> String {
    if name.len() <= most {
        return name;
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    let kept = name.get(..most - DIGITS - 1).unwrap_or_default();
    // Neither a name nor a label may have a dot or a hyphen beside another dot.
    let mut short = kept.trim_end_matches(['.', '-']).to_owned();
    short.push('-');
    for byte in digest.as_ref().iter().take(DIGITS / 2) {
        // Nothing fails to be written to a text.
        let _ = write!(short, "{byte:02x}");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_end_in_a_hash_of_their_own() {
        let node = |c: char| -> NodeName {
            let label: String = std::iter::repeat_n(c, 60).collect();
            format!("{label}.{label}.{label}.{label}").parse().unwrap()
        };
        let cluster: ClusterId = "west".parse().unwrap();
        let short = connection(
            &"gw-1".parse().unwrap(),
            &cluster,
            &"gw-2.example".parse().unwrap(),
        );
        assert_eq!(short, "gw-1.west.gw-2.example");
        let (a, b) = (
            connection(&node('a'), &cluster, &node('x')),
            connection(&node('a'), &cluster, &node('y')),
        );
        assert!(a.len() <= NAME && b.len() <= NAME && a != b);
        assert!(!a.contains(".-") && !a.contains(".."), "{a}");
        let value = label(node('a').as_str());
        assert!(value.len() <= LABEL && value.starts_with('a'), "{value}");
        assert_eq!(label("n-1.example"), "n-1.example");
    }
}
