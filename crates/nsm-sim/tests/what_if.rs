//! Questions about a topology.
#![allow(clippy::unwrap_used)] // a test fails like its body

use nsm_sim::{
    Topology,
    what_if::{Question, ask, grow, picture},
};

/// I4: an upgrade and a registry that is away disturb nobody.
#[test]
fn the_control_plane_may_go() {
    let topology = Topology::built_in(3, 3, 10);
    for question in [Question::Upgrade, Question::Registry] {
        let answer = ask(&topology, &question, 1).unwrap();
        assert_eq!((answer.connections, answer.disturbed, answer.lost), (10, 0, 0), "{}", answer.question);
    }
}

/// I5: those whose endpoints were on a dead node get others within seconds.
#[test]
fn a_zone_dies() {
    let answer = ask(&Topology::built_in(3, 3, 10), &Question::Zone(vec!["n3".to_owned()]), 1).unwrap();
    assert_eq!((answer.connections, answer.lost), (7, 0));
    assert!((1..7).contains(&answer.disturbed), "{answer:?}");
    assert!(answer.longest_silence_ms <= 15_000, "{answer:?}");
    let svg = picture(&answer);
    assert!(svg.starts_with("<svg") && svg.contains("#c33") && svg.ends_with("</svg>\n"));
    assert!(ask(&Topology::built_in(1, 1, 1), &Question::Zone(vec!["n9".to_owned()]), 1).unwrap_err().to_string().contains("n9"));
}

/// The work for a connection does not depend on how many there are.
#[test]
fn growth_is_linear() {
    let [small, large] = [(4, 8, 16), (16, 32, 64)].map(|(n, e, c)| grow(&Topology::built_in(n, e, c), 1).unwrap());
    assert_eq!((small.connections, large.connections), (16, 64));
    assert!(large.events < small.events * 6, "{small:?} {large:?}");
}
