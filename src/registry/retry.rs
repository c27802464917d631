//! Decides whether and when a request is repeated.
//!
//! A temporary failure (a lost connection, a timeout, `429`, `503` and similar ones) is retried up to [`ATTEMPTS`]
//! times in a row, after a pause that doubles. `Retry-After` can make the pause longer, but not shorter. The pauses
//! for one purpose together are limited to [`MOST_WAITED`]: if a server asks for more, the request fails with a
//! message. Every pause is reported to the [`Progress`].

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use ureq::http::HeaderMap;

use crate::registry::Progress;

/// Maximum number of attempts in a row without progress.
const ATTEMPTS: u32 = 5;

/// Pause before the second attempt; doubled each time.
const PAUSE: Duration = Duration::from_millis(200);

/// The same after "too many requests" without `Retry-After`.
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// Maximum of all pauses for one purpose.
const MOST_WAITED: Duration = Duration::from_secs(300);

/// Interval at which a pause checks whether it is still needed.
const LOOK: Duration = Duration::from_millis(100);

/// A temporary status, as an error.
#[derive(Debug)]
struct Busy {
    /// The request that was refused, if it is named in the message.
    what: &'static str,
    status: u16,
    after: Option<Duration>,
}

impl std::fmt::Display for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let joint = if self.what.is_empty() { "" } else { ": " };
        write!(f, "{}{joint}status {}", self.what, self.status)?;
        self.after.map_or(Ok(()), |after| write!(f, "; it asks for {} s of patience", after.as_secs_f64().ceil()))
    }
}

impl std::error::Error for Busy {}

/// A temporary status, as an error for [`Patience::after`].
pub(super) fn busy(what: &'static str, status: u16, headers: &HeaderMap) -> io::Error {
    io::Error::other(Busy { what, status, after: retry_after(headers, SystemTime::now()) })
}

/// True for statuses that do not concern the request itself. 520 to 527 are Cloudflare's for failures of the origin.
pub(super) fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504 | 520..=527)
}

/// The value of `Retry-After` (RFC 9110, section 10.2.3): seconds or a date.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get("retry-after")?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// The remaining patience for one purpose: one document, one blob, one upload.
pub(super) struct Patience<'p> {
    fruitless: u32,
    waited: Duration,
    /// The name used in messages.
    place: &'p str,
    progress: &'p dyn Progress,
    /// Set when the result is no longer needed.
    cancelled: Option<&'p AtomicBool>,
}

impl<'p> Patience<'p> {
    pub(super) fn new(place: &'p str, progress: &'p dyn Progress) -> Self {
        Self { fruitless: 0, waited: Duration::ZERO, place, progress, cancelled: None }
    }

    pub(super) fn unless(mut self, cancelled: &'p AtomicBool) -> Self {
        self.cancelled = Some(cancelled);
        self
    }

    /// Called on progress: resets the count of failures.
    pub(super) fn renew(&mut self) {
        self.fruitless = 0;
    }

    /// Waits after a temporary failure.
    ///
    /// # Errors
    /// The failure itself, if it is permanent or the patience is exhausted.
    pub(super) fn after(&mut self, error: io::Error) -> io::Result<()> {
        self.fruitless += 1;
        if error.kind() == io::ErrorKind::InvalidData || self.fruitless >= ATTEMPTS {
            return Err(error);
        }
        let pause = self.pause(&error);
        if self.waited + pause > MOST_WAITED {
            return Err(error);
        }
        let seconds = pause.as_secs_f64();
        self.progress.waits(&format!("{}: {error}; trying again in {seconds:.1} s", self.place));
        self.sleep(pause)
    }

    fn pause(&self, error: &io::Error) -> Duration {
        let busy = error.get_ref().and_then(|inner| inner.downcast_ref::<Busy>());
        let base = if busy.is_some_and(|busy| busy.status == 429) { BUSY_PAUSE } else { PAUSE };
        let own = base * 2u32.pow(self.fruitless - 1);
        let asked = busy.and_then(|busy| busy.after).unwrap_or_default();
        // Varied by a quarter, so that clients that were refused together do not return together.
        asked.max(own.mul_f64(0.75)) + own.mul_f64(0.5 * chance())
    }

    fn sleep(&mut self, pause: Duration) -> io::Result<()> {
        let mut left = pause;
        while !left.is_zero() {
            if self.cancelled.is_some_and(|cancelled| cancelled.load(Ordering::Relaxed)) {
                return Err(io::Error::other("given up, because another transfer failed"));
            }
            let now = left.min(LOOK);
            std::thread::sleep(now);
            left -= now;
        }
        self.waited += pause;
        Ok(())
    }
}

/// A random number from 0 to 1, from the seeds of the standard library's hash tables.
fn chance() -> f64 {
    f64::from(u32::try_from(RandomState::new().build_hasher().finish() >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, expected) in [
            ("120", Some(120)),
            (" 3 ", Some(3)),
            ("0", Some(0)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sunday, 06-Nov-94 08:50:07 GMT", Some(30)),
            ("Sun Nov  6 08:50:07 1994", Some(30)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("", None),
            ("-1", None),
            ("soon", None),
            ("1e99", None),
        ] {
            let headers: HeaderMap =
                [("retry-after".parse().expect("name"), text.parse().expect("value"))].into_iter().collect();
            assert_eq!(retry_after(&headers, now).map(|after| after.as_secs()), expected, "{text:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn pauses_grow_and_heed_the_server() {
        let mut patience = Patience::new("a", &());
        let cut = || io::Error::from(io::ErrorKind::ConnectionReset);
        for (fruitless, least, most) in [(1, 150, 250), (2, 300, 500), (4, 1200, 2000)] {
            patience.fruitless = fruitless;
            let pause = patience.pause(&cut()).as_millis();
            assert!((least..=most).contains(&pause), "{fruitless}: {pause}");
            let asked = io::Error::other(Busy { what: "", status: 503, after: Some(Duration::from_secs(7)) });
            assert!((7000..=8000).contains(&patience.pause(&asked).as_millis()));
        }
        let asked = io::Error::other(Busy { what: "", status: 429, after: Some(Duration::from_secs(3600)) });
        let told = Patience::new("a", &()).after(asked).expect_err("too long").to_string();
        assert_eq!(told, "status 429; it asks for 3600 s of patience");
        let refused = io::Error::new(io::ErrorKind::InvalidData, "no");
        assert!(Patience::new("a", &()).after(refused).is_err());
        patience.fruitless = ATTEMPTS - 1;
        assert!(patience.after(cut()).is_err());
    }
}
