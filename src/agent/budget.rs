//! From a budget to the next thing to do. Pure: it is told the time, and knows nothing of what happens in it.

use serde::{Deserialize, Serialize};

/// How long a subagent may live.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// Exactly this many optimiser steps.
    Steps(usize),
    /// About this many seconds, from base score to gate.
    Seconds(f64),
}

/// Steps after which the time that a step takes is known well enough to plan by: the learning rate is still warming up, and does
/// not depend on the plan.
const CALIBRATION_STEPS: usize = 4;

/// A plan of fewer steps than this is not made again.
const REPLAN_STEPS_MIN: usize = 4;

/// Share of a budget that a last planned step may still overrun it by: the learning rate ends at 0 if the plan is kept.
const OVERRUN: f64 = 0.02;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A step of training, of so many in all as far as that is known now.
    Step(usize),
    /// Have the adapter as it stands judged on a few items, and say how long that took: [`Pace::judged`].
    Probe,
    /// No more training: what is left is for judging.
    Judge,
}

/// Items that are yet to be judged after training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ToJudge {
    /// By whoever the subagent was born from.
    pub(super) newborn: usize,
    /// By the learned adapter.
    pub(super) learned: usize,
}

/// Seconds an item takes to be judged. A newborn may ramble to its limit where the learned adapter answers in three tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Judging {
    newborn: f64,
    learned: Option<f64>,
}

/// How many steps in all the learning rate of step `step` followed, of a run of `steps` steps that recorded these plans.
pub(super) fn planned_with(budget: Option<Budget>, plans: &[(usize, usize)], step: usize, steps: usize) -> usize {
    match budget {
        Some(Budget::Seconds(_)) => {
            let last = plans.iter().rfind(|(taken, _)| *taken <= step);
            last.map_or(step + CALIBRATION_STEPS, |(_, planned)| *planned)
        }
        _ => steps,
    }
}

/// A run's plan for its time, kept from sitting to sitting.
///
/// After the first steps it plans as many as fit before judging, and plans again whenever half of the planned steps are taken or
/// half of their time has passed, the first time with the speed of judging under what has been learned by then.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Pace {
    /// (steps taken, steps in all) of each plan: what a step's learning rate depended on.
    pub(super) plans: Vec<(usize, usize)>,
    judging: Judging,
    /// Whether more is known of judging than when the last plan was made.
    outdated: bool,
    /// When the step under way began.
    began: Option<f64>,
    /// Steps since the last plan, and their seconds.
    timed: (usize, f64),
    /// Seconds of a step, by the last plan.
    step: f64,
    /// When half of the last plan's time will have passed.
    half_time: f64,
}

impl Pace {
    /// `items` took a newborn so many `seconds` to answer.
    pub(super) fn born(&mut self, items: usize, seconds: f64) {
        self.judging.newborn = seconds / items.max(1) as f64;
    }

    /// `items` took the learning adapter so many `seconds` to answer.
    pub(super) fn judged(&mut self, items: usize, seconds: f64) {
        self.judging.learned = Some(seconds / items.max(1) as f64);
        self.outdated = true;
    }

    /// What to do at `now` (seconds since birth) with `done` steps taken. At least one step is taken, so that there is a candidate
    /// to judge.
    pub(super) fn next(&mut self, budget: Budget, now: f64, done: usize, left: ToJudge) -> Next {
        if let Some(began) = self.began.take() {
            // The first step pays for cold caches.
            let counts = done > 1;
            self.timed = (self.timed.0 + usize::from(counts), self.timed.1 + if counts { now - began } else { 0.0 });
        }
        let next = match budget {
            Budget::Steps(steps) if done < steps => Next::Step(steps),
            Budget::Steps(_) => Next::Judge,
            Budget::Seconds(seconds) => self.next_in(seconds, now, done, left),
        };
        self.began = matches!(next, Next::Step(_)).then_some(now);
        next
    }

    fn next_in(&mut self, seconds: f64, now: f64, done: usize, left: ToJudge) -> Next {
        let time = seconds - now - self.reserve(left);
        if done < CALIBRATION_STEPS {
            return if done > 0 && time < 0.0 { Next::Judge } else { Next::Step(done + CALIBRATION_STEPS) };
        }
        if self.plans.is_empty() {
            self.plan(time, now, done);
        }
        let (planned_at, planned) = self.planned();
        let halfway = done >= planned_at + (planned - planned_at).div_ceil(2) || now >= self.half_time;
        if halfway && self.judging.learned.is_none() {
            return Next::Probe;
        }
        if self.outdated || halfway && planned - planned_at >= REPLAN_STEPS_MIN {
            self.plan(time, now, done);
        }
        let (_, planned) = self.planned();
        let fits = time + OVERRUN * seconds >= self.step;
        if done < planned && fits { Next::Step(planned) } else { Next::Judge }
    }

    /// The last plan.
    fn planned(&self) -> (usize, usize) {
        self.plans.last().copied().expect("a plan is made first")
    }

    /// Seconds to keep for judging.
    fn reserve(&self, left: ToJudge) -> f64 {
        let Judging { newborn, learned } = self.judging;
        left.newborn as f64 * newborn + left.learned as f64 * learned.unwrap_or(newborn)
    }

