//! A status to show and to judge, for the tests of this room.

use serde_json::json;

use crate::gateway::status::Status;

/// `east`, whose broker is away, with one path to `west` that is one-way.
pub(super) fn example() -> Status {
    serde_json::from_value(json!({
        "fleet": "harbour",
        "cluster": "east",
        "node": "gw-1",
        "role": "member",
        "pid": 42,
        "started": 1_000,
        "endpoint": "192.0.2.1:51820",
        "device": "subsea0",
        "devices": ["subsea0"],
        "mtu": 1420,
        "driver": "userspace",
        "public_key": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
        "epoch": "e1",
        "revision": 7,
        "broker": {
            "state": "away",
            "since": 2_000,
            "url": "https://192.0.2.9:7443",
            "last_error": "connection refused",
        },
        "certificate_expires": 90_000,
        "snapshot": {"source": "disk"},
        "members": [{
            "cluster": "west",
            "gateways": [{
                "cluster": "west",
                "gateway": "gw-1",
                "public_key": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
                "endpoint": "192.0.2.2:51820",
                "state": "one-way",
                "since": 3_000,
                "latest_handshake": null,
                "rtt_ms": 1.5,
                "rx_bytes": 1,
                "tx_bytes": 2_048,
                "cidrs": ["10.32.0.0/16", "10.112.0.0/20"],
                "drops": {"foreign-source": 3},
                "why": "we hear it, it does not hear us",
                "peer_hears_us": false,
                "two_way": false,
            }],
        }],
        "drops": {"unknown": 1},
        "kernel": {"converged": false, "last_reconcile": null, "problems": []},
        "problems": [],
    }))
    .unwrap()
}
