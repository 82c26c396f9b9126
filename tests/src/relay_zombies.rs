//! A relay that was stopped with its transaction open and wakes up after another took over publishes
//! nothing, however often that happens and whoever wakes when.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use sqlx::Executor;

use crate::process::Process;
use crate::proof::{Bench, Report, Scale};
use crate::site::{Site, Variant};
use crate::verdict::STOP_MAX;
use crate::writers::Dice;

/// A relay leads, stops or stands by by then.
const TURN_MAX: Duration = Duration::from_secs(60);
/// The last relay has published the rest by then.
const REST_MAX: Duration = Duration::from_secs(120);

const RELAYS: usize = 3;
const WRITERS: usize = 2;

const LEADING: &str = "leading relay_id=";
const STANDING_BY: &str = "standing by: the slot is in use";
const ENDING: &str = "ending its backend";

/// How a leader that was stopped comes back.
#[derive(Clone, Copy, Debug)]
enum Waking {
    /// After its successor has published.
    Late,
    /// While its successor is about to take the slot.
    Early,
    /// After its successor was stopped too and the third relay has published, both at once.
    Together,
}

/// How much the server has to send to a leader that is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    Little,
    /// More than fits between the two, so that the server waits in the midst of sending.
    Far,
}

const WAKINGS: [Waking; 3] = [Waking::Late, Waking::Early, Waking::Together];

/// The body of the proof `relay-zombies`.
///
/// # Panics
///
/// When nobody takes over, or a server fails.
pub async fn prove(bench: Bench<'_>) -> Report {
    let rounds = match bench.scale {
        Scale::Small => WAKINGS.len(),
        Scale::Full => 20 * WAKINGS.len(),
    };
    bench.bar.set_length(rounds as u64);
    let mut dice = Dice::new("relay-zombies");
    let site = Site::new(bench.stack, "relay_zombies", 2, &bench.node).await;
    site.prepare_writers().await;
    let mut relays = Relays::start(&site).await;

    let mut takeovers = Vec::new();
    let play = async {
        for at in 0..rounds {
            let waking = *WAKINGS.get(at % WAKINGS.len()).expect("below its length");
            takeovers.extend(relays.round(&site, waking).await);
            bench.bar.inc(1);
        }
    };
    let written = site.write_during(WRITERS, &mut dice, play).await;
    let enough = site.expected().await.len();
    site.read_until(REST_MAX, move |seen| seen.len() >= enough).await;
    let orders: usize = relays.said(ENDING).iter().sum();
    let [mut last, others @ ..] = relays.of;
    for mut relay in others {
        relay.signal(Signal::TERM);
        relay.ends(STOP_MAX).await;
    }
    let verdict = site.stop_and_judge(&mut last, &written).await;

    let mut report = Report::default();
    report.figure("leaders stopped", takeovers.len() + rounds / WAKINGS.len());
    report.figure("orders to end a backend", orders);
    report.figure("takeovers that were measured", takeovers.len());
    let (median, longest) = median_and_longest(takeovers.iter().map(|takeover| takeover.whole));
    report.figure("takeover, median", median);
    report.figure("takeover, longest", longest);
    let (median, longest) =
        median_and_longest(takeovers.iter().map(|takeover| takeover.after_the_end));
    report.figure("of it after its end, median", median);
    report.figure("of it after its end, longest", longest);
    report.figure("source transactions", written.committed);
    verdict.tell(&mut report);
    report
}

/// How long nobody led.
struct Takeover {
    /// From the moment at which the leader stopped.
    whole: Duration,
    /// From the moment at which a standby took it for dead.
    after_the_end: Duration,
}

fn median_and_longest(times: impl Iterator<Item = Duration>) -> (String, String) {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    let ms = |at| format!("{} ms", times.get(at).map_or(0, Duration::as_millis));
    (ms(times.len() / 2), ms(times.len().saturating_sub(1)))
}

/// Relays on one slot, and which of them leads.
struct Relays {
    of: [Process; RELAYS],
    leader: usize,
}

