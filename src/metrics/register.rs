//! Recorders are made and registered at once: each with its name, its unit and what it counts.

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// A registry under a prefix.
pub(super) struct Register<'a>(&'a mut Registry);

impl<'a> Register<'a> {
    /// Everything of ours is under `avouch_`; the first is the program itself.
    pub(super) fn avouch(root: &'a mut Registry) -> Self {
        let registry = root.sub_registry_with_prefix("avouch");
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The program", build);
        Self(registry)
    }

    /// What is under a prefix alone.
    pub(super) fn under(self, prefix: &str) -> Self {
        Self(self.0.sub_registry_with_prefix(prefix))
    }

    /// What no library of ours named.
    pub(super) fn foreign(root: &'a mut Registry, prefix: &str) -> Self {
        Self(root.sub_registry_with_prefix(prefix))
    }

    /// A number of things.
    pub(super) fn number<M: Recorder + Default>(&mut self, name: &str, help: &str) -> M {
        self.made(name, help, M::default())
    }

    /// Seconds. The unit ends the name.
    pub(super) fn seconds<M: Recorder + Default>(&mut self, name: &str, help: &str) -> M {
        self.made_in_seconds(name, help, M::default())
    }

    /// Bytes. The unit ends the name.
    pub(super) fn bytes<M: Recorder + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register_with_unit(name, help, Unit::Bytes, metric.clone());
        metric
    }

    /// A number of things, in a recorder that does not make itself.
    pub(super) fn made<M: Recorder>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    /// Seconds, in a recorder that does not make itself.
    pub(super) fn made_in_seconds<M: Recorder>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register_with_unit(name, help, Unit::Seconds, metric.clone());
        metric
    }
}

/// What may be registered: clones share the counts.
pub(super) trait Recorder:
    EncodeMetric + Clone + std::fmt::Debug + Send + Sync + 'static
{
}

impl<M: EncodeMetric + Clone + std::fmt::Debug + Send + Sync + 'static> Recorder for M {}
