//! Putting generations into the library.

use super::{
    BaseId, Blobs, Evidence, FORMAT, Finding, Generation, Library, LibraryError, Manifest, MoveKind, Provenance,
    RoutingFeatures, RoutingRef, SkillName, Target, commit::Records, episodes, journal,
};
use crate::{
    episode::Episode,
    lora::{Base, LoraWeights, PeftFiles},
};
use jiff::Timestamp;
use socius_models::Spec;
use std::sync::Arc;

/// What is to become a generation.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// The skill that it becomes the newest generation of.
    pub name: SkillName,
    /// What the skill is for, in a sentence.
    pub description: String,
    /// The base that it was learned on.
    pub base: BaseId,
    /// That base's architecture.
    pub spec: &'a Spec,
    /// The adapter.
    pub lora: &'a LoraWeights,
    /// What it was trained on.
    pub episodes: &'a [Episode],
    /// What the router is to know it by.
    pub routing: Option<RoutingFeatures>,
    /// How it came to be. The gate must have admitted it.
    pub provenance: Provenance,
}

impl Candidate<'_> {
    fn check(&self) -> Result<(), LibraryError> {
        let error = |what: String| Err(LibraryError::Candidate { what });
        if !self.provenance.gate.admitted {
            return error(format!("the gate refused {}: {}", self.name, self.provenance.gate.reasons.join("; ")));
        }
        if let Some(value) = self.lora.theta.iter().find(|value| !value.is_finite()) {
            return error(format!("the adapter of {} holds {value}; every value must be finite", self.name));
        }
        match &self.routing {
            Some(features) if features.hidden != self.spec.hidden => {
                let (found, expected) = (features.hidden, self.spec.hidden);
                error(format!("routing features of {} are {found} wide; the base is {expected} wide", self.name))
            }
            _ => Ok(()),
        }
    }
}

impl Library {
    /// Publishes `candidate` as the newest generation of its name. All of it appears, or nothing. Nothing is ever overwritten;
    /// publishing once more what the name stands for already (after a crash between commit and report) gives that generation.
    ///
    /// # Errors
    /// If the candidate is not whole or admitted, or the library cannot be written.
    pub fn publish(&self, candidate: &Candidate<'_>) -> Result<Arc<Generation>, LibraryError> {
        candidate.check()?;
        let _lock = self.objects.publishing()?;
        let blobs = self.put_blobs(candidate)?;
        let Candidate { name, description, base, provenance, .. } = candidate;
        let manifest = Manifest {
            socius_generation: FORMAT,
            name: name.clone(),
            number: 0,
            previous: None,
            description: description.clone(),
            base: base.clone(),
            rank: candidate.lora.config.rank,
            blobs,
            provenance: provenance.clone(),
        };
        self.publish_manifest(manifest, candidate.routing.as_ref(), &[])
    }

    /// Publishes `manifest`, whose objects are stored, under the next number of its name, with what is known of it.
    pub(super) fn publish_manifest(
        &self,
        manifest: Manifest,
        routing: Option<&RoutingFeatures>,
        findings: &[(Finding, Timestamp)],
    ) -> Result<Arc<Generation>, LibraryError> {
        let id = self.commit(|change| {
            let mut manifest = manifest;
            let name = manifest.name.clone();
            let mut records = Records::default();
            if let Some(current) = change.current(&name)?
                && let Ok(published) = self.generation(current)
                && published.manifest.blobs == manifest.blobs
                && published.manifest.base.same(&manifest.base)
            {
                // Its objects are whole again, if they were not.
                records.described.push(((*published).clone(), routing.cloned()));
                return Ok((current, records));
            }
            let last = change.last(&name)?;
            manifest.number = last.map_or(1, |last| last.number + 1);
            manifest.previous = last.map(|last| last.id);
            let id = self.objects.put(&journal::to_bytes(&manifest))?.digest;
            let to = Some(Target { generation: id, number: manifest.number });
            records.moves.push(self.next_move(change, &name, MoveKind::Publish, to)?);
            records.evidence.extend(findings.iter().map(|(finding, at)| Evidence::new(id, finding.clone(), *at)));
            records.described.push((Generation { id, manifest }, routing.cloned()));
            Ok((id, records))
        })?;
        self.generation(id)
    }

