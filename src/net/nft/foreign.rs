//! Reads `nft -j list chains` for chains of others that stand in our way. PURE.
//!
//! A verdict of drop in anybody's chain is final: nothing in our table can override it (`design`, data plane). So
//! it is named instead.

use serde_json::Value;

use super::ruleset::TABLE;

/// Our own source translation comes at this priority; one before it wins.
const KEEP_SOURCE_PRIORITY: i64 = 90;

/// A base chain that may drop or translate what we forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    /// The family of its table: `ip`, `ip6` or `inet`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Whether it drops what no rule accepts, as against translating before us.
    pub drops: bool,
}

/// The chains of others that must be looked into.
pub fn suspects(listing: &str) -> Vec<Suspect> {
    let Ok(listing) = serde_json::from_str::<Value>(listing) else {
        return Vec::new();
    };
    let objects = listing
        .get("nftables")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    objects
        .iter()
        .filter_map(|o| suspect(o.get("chain")?))
        .collect()
}

fn suspect(chain: &Value) -> Option<Suspect> {
    let text = |key: &str| chain.get(key).and_then(Value::as_str);
    let (family, table, name) = (text("family")?, text("table")?, text("name")?);
    if !matches!(family, "ip" | "ip6" | "inet") || (family == "inet" && table == TABLE) {
        return None;
    }
    let drops = text("hook") == Some("forward") && text("policy") == Some("drop");
    let early = chain
        .get("prio")
        .and_then(Value::as_i64)
        .is_some_and(|p| p < KEEP_SOURCE_PRIORITY);
    let translates = text("hook") == Some("postrouting") && text("type") == Some("nat") && early;
    (drops || translates).then(|| Suspect {
        family: family.into(),
        table: table.into(),
        name: name.into(),
        drops,
    })
}

/// What to tell about a suspect, by its rules (`nft -j list chain`); `None` when it stands in nobody's way.
pub fn obstacle(suspect: &Suspect, rules: &str, device: &str) -> Option<String> {
    let Suspect {
        family,
        table,
        name,
        drops,
    } = suspect;
    let rules: Value = serde_json::from_str(rules).ok()?;
    let rules: Vec<&Value> = rules
        .get("nftables")?
        .as_array()?
        .iter()
        .filter_map(|o| o.get("rule")?.get("expr"))
        .collect();
    let of = |iptables: &str| match (table.as_str(), name.as_str()) {
        ("filter" | "nat", "FORWARD" | "POSTROUTING") => format!(" (`{iptables}`)"),
        _ => String::new(),
    };
    if *drops {
        let accepts = |direction: &str| {
            rules
                .iter()
                .any(|r| has(r, "accept") && has(r, direction) && mentions(r, device))
        };
        if accepts("iifname") && accepts("oifname") {
            return None;
        }
        let shown = of(if family == "ip6" {
            "ip6tables -S FORWARD"
        } else {
            "iptables -S FORWARD"
        });
        return Some(format!(
            "chain `{name}` of table `{family} {table}`{shown} drops forwarded packets that none of its rules accepts: \
             let it accept what comes in and goes out by {device}"
        ));
    }
    rules.iter().any(|r| has(r, "masquerade") || has(r, "snat")).then(|| {
        format!(
            "chain `{name}` of table `{family} {table}` translates source addresses before our exemption at priority \
             {KEEP_SOURCE_PRIORITY}: let it leave out what goes out by {device}"
        )
    })
}

/// Whether a key, or a text where a key of a match would be, stands anywhere in an expression.
fn has(value: &Value, wanted: &str) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(k, v)| k == wanted || has(v, wanted)),
        Value::Array(items) => items.iter().any(|v| has(v, wanted)),
        Value::String(text) => text == wanted,
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn mentions(rule: &Value, device: &str) -> bool {
    has(rule, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAINS: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
        {"chain": {"family": "inet", "table": "subsea", "name": "clamp", "type": "filter", "hook": "forward", "prio": -150, "policy": "accept"}},
        {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "ip", "table": "filter", "name": "DOCKER"}},
        {"chain": {"family": "inet", "table": "early", "name": "post", "type": "nat", "hook": "postrouting", "prio": 50, "policy": "accept"}},
        {"chain": {"family": "ip", "table": "nat", "name": "POSTROUTING", "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}},
        {"chain": {"family": "bridge", "table": "filter", "name": "FORWARD", "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}}]}"#;

    #[test]
    fn a_forward_drop_is_named_unless_it_accepts_our_device() {
        let suspects = suspects(CHAINS);
        assert_eq!(
            suspects
                .iter()
                .map(|s| s.table.as_str())
                .collect::<Vec<_>>(),
            ["filter", "early"]
        );
        let none = r#"{"nftables": [{"rule": {"expr": [{"accept": null}]}}]}"#;
        let problem = obstacle(&suspects[0], none, "subsea0").unwrap();
        assert!(
            problem
                .starts_with("chain `FORWARD` of table `ip filter` (`iptables -S FORWARD`) drops"),
            "{problem}"
        );
        let both = r#"{"nftables": [
            {"rule": {"expr": [{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "subsea0"}}, {"accept": null}]}},
            {"rule": {"expr": [{"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": "subsea0"}}, {"accept": null}]}}]}"#;
        assert_eq!(obstacle(&suspects[0], both, "subsea0"), None);
        assert!(obstacle(&suspects[0], both, "subsea1").is_some());
    }

    #[test]
    fn a_translation_before_ours_is_named() {
        let suspect = &suspects(CHAINS)[1];
        let masquerade = r#"{"nftables": [{"rule": {"expr": [{"masquerade": null}]}}]}"#;
        assert!(
            obstacle(suspect, masquerade, "subsea0")
                .unwrap()
                .contains("table `inet early`")
        );
        assert_eq!(obstacle(suspect, r#"{"nftables": []}"#, "subsea0"), None);
    }
}
