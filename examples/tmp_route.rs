use socius::{
    common::{Digest, Seed},
    library::*,
    router::*,
};
use std::{sync::Arc, time::Instant};
fn rows(v: &serde_json::Value) -> Vec<Vec<f32>> {
    serde_json::from_value(v.clone()).unwrap()
}
fn main() {
    let d: serde_json::Value = serde_json::from_slice(&std::fs::read("/tmp/route/feats.json").unwrap()).unwrap();
    let tasks = d["tasks"].as_object().unwrap();
    let base = BaseId { name: "x".into(), digest: Digest::of("a"), tokenizer: Digest::of("b") };
    for k in [1usize, 3, 6, 10, 12] {
        let mut s = [[0f64; 2]; 6];
        let mut thr = 0.0;
        let draws = if k == 12 { 4 } else { 16 };
        for draw in 0..draws {
            let mut rng = Seed::new(draw).rng();
            let mut names: Vec<&String> = tasks.keys().collect();
            rng.shuffle(&mut names);
            let mut r =
                Router::new(base.clone(), RoutingFeatures::new(14, &rows(&d["bg"])).unwrap(), Settings::default())
                    .unwrap();
            for n in &names[..k] {
                let mut t = rows(&tasks[*n]["train"]);
                rng.shuffle(&mut t);
                r.add(
                    n.parse().unwrap(),
                    Digest::of(n.as_str()),
                    Arc::new(RoutingFeatures::new(14, &t[..10]).unwrap()),
                )
                .unwrap();
            }
            let mut put = |slot: usize, row: &Vec<f32>, want: Option<&str>| {
                let o = r.route(row).unwrap();
                thr = o.threshold;
                s[slot][1] += 1.0;
                if o.choice.as_ref().map(|c| c.as_str()) == want {
                    s[slot][0] += 1.0;
                }
            };
            for (i, n) in names.iter().enumerate() {
                let want = (i < k).then_some(n.as_str());
                for row in rows(&tasks[*n]["held"]) {
                    put(if i < k { 0 } else { 4 }, &row, want);
                }
                for row in rows(&tasks[*n]["fresh"]) {
                    put(if i < k { 1 } else { 5 }, &row, want);
                }
            }
            for row in rows(&d["un"]) {
                put(2, &row, None);
            }
            for row in rows(&d["fresh_un"]) {
                put(3, &row, None);
            }
        }
        let p = |i: usize| (1000.0 * s[i][0] / s[i][1]).round() / 10.0;
        println!(
            "skills {k}: held-out {} fresh wording {} | generic {} fresh generic {} | unseen tasks {} fresh {} (thr {thr:.3})",
            p(0),
            p(1),
            p(2),
            p(3),
            p(4),
            p(5)
        );
    }
    for k in [10u64, 100, 1000] {
        let mut rng = Seed::new(1).rng();
        let mut r =
            Router::new(base.clone(), RoutingFeatures::new(14, &rows(&d["bg"])).unwrap(), Settings::default()).unwrap();
        let t = Instant::now();
        for i in 0..k {
            let f: Vec<Vec<f32>> = (0..10).map(|_| (0..576).map(|_| rng.normal() as f32).collect()).collect();
            r.add(format!("s{i}").parse().unwrap(), Digest::of(""), Arc::new(RoutingFeatures::new(14, &f).unwrap()))
                .unwrap();
        }
        let add = t.elapsed();
        let x: Vec<f32> = (0..576).map(|_| rng.normal() as f32).collect();
        let t = Instant::now();
        r.route(&x).unwrap();
        let first = t.elapsed();
        let t = Instant::now();
        for _ in 0..20 {
            r.route(&x).unwrap();
        }
        println!(
            "{k} skills: add all {add:?}, first route (solve + calibrate) {first:?}, then {:?} each",
            t.elapsed() / 20
        );
    }
}
