# The daily commands. `just` lists them.

default:
    @just --list

# Three clusters on this machine (root)
demo *args:
    scripts/demo {{args}}

# Everything that a change must pass (root)
test:
    scripts/test

# The tests that need no root
unit:
    cargo test --workspace --lib --bins
    cargo test --workspace --doc

# The tests in network namespaces (root), perhaps only those whose name contains FILTER
netns filter="":
    cargo build --workspace
    cargo test --test netns -- {{filter}}

# The tests with real Kubernetes API servers, perhaps only those whose name contains FILTER
kube filter="":
    scripts/build-kube
    cargo test --test kube -- {{filter}}

# Three clusters with kubelets, containerd and the image on this machine (root)
e2e *args:
    scripts/e2e {{args}}

# The container image, as a file
image *args:
    scripts/build-image {{args}}

# The kernel driver on an emulated machine, perhaps only some parts (root, for its packages)
test-kernel *parts:
    scripts/test-kernel {{parts}}

fmt:
    cargo fmt --all

lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    shellcheck -x scripts/build-image scripts/build-kube scripts/demo scripts/e2e scripts/test scripts/test-kernel scripts/bench-* scripts/soak scripts/lib/*.sh scripts/lib/clean-netns scripts/lib/e2e_node scripts/lib/kernel-guest .ci/run

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

# Licences, advisories, duplicates (cargo install --locked cargo-deny)
deny:
    cargo deny --all-features check

# Accept changed snapshots after having read them (cargo install cargo-insta)
snapshots:
    cargo insta review

# One of fuzz/fuzz_targets for a while (nightly, cargo install cargo-fuzz)
fuzz target seconds="60":
    cargo +nightly fuzz run {{target}} -- -max_total_time={{seconds}}

# Beside other userspace WireGuard (root)
bench-tunnel *args:
    scripts/bench-tunnel {{args}}

# Traffic for a long time, looking for interruptions (root)
soak *args:
    scripts/soak {{args}}

# Time of each step of the data plane, without the kernel
bench-dataplane *args:
    cargo bench --bench dataplane -- {{args}}

# Instructions per packet, compared with benches/instructions.json
bench-instructions *args:
    scripts/bench-instructions {{args}}

# Remove namespaces of tests that were killed (root)
clean-netns:
    scripts/lib/clean-netns scripts/lib/e2e_node --stale
