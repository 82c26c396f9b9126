//! In which way the machine is run: as it is shipped, or by those who explore it.

use crate::definition::OnRefused;

/// What differs between a run for real and an exploration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) code: Code,
    /// No more attempts than this, whatever the retry policies say.
    pub(crate) attempts_max: u32,
    /// Replies of older epochs are not told apart. So it can be shown what that would do.
    #[cfg(test)]
    pub(crate) mixes_epochs: bool,
    /// A lock that is not wanted any more when it is given is kept. So it can be shown what that would do.
    #[cfg(test)]
    pub(crate) keeps_grants: bool,
}

/// What is done with the user's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// It runs.
    Run,
    /// It does not: commands and data are empty, and a refusal is decided so.
    Assume(OnRefused),
}

impl Rules {
    pub(crate) const SHIPPED: Self = Self {
        code: Code::Run,
        attempts_max: u32::MAX,
        #[cfg(test)]
        mixes_epochs: false,
        #[cfg(test)]
        keeps_grants: false,
    };

    /// Without the user's code, and with two attempts of each step in each direction.
    pub(crate) const EXPLORED: Self = Self {
        code: Code::Assume(OnRefused::Abort),
        attempts_max: 2,
        #[cfg(test)]
        mixes_epochs: false,
        #[cfg(test)]
        keeps_grants: false,
    };

    /// What a refusal is taken for where the code does not run.
    pub(crate) fn assumes(&self) -> Option<OnRefused> {
        match self.code {
            Code::Run => None,
            Code::Assume(then) => Some(then),
        }
    }

    pub(crate) fn keeps_grants(&self) -> bool {
        #[cfg(test)]
        return self.keeps_grants;
        #[cfg(not(test))]
        false
    }

    pub(crate) fn mixes_epochs(&self) -> bool {
        #[cfg(test)]
        return self.mixes_epochs;
        #[cfg(not(test))]
        false
    }
}
