//! The simulation of cells, small.

#[path = "../../examples/cells.rs"]
#[expect(dead_code, unreachable_pub, reason = "its main is for the command line")]
mod simulation;

use simulation::{Placement, Plan, after_adding_one, report, simulate};

fn small() -> Plan {
    Plan { sessions: 200_000, cells: 8, sidecars: 400, tenants: 50, ..Plan::default() }
}

#[test]
fn the_same_seed_gives_the_same_table() {
    assert_eq!(report(&small()), report(&small()));
    assert_ne!(report(&small()), report(&Plan { seed: 2, ..small() }));
}

#[test]
fn every_session_has_a_cell() {
    let by_subject = simulate(&small(), Placement::BySubject);
    assert_eq!(by_subject.sessions.iter().sum::<u64>(), small().sessions);
    // A subject's sessions go together, and its slot with it, so the cells are not quite alike.
    let fullest = by_subject.sessions.iter().max().copied().unwrap_or(0);
    assert!((25_001..28_000).contains(&fullest), "{fullest}");
    let by_tenant = simulate(&small(), Placement::ByTenant);
    let placed = by_tenant.sessions.iter().sum::<u64>();
    // Shares are rounded down, by less than one for each tenant.
    assert!((small().sessions - 50..=small().sessions).contains(&placed), "{placed}");
}

#[test]
fn a_sidecar_of_one_tenant_follows_one_cell() {
    let by_subject = simulate(&small(), Placement::BySubject);
    assert!((by_subject.cells_followed - 8.0).abs() < 1e-9);
    assert!((by_subject.hit_sidecars - 1.0).abs() < 1e-9);
    let by_tenant = simulate(&small(), Placement::ByTenant);
    // Half of them follow all eight, half follow one.
    assert!((by_tenant.cells_followed - 4.5).abs() < 1e-9);
    assert!((0.5..1.0).contains(&by_tenant.hit_sidecars));
}

#[test]
fn more_cells_carry_less_each() {
    let rotations = |cells| simulate(&Plan { cells, ..small() }, Placement::BySubject).rotations;
    assert!(rotations(16) < rotations(8) * 0.6);
}

#[test]
fn a_new_cell_fills_as_sessions_end() {
    let fullest = |days| after_adding_one(&small(), days);
    // At first the eight hold what nine will.
    assert!((fullest(0.0) - 9.0 / 8.0).abs() < 1e-9);
    assert!(fullest(5.0) < fullest(0.0) && fullest(30.0) < fullest(5.0));
    assert!((fullest(1_000.0) - 1.0).abs() < 1e-9);
}
