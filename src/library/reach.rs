//! Which objects the living skills need, and what happens to the others. Never reads an adapter.

use super::{
    Blobs, Library, LibraryError,
    index::{About, Row},
};
use crate::common::Digest;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// What needs an object.
#[derive(Clone, Debug)]
pub(super) struct Need {
    pub(super) generation: Digest,
    /// `name@number`, or an ancestor's short digest.
    pub(super) label: String,
    pub(super) what: &'static str,
}

/// Every object that a living generation or an ancestor of one needs, with what needs it.
#[derive(Debug, Default)]
pub(super) struct Reach {
    pub(super) objects: BTreeMap<Digest, Vec<Need>>,
    /// Generations by id, with their labels and parents.
    pub(super) generations: BTreeMap<Digest, (String, Vec<Digest>)>,
    /// Generations whose manifest would have to be read to know what they need, and cannot be.
    pub(super) unknown: Vec<(Digest, LibraryError)>,
}

impl Reach {
    fn add(&mut self, id: Digest, label: String, blobs: Blobs, parents: Vec<Digest>) {
        let parts = [("manifest", id)].into_iter().chain(blobs.all().map(|(what, blob)| (what, blob.digest)));
        for (what, object) in parts {
            self.objects.entry(object).or_default().push(Need { generation: id, label: label.clone(), what });
        }
        self.generations.insert(id, (label, parents));
    }
}

/// What a collection took away, or would take away.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Collected {
    /// Number of objects.
    pub objects: usize,
    /// Their size.
    pub bytes: u64,
    /// Objects that stay.
    pub kept: usize,
}

impl Library {
    /// What the living need. Named generations are known to the index; ancestors without a name are read.
    pub(super) fn reach(&self) -> Result<Reach, LibraryError> {
        let mut reach = Reach::default();
        for (Row { id, number }, name, about) in self.index.live_about()? {
            let label = format!("{name}@{number}");
            match about {
                Some(About { summary, parts }) => reach.add(id, label, parts.blobs, summary.parents),
                None => self.read_into(&mut reach, id, label),
            }
        }
        let mut open: Vec<Digest> = reach.generations.values().flat_map(|(_, parents)| parents.clone()).collect();
        while let Some(id) = open.pop() {
            if !reach.generations.contains_key(&id) {
                self.read_into(&mut reach, id, id.short());
                open.extend(reach.generations.get(&id).into_iter().flat_map(|(_, parents)| parents));
            }
        }
        Ok(reach)
    }

    fn read_into(&self, reach: &mut Reach, id: Digest, label: String) {
        match self.generation(id) {
            Ok(generation) => {
                let manifest = &generation.manifest;
                reach.add(id, label, manifest.blobs, manifest.provenance.parents.clone());
            }
            Err(error) => {
                let need = Need { generation: id, label: label.clone(), what: "manifest" };
                reach.objects.entry(id).or_default().push(need);
                reach.generations.insert(id, (label, Vec::new()));
                reach.unknown.push((id, error));
            }
        }
    }

    /// Records that stay whatever is collected: every journal, and the evidence of what is within reach.
    pub(super) fn records(&self, reach: &Reach) -> Result<BTreeSet<Digest>, LibraryError> {
        let mut records = BTreeSet::new();
        for name in self.index.names()? {
            records.extend(self.index.moves(&name)?.into_iter().map(|(digest, _)| digest));
        }
        for &id in reach.generations.keys() {
            records.extend(self.index.evidence(id)?.into_iter().map(|(digest, _)| digest));
        }
        Ok(records)
    }

