//! The router's index over the library as it stands: kept in memory, else read from the home, else solved from the ledger of sums,
//! which is brought up to date by what came and went. Never sees a prompt of a user's.

use super::{features, lock};
use crate::{
    agent::{AgentError, Session},
    common::{Digest, Message, write_atomic},
    envs::{self, Query, Split},
    library::{Generation, LibraryError, RoutingFeatures, SkillName},
    router::{BACKGROUND, Index, Ledger, Newcomer, Settings, Skipped, Terms, layer},
};
use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};

/// Training items of a built-in environment that stand for the prompts of a skill that came without them.
const EXAMPLES: usize = 16;

/// An index, and what it was solved from.
pub(super) struct Current {
    key: Digest,
    index: Arc<Index>,
}

impl Session {
    /// The router over the library as it stands now.
    pub fn index(&self) -> Result<Arc<Index>, AgentError> {
        let heads = self.library.heads()?;
        let key = self.key(&heads);
        let mut kept = lock(&self.routing.current);
        if let Some(current) = kept.as_ref().filter(|current| current.key == key) {
            return Ok(current.index.clone());
        }
        let path = self.derived("routes");
        let read = fs::read(&path).ok().and_then(|bytes| Index::from_bytes(&bytes, key));
        let index = Arc::new(match read {
            Some(index) => index,
            None => {
                let index = self.followed(&heads)?.solve(Settings::default());
                // A home that cannot be written to is no reason not to route.
                let _ = write_atomic(&path, &index.to_bytes(key));
                index
            }
        });
        *kept = Some(Current { key, index: index.clone() });
        Ok(index)
    }

    /// Whether there is anything to choose from. It reads no more skills than it takes to find one.
    pub(in crate::agent) fn has_routable_skills(&self) -> Result<bool, AgentError> {
        let routable = |generation: Arc<Generation>| {
            generation.manifest.blobs.routing.is_some() && generation.manifest.base.same(&self.base.id)
        };
        Ok(self.library.heads()?.into_iter().any(|(_, id)| self.library.generation(id).is_ok_and(routable)))
    }

    /// The sums that the index over the library as it stands is solved from, with the skills that cannot be routed to, and why.
    pub fn ledger(&self) -> Result<Ledger, AgentError> {
        self.followed(&self.library.heads()?)
    }

    /// Of everything that an index depends on.
    fn key(&self, heads: &[(SkillName, Digest)]) -> Digest {
        let base = &self.base.id;
        let settings = format!("{:?} {}", Settings::default(), features::settings(&self.base));
        let fixed = [&base.digest.bytes()[..], base.tokenizer.bytes(), settings.as_bytes(), BACKGROUND.as_bytes()];
        let skills = heads.iter().flat_map(|(name, id)| [name.as_str().as_bytes(), id.bytes()]);
        Digest::of_parts(fixed.into_iter().chain(skills))
    }

    /// A file of what can be computed again for this library over this base.
    fn derived(&self, kind: &str) -> PathBuf {
        let library = self.library.root().to_string_lossy().into_owned();
        let settings = features::settings(&self.base);
        let of = Digest::of_parts([library.as_bytes(), self.base.id.digest.bytes(), settings.as_bytes()]);
        self.home.derived().join(format!("{kind}-{}.bin", of.short()))
    }

    /// The ledger of what the library holds: the one in the home, followed up, or a new one.
    fn followed(&self, heads: &[(SkillName, Digest)]) -> Result<Ledger, AgentError> {
        let path = self.derived("ledger");
        let background = features::background(&self.base, &self.home)?;
        let read = fs::read(&path).ok().map(|bytes| Ledger::from_bytes(&bytes, &self.base.id, &background));
        let followed = match read.transpose()?.flatten() {
            Some(mut ledger) => self.drop_gone(&mut ledger, heads).then_some(ledger),
            None => None,
        };
        let mut ledger = match followed {
            Some(ledger) => ledger,
            None => Ledger::new(self.base.id.clone(), background)?,
        };
        let mut changed = false;
        for (name, id) in heads.iter().filter(|(name, id)| ledger.generation(name) != Some(*id)).collect::<Vec<_>>() {
            changed = true;
            if let Err(why) = self.enter(&mut ledger, name, *id) {
                ledger.skip(name.clone(), Skipped { generation: *id, why });
            }
        }
        if changed || !path.exists() {
            let _ = fs::create_dir_all(self.home.derived()).and_then(|()| write_atomic(&path, &ledger.to_bytes()));
        }
        Ok(ledger)
    }