    /// Plans the steps that fit into `time` from `now` on.
    fn plan(&mut self, time: f64, now: f64, done: usize) {
        let (steps, seconds) = std::mem::take(&mut self.timed);
        if steps > 0 {
            self.step = seconds / steps as f64;
        }
        let more = if self.step > 0.0 { (time / self.step).floor().max(0.0) as usize } else { 0 };
        self.plans.push((done, done + more));
        (self.half_time, self.outdated) = (now + time / 2.0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What things take in a simulated life, in seconds.
    struct World {
        budget: f64,
        /// By the number of steps taken before.
        step: fn(usize) -> f64,
        newborn_item: f64,
        /// By the number of steps taken before.
        learned_item: fn(usize) -> f64,
    }

    const EXAM: usize = 352;
    const PROBE: usize = 64;
    const APART: usize = 128;

    /// When a life ends, and the steps that it took.
    fn live(world: &World) -> (f64, usize) {
        let mut pace = Pace::default();
        let mut now = EXAM as f64 * world.newborn_item;
        pace.born(EXAM, now);
        let left = ToJudge { newborn: APART, learned: EXAM + APART };
        let mut done = 0;
        loop {
            match pace.next(Budget::Seconds(world.budget), now, done, left) {
                Next::Step(planned) => {
                    assert!(planned > done);
                    now += (world.step)(done);
                    done += 1;
                }
                Next::Probe => {
                    let seconds = PROBE as f64 * (world.learned_item)(done);
                    now += seconds;
                    pace.judged(PROBE, seconds);
                }
                Next::Judge => {
                    let last =
                        left.newborn as f64 * world.newborn_item + left.learned as f64 * (world.learned_item)(done);
                    return (now + last, done);
                }
            }
        }
    }

    #[test]
    fn a_budget_in_time_covers_the_whole_life_within_five_percent() {
        // Lengths of items vary from step to step, by up to a third.
        fn noise(step: usize) -> f64 {
            let hash = (step as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            0.85 + 0.3 * hash as f64 / (1 << 24) as f64
        }
        let worlds = [
            ("even", World { budget: 60.0, step: |_| 0.4, newborn_item: 0.02, learned_item: |_| 0.02 }),
            ("noisy", World { budget: 300.0, step: |n| noise(n), newborn_item: 0.03, learned_item: |_| 0.03 }),
            (
                "the learned answer is short",
                World {
                    budget: 60.0,
                    step: |n| 0.5 * noise(n),
                    newborn_item: 0.04,
                    learned_item: |n| if n < 10 { 0.04 } else { 0.01 },
                },
            ),
            (
                "the learned answer is long",
                World {
                    budget: 300.0,
                    step: |n| 0.5 * noise(n),
                    newborn_item: 0.02,
                    learned_item: |n| if n < 10 { 0.02 } else { 0.06 },
                },
            ),
            (
                "rollouts grow shorter",
                World {
                    budget: 180.0,
                    step: |n| 4.0 / (1.0 + 0.05 * n as f64),
                    newborn_item: 0.05,
                    learned_item: |_| 0.02,
                },
            ),
            (
                "rollouts grow longer",
                World { budget: 180.0, step: |n| 1.0 + 0.03 * n as f64, newborn_item: 0.02, learned_item: |_| 0.04 },
            ),
            (
                "a cold first step",
                World {
                    budget: 90.0,
                    step: |n| if n == 0 { 5.0 } else { 0.3 },
                    newborn_item: 0.02,
                    learned_item: |_| 0.02,
                },
            ),
        ];
        for (name, world) in worlds {
            let (end, steps) = live(&world);
            assert!((end / world.budget - 1.0).abs() < 0.05, "{name}: {end} of {} s, {steps} steps", world.budget);
            assert!(steps > 8, "{name}: {steps}");
        }
    }

    #[test]
    fn a_budget_that_judging_alone_exceeds_still_gives_a_candidate() {
        let world = World { budget: 1.0, step: |_| 0.5, newborn_item: 0.02, learned_item: |_| 0.02 };
        assert_eq!(live(&world).1, 1);
    }

    #[test]
    fn a_budget_in_steps_is_kept_whatever_they_take() {
        let (mut pace, left) = (Pace::default(), ToJudge { newborn: 0, learned: 9 });
        for done in 0..7 {
            assert_eq!(pace.next(Budget::Steps(7), 1e9 * done as f64, done, left), Next::Step(7));
        }
        assert_eq!(pace.next(Budget::Steps(7), 1e10, 7, left), Next::Judge);
    }

    #[test]
    fn a_plan_goes_on_where_an_interruption_left_it() {
        let (mut pace, left) = (Pace::default(), ToJudge { newborn: 0, learned: 100 });
        pace.born(100, 10.0);
        let mut planned = Next::Judge;
        for done in 0..6 {
            planned = pace.next(Budget::Seconds(100.0), 10.0 + done as f64, done, left);
        }
        let kept: Pace = serde_json::from_str(&serde_json::to_string(&pace).unwrap()).unwrap();
        assert_eq!(kept, pace);
        assert_eq!(kept.clone().next(Budget::Seconds(100.0), 16.0, 6, left), planned);
    }
}
