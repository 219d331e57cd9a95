//! From the rewards of one group (several samples of one prompt) to advantages; knows nothing of tokens.

/// Each reward less the mean of the others: the leave-one-out baseline of RLOO (Kool et al. 2019; arXiv 2402.14740, eq. 5).
/// A group of one has nothing to compare with: 0.
pub fn leave_one_out(rewards: &[f32]) -> Vec<f32> {
    let others = rewards.len().saturating_sub(1).max(1) as f64;
    let total = sum(rewards);
    let advantage = |&reward: &f32| (f64::from(reward) - (total - f64::from(reward)) / others) as f32;
    if rewards.len() < 2 { vec![0.0; rewards.len()] } else { rewards.iter().map(advantage).collect() }
}

/// Each reward less the group's mean, over the group's standard deviation (n − 1): GRPO (arXiv 2402.03300, section 4.1.2).
/// Equal rewards say nothing: 0.
pub fn group_normalised(rewards: &[f32]) -> Vec<f32> {
    let mean = sum(rewards) / rewards.len().max(1) as f64;
    let square: f64 = rewards.iter().map(|&reward| (f64::from(reward) - mean).powi(2)).sum();
    let deviation = (square / rewards.len().saturating_sub(1).max(1) as f64).sqrt();
    let advantage = |&reward: &f32| ((f64::from(reward) - mean) / deviation) as f32;
    // Rewards are f32: a spread below this is rounding of the mean.
    if deviation < 1e-6 { vec![0.0; rewards.len()] } else { rewards.iter().map(advantage).collect() }
}

fn sum(rewards: &[f32]) -> f64 {
    rewards.iter().map(|&reward| f64::from(reward)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advantages_are_those_of_the_table() {
        let rows: [(&[f32], &[f32], &[f32]); 5] = [
            (&[], &[], &[]),
            (&[1.0], &[0.0], &[0.0]),
            (&[0.7, 0.7, 0.7], &[0.0, 0.0, 0.0], &[0.0, 0.0, 0.0]),
            (&[1.0, 0.0], &[1.0, -1.0], &[0.707_106_77, -0.707_106_77]),
            (&[1.0, 0.0, 0.0, 0.0], &[1.0, -1.0 / 3.0, -1.0 / 3.0, -1.0 / 3.0], &[1.5, -0.5, -0.5, -0.5]),
        ];
        for (rewards, loo, normalised) in rows {
            assert!(close(&leave_one_out(rewards), loo), "{rewards:?}");
            assert!(close(&group_normalised(rewards), normalised), "{rewards:?}");
        }
    }

    fn close(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6)
    }
}
