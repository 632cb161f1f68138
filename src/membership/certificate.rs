//! When a certificate is renewed. PURE but for [`read`]'s parser, which does no I/O either.

use std::time::Duration;

use subsea_api::UnixMillis;
use x509_parser::pem::parse_x509_pem;

/// The shortest and longest pause after a renewal that failed.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How far the broker dates a certificate back, for clocks that are behind.
const BACK: Duration = Duration::from_mins(5);

/// From when until when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From.
    pub from: UnixMillis,
    /// Until.
    pub until: UnixMillis,
}

/// The text is no PEM certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the certificate cannot be read")]
pub struct Unreadable;

/// Reads the validity of the first certificate of a PEM text.
///
/// # Errors
/// [`Unreadable`].
pub fn read(pem: &str) -> Result<Validity, Unreadable> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|_| Unreadable)?;
    let certificate = pem.parse_x509().map_err(|_| Unreadable)?;
    let millis =
        |seconds: i64| UnixMillis(u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000));
    let validity = certificate.validity();
    Ok(Validity {
        from: millis(validity.not_before.timestamp()),
        until: millis(validity.not_after.timestamp()),
    })
}

impl Validity {
    /// When to renew: at two thirds of the life, up to a twentieth of it earlier, so that a fleet that joined
    /// together does not renew together. `jitter` is any number; the same one gives the same time.
    pub fn renew_at(&self, jitter: u64) -> UnixMillis {
        // The broker dates a certificate back; without this one of a few seconds would be due when it is made.
        let made = Some(self.from.plus(BACK)).filter(|made| *made < self.until);
        let from = made.unwrap_or(self.from);
        let life = self.until.0.saturating_sub(from.0);
        let early = (life / 20).saturating_mul(jitter % 1_000) / 1_000;
        UnixMillis(from.0.saturating_add(life / 3 * 2).saturating_sub(early))
    }
}

/// How long to wait after the `failures`-th renewal in a row that failed.
pub fn retry_after(failures: u32, jitter: u64) -> Duration {
    super::backoff::delay(failures, RETRY.0, RETRY.1, jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_at_two_thirds_of_the_life_or_a_little_before() {
        let hour = 3_600_000;
        let validity = Validity {
            from: UnixMillis(hour - 300_000),
            until: UnixMillis(25 * hour),
        };
        assert_eq!(validity.renew_at(0), UnixMillis(17 * hour));
        for jitter in [1, 500, 999, u64::MAX] {
            let at = validity.renew_at(jitter).0;
            assert!(at > 15 * hour + hour / 2 && at <= 17 * hour, "{at}");
        }
        let short = Validity {
            from: UnixMillis(hour - 300_000),
            until: UnixMillis(hour + 30_000),
        };
        assert_eq!(short.renew_at(0), UnixMillis(hour + 20_000));
        let broken = Validity {
            from: UnixMillis(9),
            until: UnixMillis(3),
        };
        assert_eq!(broken.renew_at(5), UnixMillis(9), "at once");
    }

    #[test]
    fn validity_is_read_from_pem() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 1, 2);
        let pem = params.self_signed(&key).unwrap().pem();
        let validity = read(&pem).unwrap();
        assert_eq!(
            validity.until.since(validity.from),
            Duration::from_hours(24)
        );
        assert_eq!(read("nothing"), Err(Unreadable));
        assert_eq!(read(&pem[..pem.len() / 2]), Err(Unreadable));
    }
}
