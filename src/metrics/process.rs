//! The process itself, by the names that every Prometheus client library gives them. Read from
//! `/proc`; where there is none the values stay 0.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use super::register::Register;
use super::{Level64, Seconds, as_float, as_gauge};

/// What is known of the process.
#[derive(Clone, Debug)]
pub(super) struct Process {
    cpu: Counter<f64, AtomicU64>,
    resident: Level64,
    virtual_memory: Level64,
    open_fds: Level64,
    max_fds: Level64,
    threads: Level64,
    start: Seconds,
}

impl Process {
    pub(super) fn register(root: &mut Registry) -> Self {
        let mut r = Register::foreign(root, "process");
        Self {
            cpu: r.seconds("cpu", "CPU time of the process, user and system"),
            resident: r.bytes("resident_memory", "Memory that the process holds"),
            virtual_memory: r.bytes("virtual_memory", "Address space of the process"),
            open_fds: r.number("open_fds", "Open file descriptors"),
            max_fds: r.number("max_fds", "The most file descriptors"),
            threads: r.number("threads", "Threads of the process"),
            start: r.seconds("start_time", "When the process began, since the epoch"),
        }
    }

    /// Reads everything again. What cannot be read keeps its value.
    pub(super) fn read(&self) {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        if let Some(stat) = Stat::parse(&stat) {
            let per_second = as_float(rustix::param::clock_ticks_per_second().max(1));
            self.cpu
                .inner()
                .store((as_float(stat.cpu_ticks) / per_second).to_bits(), Ordering::Relaxed);
            let page = rustix::param::page_size() as u64;
            self.resident.set(as_gauge(stat.resident_pages.saturating_mul(page)));
            self.virtual_memory.set(as_gauge(stat.virtual_bytes));
            self.threads.set(as_gauge(stat.threads));
            let system = fs::read_to_string("/proc/stat").unwrap_or_default();
            let boot = system.lines().find_map(|line| line.strip_prefix("btime "));
            if let Some(boot) = boot.and_then(|seconds| seconds.trim().parse::<u64>().ok()) {
                self.start.set(as_float(boot) + as_float(stat.start_ticks) / per_second);
            }
        }
        if let Ok(fds) = fs::read_dir("/proc/self/fd") {
            // One of them is the directory that is being read.
            self.open_fds.set(as_gauge(fds.count().saturating_sub(1) as u64));
        }
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let most = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        if let Some(most) = most.and_then(|rest| rest.split_whitespace().next()?.parse().ok()) {
            self.max_fds.set(as_gauge(most));
        }
    }
}

/// Fields of `/proc/self/stat`, see proc_pid_stat(5).
#[derive(Debug, Eq, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name of the program is in parentheses and may hold anything, these included.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        // The first of these is number 3 in the manual.
        let number = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: number(14)?.saturating_add(number(15)?),
            threads: number(20)?,
            start_ticks: number(22)?,
            virtual_bytes: number(23)?,
            resident_pages: number(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_fields_of_the_manual_whatever_the_program_is_called() {
        let text = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 110 12 13 14 15 16 9 18 1900 2000 21 22";
        let stat = Stat {
            cpu_ticks: 122,
            threads: 9,
            start_ticks: 1900,
            virtual_bytes: 2000,
            resident_pages: 21,
        };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("7 (a) S 1 2"), None);
        assert_eq!(Stat::parse(""), None);
    }
}
