//! Which build of a read model a process works at: decided without a database.

/// One time that a read model was built, as far as it has not gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Build {
    pub(super) number: i32,
    pub(super) version: i32,
    pub(super) state: State,
    /// A digest of the statements that made its tables, and of its topics.
    pub(super) definition: Vec<u8>,
}

/// What a build is to readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Beside the live one, not complete.
    Building,
    /// What readers see.
    Live,
    /// Kept for going back.
    Former,
    /// Nobody may write to it any more; its schema is to be dropped.
    Leaving,
}

/// What a process brings.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) version: i32,
    pub(super) definition: Vec<u8>,
    /// Beside the live one, also where that has this version.
    pub(super) anew: bool,
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    /// Work at this one.
    Take(Build),
    /// Begin another one; whatever is being built is given up for it.
    Begin,
    /// A higher version has come since.
    Replaced(i32),
    /// The version is known with other tables or topics.
    Changed,
}

/// A build that is not complete is continued by its own version, and given up for a higher one. A process whose version
/// was gone back from works at it on, and does not undo that.
pub(super) fn choose(known: &[Build], wanted: &Wanted) -> Choice {
    let own = |state| {
        let mut builds = known.iter().filter(|build| build.version == wanted.version);
        builds.rfind(|build| build.state == state)
    };
    let shown = [State::Live, State::Former].into_iter().find_map(own);
    if let Some(build) = shown {
        match build.definition == wanted.definition {
            false => return Choice::Changed,
            true if !wanted.anew => return Choice::Take(build.clone()),
            true => {}
        }
    }
    if let Some(build) = own(State::Building) {
        let same = build.definition == wanted.definition;
        return if same { Choice::Take(build.clone()) } else { Choice::Begin };
    }
    let current = known.iter().filter(|b| matches!(b.state, State::Live | State::Building));
    match current.map(|build| build.version).max() {
        Some(version) if version > wanted.version => Choice::Replaced(version),
        _ => Choice::Begin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &[u8] = b"a";

    fn build(number: i32, version: i32, state: State) -> Build {
        Build { number, version, state, definition: A.to_vec() }
    }

    fn check(known: &[(i32, i32, State)], version: i32, expected: &str, anew: &str) {
        let known: Vec<_> = known.iter().map(|(n, v, state)| build(*n, *v, *state)).collect();
        let told = |anew| {
            let wanted = Wanted { version, definition: A.to_vec(), anew };
            match choose(&known, &wanted) {
                Choice::Take(build) => format!("take {}", build.number),
                Choice::Begin => "begin".to_owned(),
                Choice::Replaced(by) => format!("replaced by {by}"),
                Choice::Changed => "changed".to_owned(),
            }
        };
        assert_eq!((&*told(false), &*told(true)), (expected, anew), "{version} of {known:?}");
    }

    #[test]
    fn a_process_works_at_the_build_of_its_version_and_begins_one_where_there_is_none() {
        use State::{Building, Former, Leaving, Live};

        check(&[], 1, "begin", "begin");
        check(&[(1, 1, Building)], 1, "take 1", "take 1");
        check(&[(1, 1, Live)], 1, "take 1", "begin");
        check(&[(1, 1, Live)], 2, "begin", "begin");
        check(&[(1, 1, Live), (2, 2, Building)], 2, "take 2", "take 2");
        check(&[(1, 1, Live), (2, 2, Building)], 1, "take 1", "replaced by 2");
        check(&[(1, 1, Live), (2, 2, Building)], 3, "begin", "begin");
        check(&[(1, 1, Live), (2, 1, Building)], 1, "take 1", "take 2");
        check(&[(1, 1, Former), (2, 2, Live)], 1, "take 1", "replaced by 2");
        check(&[(1, 1, Leaving), (2, 2, Live)], 1, "replaced by 2", "replaced by 2");
        // After going back.
        check(&[(1, 1, Live), (2, 2, Former)], 2, "take 2", "begin");
        // A rebuild of the same version, with the one before kept.
        check(&[(1, 1, Former), (2, 1, Live)], 1, "take 2", "begin");
    }

    #[test]
    fn other_tables_under_a_version_that_is_shown_are_refused_and_an_open_build_begins_again() {
        let wanted = Wanted { version: 1, definition: b"b".to_vec(), anew: false };

        let shown = choose(&[build(1, 1, State::Live)], &wanted);
        let open = choose(&[build(1, 1, State::Building)], &wanted);

        assert_eq!((shown, open), (Choice::Changed, Choice::Begin));
    }
}
