//! What is done to records that are to go elsewhere: from then on no engine opens them, and one that has
//! them open writes nothing any more, as each of its transactions compares `!meta`.

use std::time::Duration;

use tokio::time::Instant;

use super::capture::{Capturing, EtcdCapture};
use super::client::{CallError, Client};
use super::keys::Keys;
use super::meta::{Meta, Standing, write};
use super::raft;
use super::request::range_of_one;
use super::settings::EtcdSettings;
use crate::domain::ids::LogId;
use crate::store::OpenError;
use crate::store::backup::{Capture, CaptureError};
use crate::store::moving::{Mark, Source};

/// How long one of these steps may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Records that no engine has open.
pub struct EtcdRecords {
    settings: EtcdSettings,
    log_id: LogId,
    /// When `!meta` was last changed, and in which cluster that is.
    changed: i64,
    cluster_id: u64,
    was_moved: bool,
}

impl EtcdRecords {
    /// Those of a store, whether or not servers use it: to be looked at.
    ///
    /// # Errors
    /// As for [`EtcdEngine::open`](super::EtcdEngine::open).
    pub async fn look(settings: EtcdSettings) -> Result<Self, OpenError> {
        let (meta, changed) = find(&settings).await?;
        if meta.standing == Standing::Restoring {
            return Err(OpenError::Unfinished { path: settings.place() });
        }
        Ok(Self::of(settings, &meta, changed, false))
    }

    /// Takes them from whoever uses them: no server opens them any more.
    ///
    /// # Errors
    /// As for [`EtcdEngine::open`](super::EtcdEngine::open).
    pub async fn take(settings: EtcdSettings) -> Result<Self, OpenError> {
        let (meta, changed, was_moved) = change(&settings, Standing::Moved).await?;
        Ok(Self::of(settings, &meta, changed, was_moved))
    }

    const fn of(settings: EtcdSettings, meta: &Meta, changed: i64, was_moved: bool) -> Self {
        let Meta { log_id, cluster_id, .. } = *meta;
        Self { settings, log_id, changed, cluster_id, was_moved }
    }

    /// Which records these are, in the state that they stay in until they are given back.
    pub fn source(&self) -> Source {
        let changed = u64::try_from(self.changed).unwrap_or_default();
        Source { log_id: self.log_id, changed, print: self.cluster_id.into() }
    }

    /// Whether they had been taken before.
    pub const fn was_moved(&self) -> bool {
        self.was_moved
    }

    /// Lets servers open what was taken.
    ///
    /// # Errors
    /// As for [`EtcdEngine::open`](super::EtcdEngine::open).
    pub async fn give_back(settings: EtcdSettings) -> Result<(), OpenError> {
        change(&settings, Standing::Whole).await.map(drop)
    }

    /// Begins to read them.
    ///
    /// # Errors
    /// See [`CaptureError`].
    pub fn capture(&self) -> Result<Box<dyn Capture>, CaptureError> {
        let capture = EtcdCapture::begin(&self.settings, self.log_id, &Capturing::default())?;
        Ok(Box::new(capture))
    }

    /// Begins to read what comes behind a mark.
    ///
    /// # Errors
    /// See [`CaptureError`].
    pub fn capture_from(&self, mark: &Mark) -> Result<Box<dyn Capture>, CaptureError> {
        if mark.place.is_empty() {
            return self.capture();
        }
        let digest = mark.progress.digest;
        Ok(Box::new(EtcdCapture::go_on(&self.settings, self.log_id, &mark.place, digest)?))
    }
}

async fn find(settings: &EtcdSettings) -> Result<(Meta, i64), OpenError> {
    let (client, keys) = (Client::new(settings, 0), Keys::new(&settings.prefix));
    let own = vec![range_of_one(keys.meta())];
    let asked = client.ranges(own, Instant::now() + PATIENCE).await;
    let (found, _) = asked.map_err(|error| away(settings, error))?;
    let place = settings.place();
    let Some(kv) = found.first().and_then(|found| found.kvs.first()) else {
        let what = "there is no store of avouch".to_owned();
        return Err(OpenError::Unreachable { place, what });
    };
    let replaced = |what: String| OpenError::Replaced { place: settings.place(), what };
    let meta = Meta::decode(&kv.value)
        .ok_or_else(|| replaced("its own record cannot be read".to_owned()))?;
    if meta.schema != settings.schema_version {
        let (found, expected) = (meta.schema, settings.schema_version);
        return Err(OpenError::Schema { path: place, found, expected });
    }
    if meta.cluster_id != client.cluster_id() {
        let (was, is) = (meta.cluster_id, client.cluster_id());
        return Err(replaced(format!(
            "it was begun in cluster {was:x}, and this is cluster {is:x}"
        )));
    }
    if meta.standing == Standing::WentBack {
        return Err(super::meta::went_back(settings));
    }
    if meta.standing == Standing::Whole {
        let proved = raft::prove(&client, &keys, None, Instant::now() + PATIENCE).await;
        proved.map_err(|error| away(settings, error))?;
    }
    Ok((meta, kv.mod_revision))
}

/// Gives the record, when it was last changed, and whether it was so before.
async fn change(settings: &EtcdSettings, to: Standing) -> Result<(Meta, i64, bool), OpenError> {
    let (client, keys) = (Client::new(settings, 0), Keys::new(&settings.prefix));
    loop {
        let (meta, known) = find(settings).await?;
        match meta.standing {
            Standing::Whole | Standing::Moved => {}
            Standing::Restoring => return Err(OpenError::Unfinished { path: settings.place() }),
            Standing::Adopting => return Err(super::meta::half_adopted(settings)),
            Standing::WentBack => return Err(super::meta::went_back(settings)),
        }
        let wanted = Meta { standing: to, ..meta };
        if meta.standing == to {
            return Ok((meta, known, true));
        }
        let written = write(&client, &keys, &wanted, known, Instant::now() + PATIENCE).await;
        if let Some(changed) = written.map_err(|error| away(settings, error))? {
            return Ok((wanted, changed, false));
        }
    }
}

fn away(settings: &EtcdSettings, error: CallError) -> OpenError {
    super::meta::not_opened(settings.place(), error)
}
