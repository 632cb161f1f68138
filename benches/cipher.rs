//! What the cipher alone costs on one core: the part of a tunnel's CPU time that no data plane can save.
//!
//! `cargo bench --bench cipher` prints nanoseconds a packet of 1,420 bytes; `scripts/bench-tunnel` runs it in each of its rounds.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::error::Unspecified;

/// The packet inside a tunnel whose underlay has 1,500 bytes.
const PACKET: usize = 1_420;
/// As many packets as a full segmentation offload holds, so that caches see what they see in the tunnel.
const BATCH: usize = 46;
/// How long each of the two is measured.
const PERIOD: Duration = Duration::from_millis(200);

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Runs batches for the period: nanoseconds a packet in the median batch, so that what interrupts a few of them does
/// not count. `prepare` is not part of the time.
fn measure<T>(
    mut prepare: impl FnMut() -> T,
    mut batch: impl FnMut(&mut T) -> Result<(), Unspecified>,
) -> Result<u128, Unspecified> {
    // The first batches find cold caches and a slow clock.
    for _ in 0..100 {
        batch(&mut prepare())?;
    }
    let mut batches = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < PERIOD {
        let mut input = prepare();
        let start = Instant::now();
        batch(&mut input)?;
        batches.push(start.elapsed());
    }
    batches.sort_unstable();
    let median = batches.get(batches.len() / 2).ok_or(Unspecified)?;
    Ok(median.as_nanos() / BATCH as u128)
}

#[expect(
    clippy::print_stdout,
    reason = "the result is what this program is for"
)]
fn main() -> Result<(), Unspecified> {
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32])?);
    let plain = vec![[0x5a_u8; PACKET]; BATCH];
    let mut sealed = Vec::with_capacity(BATCH);
    let mut counter = 0;
    for packet in &plain {
        let mut bytes = *packet;
        let tag = key.seal_in_place_separate_tag(nonce(counter), Aad::empty(), &mut bytes)?;
        let mut whole = bytes.to_vec();
        whole.extend_from_slice(tag.as_ref());
        sealed.push((counter, whole));
        counter += 1;
    }
    let seal = measure(
        || plain.clone(),
        |packets| {
            for packet in packets {
                counter += 1;
                let tag = key.seal_in_place_separate_tag(
                    nonce(counter),
                    Aad::empty(),
                    black_box(packet),
                )?;
                black_box(tag.as_ref());
            }
            Ok(())
        },
    )?;
    let open = measure(
        || sealed.clone(),
        |packets| {
            for (counter, packet) in packets {
                black_box(key.open_in_place(nonce(*counter), Aad::empty(), black_box(packet))?);
            }
            Ok(())
        },
    )?;
    println!("seal {seal} ns, open {open} ns a packet of {PACKET} bytes");
    Ok(())
}