impl Relays {
    /// With one that leads and two that stand by.
    async fn start(site: &Site) -> Self {
        let of = [(); RELAYS].map(|()| site.relay(Variant::default()));
        let mut relays = Relays { of, leader: RELAYS };
        relays.leader = relays.next_to_say(LEADING, &[0; RELAYS]).await;
        for at in 0..RELAYS {
            if at != relays.leader {
                relays.at(at).says(STANDING_BY, TURN_MAX).await;
            }
        }
        relays
    }

    /// Stops the leader and wakes it up again; answers with how long the takeovers took in which
    /// nobody woke up.
    async fn round(&mut self, site: &Site, waking: Waking) -> Vec<Takeover> {
        let zombie = self.leader;
        let before = self.said(STANDING_BY);
        match waking {
            Waking::Late => {
                let takeover = self.succeed(site, Behind::Far).await;
                publishes(site).await;
                self.wake(zombie, &before).await;
                vec![takeover]
            }
            Waking::Together => {
                let first = self.succeed(site, Behind::Little).await;
                let second_zombie = self.leader;
                let second = self.succeed(site, Behind::Little).await;
                publishes(site).await;
                self.at(zombie).signal(Signal::CONT);
                self.wake(second_zombie, &before).await;
                self.wake(zombie, &before).await;
                vec![first, second]
            }
            Waking::Early => {
                let (leading, ending) = (self.said(LEADING), self.said(ENDING));
                self.stop_leader().await;
                self.next_to_say(ENDING, &ending).await;
                self.at(zombie).signal(Signal::CONT);
                // Whoever comes first, the one that was stopped among them.
                self.leader = self.next_to_say(LEADING, &leading).await;
                publishes(site).await;
                Vec::new()
            }
        }
    }

    /// Stops the leader with a transaction open, and waits for another; answers with how long that
    /// took.
    async fn succeed(&mut self, site: &Site, behind: Behind) -> Takeover {
        let (leading, ending) = (self.said(LEADING), self.said(ENDING));
        let stopped_at = self.stop_leader().await;
        if behind == Behind::Far {
            // Of another prefix: it is sent to the relay, and no record.
            let much = "select pg_logical_emit_message(false, 'noise', repeat('x', 1048576)) \
                        from generate_series(1, 24)";
            site.pool.execute(much).await.expect("the server serves");
        }
        self.next_to_say(ENDING, &ending).await;
        let ended_at = Instant::now();
        self.leader = self.next_to_say(LEADING, &leading).await;
        Takeover { whole: stopped_at.elapsed(), after_the_end: ended_at.elapsed() }
    }

    async fn stop_leader(&mut self) -> Instant {
        let leader = self.leader;
        let times = self.said("reached").get(leader).copied().unwrap_or_default();
        let relay = self.at(leader);
        relay.signal(Signal::USR1);
        relay.says_times("reached", times + 1, TURN_MAX).await;
        Instant::now()
    }

    /// Lets a relay go on, which finds that another leads.
    async fn wake(&mut self, at: usize, stood_by: &[usize; RELAYS]) {
        let times = stood_by.get(at).copied().unwrap_or_default();
        let relay = self.at(at);
        relay.signal(Signal::CONT);
        relay.says_times(STANDING_BY, times + 1, TURN_MAX).await;
    }

    /// How often each of them has said this.
    fn said(&self, text: &str) -> [usize; RELAYS] {
        self.of.each_ref().map(|relay| relay.log().matches(text).count())
    }

    /// Which of them is the next to say this.
    async fn next_to_say(&mut self, text: &str, said: &[usize; RELAYS]) -> usize {
        let [one, two, three] = &mut self.of;
        let [said_one, said_two, said_three] = said;
        tokio::select! {
            () = one.says_times(text, said_one + 1, TURN_MAX) => 0,
            () = two.says_times(text, said_two + 1, TURN_MAX) => 1,
            () = three.says_times(text, said_three + 1, TURN_MAX) => 2,
        }
    }

    fn at(&mut self, at: usize) -> &mut Process {
        self.of.get_mut(at).expect("one of the relays")
    }
}

/// Waits until what is committed now can be read.
async fn publishes(site: &Site) {
    let enough = site.expected().await.len();
    site.read_until(REST_MAX, move |seen| seen.len() >= enough).await;
}
