//! Whether two lists of times are of one kind.

/// A count as a factor.
#[expect(clippy::cast_precision_loss, reason = "no count here comes near 2^52")]
pub(crate) fn count(number: usize) -> f64 {
    number as f64
}

/// The value that so much of the values do not exceed.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a position in a list, which is not negative and not large"
)]
pub(crate) fn percentile(values: &[f64], part: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = (count(values.len()) * part).ceil() as usize;
    values.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// The Mann-Whitney U test, two-sided, by the normal approximation with the correction for ties: the
/// chance of a difference at least as large as this if both lists are of one distribution.
pub(crate) fn mann_whitney(a: &[f64], b: &[f64]) -> f64 {
    let mut all: Vec<(f64, bool)> =
        a.iter().map(|&value| (value, true)).chain(b.iter().map(|&value| (value, false))).collect();
    all.sort_by(|x, y| x.0.total_cmp(&y.0));
    let (mut rank_sum, mut ties, mut at) = (0.0, 0.0, 0);
    while at < all.len() {
        let same = all[at..].iter().take_while(|(value, _)| *value == all[at].0).count();
        // Equal values share the mean of their ranks, which begin at 1.
        let rank = count(at) + (count(same) + 1.0) / 2.0;
        let of_a = all[at..at + same].iter().filter(|(_, is_a)| *is_a).count();
        rank_sum += rank * count(of_a);
        ties += count(same).powi(3) - count(same);
        at += same;
    }
    let (n, m) = (count(a.len()), count(b.len()));
    let u = rank_sum - n * (n + 1.0) / 2.0;
    let total = n + m;
    let variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
    let z = (u - n * m / 2.0) / variance.sqrt();
    complementary_error(z.abs() / std::f64::consts::SQRT_2)
}

/// erfc for what is not negative, by Abramowitz and Stegun 7.1.26: good to 1.5e-7.
fn complementary_error(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let terms = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    let sum = terms.iter().rev().fold(0.0, |sum, term| (sum + term) * t);
    sum * (-x * x).exp()
}