    /// Takes out of the ledger what the library no longer stands for. No if that cannot be done exactly, for want of what a skill
    /// came with.
    fn drop_gone(&self, ledger: &mut Ledger, heads: &[(SkillName, Digest)]) -> bool {
        let wanted: BTreeMap<&SkillName, Digest> = heads.iter().map(|(name, id)| (name, *id)).collect();
        let gone = |(name, id): &(SkillName, Digest)| wanted.get(name) != Some(id);
        let routed: Vec<_> = ledger.skills().map(|(name, id)| (name.clone(), id)).filter(gone).collect();
        let skipped: Vec<_> = ledger.skipped().map(|(name, skipped)| (name.clone(), skipped.generation)).collect();
        skipped.into_iter().filter(gone).for_each(|(name, _)| ledger.unskip(&name));
        routed.into_iter().all(|(name, id)| {
            let features = self.library.generation(id).ok().and_then(|generation| self.features(&generation).ok());
            features.is_some_and(|features| ledger.remove(&name, &features))
        })
    }

    /// Adds a skill, or says why it cannot be routed to.
    fn enter(&self, ledger: &mut Ledger, name: &SkillName, id: Digest) -> Result<(), String> {
        let generation = self.library.generation(id).map_err(|error| error.to_string())?;
        let base = &generation.manifest.base;
        if !base.same(&self.base.id) {
            return Err(format!("it belongs to {}", base.name));
        }
        let features = self.features(&generation)?;
        let provenance = &generation.manifest.provenance;
        let measured = provenance.test.or(provenance.validation);
        let newcomer = Newcomer {
            generation: id,
            features: &features,
            words: &Terms::of(&document(&generation, &features)),
            promise: measured.map_or(0.5, |measured| measured.after.strict),
        };
        ledger.add(name.clone(), newcomer).map_err(|error| error.to_string())
    }

    /// What a skill is routed by. One whose features were taken after another layer than this version routes by gets new ones from
    /// what it was trained on.
    fn features(&self, generation: &Generation) -> Result<RoutingFeatures, String> {
        let words = |error: LibraryError| error.to_string();
        let features = self.library.routing_features(generation).map_err(words)?.ok_or("it came without prompts")?;
        if features.layer == layer(self.base.spec()) {
            return Ok(features);
        }
        let mut prompts = features::prompts_of(&self.library.episodes(generation).map_err(words)?);
        if prompts.is_empty() {
            // Revealed answers leave no episodes, but the features name the prompts that they are of.
            let said = features.prompts.iter().map(|text| self.base.prompt_ids(&[Message::user(text.as_str())]));
            prompts = said.collect::<Result<_, _>>().map_err(|error: AgentError| error.to_string())?;
        }
        if prompts.is_empty() {
            return Ok(features);
        }
        let compute = || features::of_tokens(&self.base, &prompts);
        let anew = features::kept(&self.base, &self.home, "skill", generation.id.bytes(), compute);
        anew.map(|anew| anew.of_prompts(features.prompts)).map_err(|error| error.to_string())
    }
}

/// What is known of a skill in words: its name, what it is for, and prompts that it was learned on.
pub(in crate::agent) fn document(generation: &Generation, features: &RoutingFeatures) -> String {
    let manifest = &generation.manifest;
    let env = manifest.provenance.env.as_ref();
    let mut texts = vec![manifest.name.to_string(), manifest.description.clone()];
    texts.extend(env.map(|env| env.name.clone()));
    match features.prompts.is_empty() {
        false => texts.extend(features.prompts.iter().cloned()),
        true => texts.extend(env.and_then(|env| examples(&env.name, env.level.as_deref()?)).unwrap_or_default()),
    }
    texts.join("\n")
}

/// First prompts of a built-in environment's training items.
fn examples(name: &str, level: &str) -> Option<Vec<String>> {
    let env = envs::find(name).ok()?;
    let query = Query::new(Split::Train, level.parse().ok()?);
    let items = envs::items(&*env, &query, crate::common::Seed::new(0).purpose("routing prompts"), EXAMPLES).ok()?;
    let said = |item: &envs::Item| Some(env.start(item).ok()?.observe().last()?.content.clone());
    items.iter().map(said).collect()
}
