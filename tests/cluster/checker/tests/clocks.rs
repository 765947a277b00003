//! What is allowed while the clocks of replicas differ, and no more than that.

use super::*;
use crate::history::Doubt;

impl Pen {
    /// Between two moments clocks were so far apart.
    fn doubt(mut self, at: (Micros, Micros), apart: Micros) -> Self {
        self.0.doubts.push(Doubt { from: at.0, to: at.1, apart });
        self
    }
}

#[test]
fn a_retry_window_is_off_by_as_much_as_clocks_and_only_then() {
    let rotated = || Pen::login().refresh((30, 40), 0, issued(1));
    let (apart, over) = (300, 40 + WINDOW + RULES.slack);
    let doubted = || rotated().doubt((35, 36), apart);
    doubted().refresh((over + apart - 1, over + 500), 0, issued(1)).is_good();
    doubted().refresh((over + apart, over + 500), 0, issued(1)).breaks(Promise::OneOrder);
    let early = 30 + WINDOW - RULES.slack - apart;
    doubted().refresh((early - 5, early), 0, Answer::Refused).is_good();
    doubted().refresh((early - 5, early - 1), 0, Answer::Refused).breaks(Promise::OneOrder);
    // Clocks that agreed again before the rotation, or differ only after the retry, excuse nothing.
    for at in [(1, 29), (over + 6, over + 9)] {
        let pen = rotated().doubt(at, apart).refresh((over, over + 5), 0, issued(1));
        pen.breaks(Promise::OneOrder);
    }
}

#[test]
fn a_token_may_be_too_early_only_beyond_what_is_made_up_for() {
    let asked = |apart| Pen::login().doubt((1, 40), apart).introspect((35, 45), None, false);
    asked(RULES.lead).breaks(Promise::OneOrder);
    asked(RULES.lead + 1).is_good();
    let later = Pen::login().doubt((1, 40), 900).introspect((41, 45), None, false);
    later.breaks(Promise::OneOrder);
    let judged = |apart| Pen::login().doubt((1, 40), apart).verdict(39, Judged::Invalid);
    judged(RULES.leeway).breaks(Promise::Bound);
    judged(RULES.leeway + 1).is_good();
}

#[test]
fn the_bound_holds_as_long_as_clocks_keep_up() {
    let accepted = |apart, late| {
        let pen = Pen::login().revoke((30, 40)).doubt((1, 5_000), apart);
        pen.verdict(40 + RULES.bound + late, Judged::Good)
    };
    accepted(RULES.lead, 1).breaks(Promise::Bound);
    accepted(RULES.lead + 50, 50).is_good();
    accepted(RULES.lead + 50, 51).breaks(Promise::Bound);
}

#[test]
fn no_clock_excuses_a_revocation_that_is_not_seen() {
    let pen = Pen::login().revoke((30, 40)).doubt((1, 5_000), 900);
    pen.clone().introspect((50, 60), None, true).breaks(Promise::ReadYourRevocation);
    pen.refresh((50, 60), 0, issued(1)).breaks(Promise::OneOrder);
}