    /// Removes the objects that no living skill needs: what generations of removed names left, unless another was born from them,
    /// and what a kill left. Waits for publishers, and they wait for it. With `dry_run` it only counts.
    ///
    /// # Errors
    /// If the library cannot be written, or the manifest of a living generation is damaged, so that its objects are not known.
    pub fn collect(&self, dry_run: bool) -> Result<Collected, LibraryError> {
        let _lock = self.objects.collecting()?;
        self.recover()?;
        let mut reach = self.reach()?;
        if let Some((_, error)) = reach.unknown.pop() {
            return Err(error);
        }
        let records = self.records(&reach)?;
        let all = self.objects.all()?;
        let needed = |object: &Digest| reach.objects.contains_key(object) || records.contains(object);
        let dead: Vec<_> = all.iter().filter(|blob| !needed(&blob.digest)).collect();
        let collected = Collected {
            objects: dead.len(),
            bytes: dead.iter().map(|blob| blob.bytes).sum(),
            kept: all.len() - dead.len(),
        };
        if !dry_run {
            let dead: Vec<Digest> = dead.iter().map(|blob| blob.digest).collect();
            self.take_away(&dead, |id| !reach.generations.contains_key(&id))?;
        }
        Ok(collected)
    }

    /// Removes `dead` objects, and makes the index forget what `is_gone` of the generations of removed names. An archive may bring such a
    /// generation back at any time, so index and evidence must agree after a kill, too: the index forgets first, and the file `moving`
    /// says which records are then to go.
    fn take_away(&self, dead: &[Digest], is_gone: impl Fn(Digest) -> bool) -> Result<(), LibraryError> {
        let moving = self.moving()?;
        let records = self.index.write(|change| {
            let gone: Vec<Digest> = change.removed()?.into_iter().filter(|&id| is_gone(id)).collect();
            let mut records = Vec::new();
            for &id in &gone {
                records.extend(change.evidence(id)?);
            }
            self.intend(&moving, &records)?;
            gone.iter().try_for_each(|&id| change.forget(id))?;
            Ok(records)
        })?;
        self.objects.withdraw(&records)?;
        let _ = moving.set_len(0);
        dead.iter().try_for_each(|&object| self.objects.remove(object))?;
        self.objects.sweep(Duration::ZERO);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fixture, provenance};
    use super::*;
    use crate::library::{Candidate, Evidence, Finding, Provenance};

    #[test]
    fn only_what_no_living_skill_needs_is_collected_and_a_dry_run_takes_nothing() {
        let fixture = Fixture::new();
        let library = &fixture.library;
        let parent = fixture.publish("parent", 1);
        let lora = fixture.lora(2);
        let provenance = Provenance { parents: vec![parent.id], ..provenance() };
        let child = library.publish(&Candidate { provenance, ..fixture.candidate("child", 2, &lora) }).unwrap();
        let other = fixture.publish("other", 3);
        let note = |id| Evidence::new(id, Finding::Note { text: "n".into() }, "2025-01-02T03:04:05Z".parse().unwrap());
        library.attach(note(other.id)).unwrap();
        library.attach(note(child.id)).unwrap();
        for name in ["parent", "other"] {
            library.remove(&name.parse().unwrap()).unwrap();
        }
        let before = library.objects.all().unwrap().len();
        let planned = library.collect(true).unwrap();
        assert_eq!(library.objects.all().unwrap().len(), before);
        // The manifest, adapter, features and note of `other`; configuration and episodes are shared.
        assert_eq!((planned.objects, planned.kept), (4, before - 4));
        std::fs::write(library.root().join("tmp/.tmpDead"), b"half").unwrap();
        assert_eq!(library.collect(false).unwrap(), planned);
        assert_eq!(std::fs::read_dir(library.root().join("tmp")).unwrap().count(), 0);
        assert_eq!(library.collect(false).unwrap().objects, 0);

        let again = Library::open(library.root()).unwrap();
        assert!(again.generation(other.id).is_err());
        for generation in [&parent, &child] {
            assert!(again.load_adapter(generation, &fixture.base, &fixture.spec).is_ok(), "a parent is needed");
        }
        assert_eq!(again.evidence(child.id).unwrap().len(), 1);
        assert!(again.verify().unwrap().is_sound());
        assert_eq!(fixture.publish("other", 3).manifest.number, 2, "numbers are not given again");
    }
}
