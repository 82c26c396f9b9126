//! What the sidecar says when it refuses to run.

use std::time::Duration;

use tests::process::Process;

/// A refusal comes by then: a broker that does not answer is waited for ten seconds.
const REFUSE_MAX: Duration = Duration::from_secs(30);

/// The sidecar ends with this code and one error, which names these things and a way to mend it;
/// answers with everything it wrote.
#[track_caller]
pub(crate) fn refuses<'a>(
    relay: &'a mut Process,
    code: i32,
    named: &'a [&'a str],
) -> impl Future<Output = String> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let status = relay.ends(REFUSE_MAX).await;
        let log = relay.log();
        assert_eq!(status.code(), Some(code), "{caller}:\n{log}");
        let errors: Vec<&str> = log.lines().filter(|line| line.starts_with("error: ")).collect();
        let mends: Vec<&str> = log.lines().filter(|line| line.starts_with("  mend: ")).collect();
        assert_eq!((errors.len(), mends.len()), (1, 1), "{caller}: one error, one way on:\n{log}");
        // Several faults stand on a line each, between the error and the way on.
        let complaint = log.find("error: ").and_then(|at| log.get(at..)).unwrap_or_default();
        for name in named {
            assert!(complaint.contains(name), "{caller}: {name:?} is not in:\n{complaint}");
        }
        log
    }
}