    fn put_blobs(&self, candidate: &Candidate<'_>) -> Result<Blobs, LibraryError> {
        let base = Base { spec: candidate.spec, name: &candidate.base.name, aliases: &[] };
        let files = PeftFiles::new(candidate.lora, base);
        let put = |bytes: Vec<u8>| self.objects.put(&bytes);
        let episodes = (!candidate.episodes.is_empty()).then(|| put(episodes::to_bytes(candidate.episodes)));
        let routing = match &candidate.routing {
            Some(features) => Some(RoutingRef { blob: put(features.to_bytes())?, layer: features.layer }),
            None => None,
        };
        Ok(Blobs {
            adapter_config: put(files.config)?,
            adapter_weights: put(files.weights)?,
            episodes: episodes.transpose()?,
            routing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Fixture;
    use super::*;
    use crate::{
        common::Digest,
        library::{GateDecision, SkillSummary},
    };
    use std::{collections::BTreeSet, fs};

    #[test]
    fn generations_are_numbered_linked_and_never_overwritten() {
        let fixture = Fixture::new();
        let ids: Vec<_> = (1..=3).map(|seed| fixture.publish("a", seed)).collect();
        assert_eq!(ids.iter().map(|g| g.manifest.number).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(ids[2].manifest.previous, Some(ids[1].id));
        for (seed, generation) in (1..).zip(&ids) {
            let (adapter, _) = fixture.library.load_adapter(generation, &fixture.base, &fixture.spec).unwrap();
            assert_eq!(adapter.theta, fixture.lora(seed).theta);
        }
    }

    #[test]
    fn publishing_the_same_again_gives_the_same_generation() {
        let fixture = Fixture::new();
        let first = fixture.publish("a", 1);
        assert_eq!(fixture.publish("a", 1).id, first.id);
        let other_name = fixture.publish("b", 1);
        assert_ne!(other_name.id, first.id);
        assert_eq!(other_name.manifest.blobs, first.manifest.blobs, "but the objects are shared");
    }

    #[test]
    fn what_is_not_whole_or_admitted_is_not_published() {
        let fixture = Fixture::new();
        let refused = |edit: &dyn Fn(&mut Candidate<'_>)| {
            let lora = fixture.lora(1);
            let mut candidate = fixture.candidate("a", 1, &lora);
            edit(&mut candidate);
            fixture.library.publish(&candidate).unwrap_err().to_string()
        };
        let gate = GateDecision { admitted: false, reasons: vec!["no better than the base".into()] };
        assert!(refused(&|candidate| candidate.provenance.gate = gate.clone()).contains("no better than the base"));
        let narrow = RoutingFeatures::new(1, &[vec![1.0; 7]]).unwrap();
        assert!(refused(&|candidate| candidate.routing = Some(narrow.clone())).contains("7 wide"));
        let mut lora = fixture.lora(1);
        lora.theta[5] = f32::INFINITY;
        let error = fixture.library.publish(&fixture.candidate("a", 1, &lora)).unwrap_err().to_string();
        assert!(error.contains("finite"), "{error}");
        assert!(fixture.library.list().unwrap().skills.is_empty());
    }

    #[test]
    fn a_removed_name_is_gone_its_generations_stay_readable_and_its_numbers_are_not_given_again() {
        let fixture = Fixture::new();
        let first = fixture.publish("a", 1);
        let name: SkillName = "a".parse().unwrap();
        fixture.library.remove(&name).unwrap();
        assert!(matches!(fixture.library.remove(&name), Err(LibraryError::NotFound { .. })));
        assert!(matches!(fixture.library.history(&name), Err(LibraryError::NotFound { .. })));
        assert!(fixture.library.list().unwrap().skills.is_empty());
        assert!(fixture.library.load_adapter(&first, &fixture.base, &fixture.spec).is_ok());
        let again = fixture.publish("a", 1);
        assert_eq!((again.manifest.number, again.manifest.previous), (2, Some(first.id)));
        assert_eq!(fixture.library.history(&name).unwrap().generations.len(), 1);
    }

    #[test]
    fn what_a_crash_before_the_commit_leaves_is_invisible_and_does_not_disturb_the_next() {
        let fixture = Fixture::new();
        let before = fixture.publish("a", 1);
        // Killed while writing: a temporary file. Killed before the index: objects without a row.
        fs::write(fixture.library.root().join("tmp/.tmpAbCdEf"), b"half a fi").unwrap();
        let lora = fixture.lora(2);
        let candidate = fixture.candidate("a", 2, &lora);
        let blobs = fixture.library.put_blobs(&candidate).unwrap();
        // Killed inside the transaction: manifest and move are there, their rows are rolled back.
        let died = fixture.library.index.write(|change| {
            let manifest = Manifest { number: 2, blobs, ..before.manifest.clone() };
            let generation = fixture.library.objects.put(&journal::to_bytes(&manifest))?.digest;
            let to = Some(Target { generation, number: 2 });
            let entry = fixture.library.next_move(change, &candidate.name, MoveKind::Publish, to)?;
            let moving = fixture.library.moving()?;
            fixture.library.intend(&moving, &[Digest::of(journal::to_bytes(&entry))])?;
            let digest = fixture.library.objects.put(&journal::to_bytes(&entry))?.digest;
            change.apply(digest, &entry)?;
            Err::<(), _>(LibraryError::Candidate { what: "killed".into() })
        });
        assert!(died.is_err());

        let library = Library::open(fixture.library.root()).unwrap();
        let shown = library.list().unwrap();
        assert_eq!(shown.skills.iter().map(|skill| skill.generation).collect::<Vec<_>>(), [before.id]);
        assert!(shown.damaged.is_empty() && library.verify().unwrap().is_sound());
        let after = library.publish(&candidate).unwrap();
        assert_eq!((after.manifest.number, after.manifest.previous), (2, Some(before.id)));
        assert!(library.load_adapter(&after, &fixture.base, &fixture.spec).is_ok());
    }

    #[test]
    fn writers_of_one_name_each_get_a_number_of_their_own() {
        let fixture = Fixture::new();
        const WRITERS: u64 = 4;
        const EACH: u64 = 5;
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let fixture = &fixture;
                // A connection of its own, as another process has.
                scope.spawn(move || {
                    let library = Library::open(fixture.library.root()).unwrap();
                    for i in 0..EACH {
                        let lora = fixture.lora(1 + writer * EACH + i);
                        library.publish(&fixture.candidate("a", 1, &lora)).unwrap();
                    }
                });
            }
        });
        let history = fixture.library.history(&"a".parse().unwrap()).unwrap().generations;
        let numbers: Vec<u32> = history.iter().map(|generation| generation.manifest.number).collect();
        assert_eq!(numbers, (1..=20).collect::<Vec<_>>());
        assert!(history.windows(2).all(|pair| pair[1].manifest.previous == Some(pair[0].id)));
        let distinct: BTreeSet<_> = history.iter().map(|g| g.manifest.blobs.adapter_weights.digest).collect();
        assert_eq!(distinct.len(), history.len());
    }

    #[test]
    fn a_new_library_may_be_opened_by_a_crowd_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("library");
        std::thread::scope(|scope| {
            let opened: Vec<_> = (0..16).map(|_| scope.spawn(|| Library::open(&root).map(drop))).collect();
            for thread in opened {
                thread.join().unwrap().unwrap();
            }
        });
    }

    #[test]
    fn a_summary_has_the_keys_that_scripts_rely_on() {
        let fixture = Fixture::new();
        let row = serde_json::to_value(SkillSummary::from(&*fixture.publish("a", 1))).unwrap();
        for key in ["name", "generation", "base", "env", "rank", "bytes", "created", "before", "after", "parents"] {
            assert!(row.get(key).is_some(), "{key}: {row}");
        }
        assert_eq!((&row["before"], &row["after"], &row["rank"]), (&0.0.into(), &0.875.into(), &4.into()));
    }
}
