//! Where a relay under test ends itself.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use tailrace_cdc_relay::Milestone;

/// An occurrence of a milestone, and what happens there.
///
/// Written `produced:3` (SIGKILL), `produced:3:stop` (SIGSTOP) or `committing:3:800` (SIGKILL from
/// a second thread, so many microseconds later).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashPoint {
    /// The step of the relay.
    pub milestone: Milestone,
    /// Which of its occurrences in this process, counted from 1.
    pub occurrence: u32,
    /// SIGSTOP in place of SIGKILL.
    pub stops: bool,
    /// How much later, while the relay goes on.
    pub after: Option<Duration>,
}

/// Every milestone, by the name it has here, in the order of a message's way.
pub const MILESTONES: [(&str, Milestone); 7] = [
    ("intended", Milestone::Intended),
    ("slot-created", Milestone::SlotCreated),
    ("decoded", Milestone::Decoded),
    ("produced", Milestone::Produced),
    ("committing", Milestone::Committing),
    ("committed", Milestone::Committed),
    ("flushed", Milestone::Flushed),
];

impl CrashPoint {
    /// SIGKILL at this occurrence.
    pub fn at(milestone: Milestone, occurrence: u32) -> Self {
        CrashPoint { milestone, occurrence, stops: false, after: None }
    }

    /// SIGSTOP instead.
    #[must_use]
    pub fn stop(self) -> Self {
        CrashPoint { stops: true, ..self }
    }

    /// Later by this much.
    #[must_use]
    pub fn after(self, after: Duration) -> Self {
        CrashPoint { after: Some(after), ..self }
    }
}

impl fmt::Display for CrashPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = MILESTONES.iter().find(|(_, milestone)| *milestone == self.milestone);
        let (name, _) = known.expect("every milestone has a name");
        write!(f, "{name}:{}", self.occurrence)?;
        if self.stops {
            f.write_str(":stop")?;
        }
        self.after.map_or(Ok(()), |after| write!(f, ":{}", after.as_micros()))
    }
}

impl FromStr for CrashPoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str =
            "not of the form MILESTONE:N, MILESTONE:N:stop or MILESTONE:N:MICROSECONDS";
        let mut parts = text.split(':');
        let name = parts.next().ok_or(FORM)?;
        let known = MILESTONES.iter().find(|(known, _)| *known == name);
        let (_, milestone) = known.ok_or("no such milestone")?;
        let occurrence = parts.next().ok_or(FORM)?.parse().map_err(|_| FORM)?;
        let point = CrashPoint::at(*milestone, occurrence);
        match (parts.next(), parts.next()) {
            (None, None) => Ok(point),
            (Some("stop"), None) => Ok(point.stop()),
            (Some(micros), None) => {
                Ok(point.after(Duration::from_micros(micros.parse().map_err(|_| FORM)?)))
            }
            _ => Err(FORM),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{CrashPoint, MILESTONES};

    #[test]
    fn a_crash_point_reads_back() {
        for (_, milestone) in MILESTONES {
            let point = CrashPoint::at(milestone, 3);
            for point in [point, point.stop(), point.after(Duration::from_micros(800))] {
                assert_eq!(point.to_string().parse(), Ok(point));
            }
        }
        for wrong in ["", "produced", "produced:x", "nowhere:1", "produced:1:2:3"] {
            assert!(wrong.parse::<CrashPoint>().is_err(), "{wrong}");
        }
    }
}
