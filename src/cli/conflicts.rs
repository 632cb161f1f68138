//! The table of blocks that may not meet. PURE.

use subsea_api::Conflict;
use subsea_api::conflict::{Claim, What};

use super::format::list;
use super::table::Table;

/// Every pair with both owners, what they share and what is free instead.
pub(super) fn table(pairs: &[Conflict], colour: bool) -> String {
    let mut table = Table::new([
        "WANTED",
        "OWNER",
        "EXISTING",
        "OWNER",
        "COMMON",
        "FREE INSTEAD",
    ]);
    for pair in pairs {
        table.row([
            block(&pair.wanted).into(),
            pair.wanted.owner.to_string().into(),
            block(&pair.existing).into(),
            pair.existing.owner.to_string().into(),
            pair.common.to_string().into(),
            list(&pair.free).into(),
        ]);
    }
    table.render(colour)
}

/// `pod 10.32.0.0/16`; a route says by itself where it leads.
fn block(claim: &Claim) -> String {
    match &claim.what {
        What::Route(text) => format!("route {text}"),
        What::Pod
        | What::Service
        | What::Node
        | What::Infra
        | What::Global
        | What::Endpoint
        | What::Broker
        | What::Standard(_) => format!("{} {}", claim.what, claim.cidr),
    }
}

/// One line for each link of this host that lies in a block of another member.
pub(super) fn warnings(pairs: &[Conflict]) -> String {
    pairs.iter().fold(String::new(), |text, pair| {
        let (link, other) = (block(&pair.wanted), block(&pair.existing));
        let owner = &pair.existing.owner;
        text + &format!(
            "warning: {link} of this host lies in {other} of {owner}: traffic to {} will enter the tunnel\n",
            pair.common
        )
    })
}
