//! The default policies as code and as Rego decide alike, on every shape of claim.

use crate::world::{Identity, question, seconds};
use nsm_policy::{Builtin, Facts, Monitored, Question, Resource, rego::Compiled};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Map, Value, json};
use std::time::SystemTime;

const CASES: u32 = 3000;

fn stock() -> Vec<(Builtin, Compiled)> {
    let source = |builtin| match builtin {
        Builtin::TokensValid => include_str!("stock/tokens_valid.rego"),
        Builtin::TokensExpired => include_str!("stock/tokens_expired.rego"),
        Builtin::TokensChained => include_str!("stock/tokens_chained.rego"),
        Builtin::PrevTokenSigned => include_str!("stock/prev_token_signed.rego"),
        Builtin::NextTokenSigned => include_str!("stock/next_token_signed.rego"),
        Builtin::ClientAllowed => include_str!("stock/client_allowed.rego"),
        Builtin::ServiceConnection => include_str!("stock/service_connection.rego"),
    };
    Builtin::ALL.map(|builtin| (builtin, Compiled::new(builtin.path(), source(builtin)).unwrap())).into()
}

/// Both decisions about one question, for every policy; how many said yes.
fn agree(stock: &[(Builtin, Compiled)], question: &Question<'_>) -> Result<[u32; 7], TestCaseError> {
    let (facts, input) = (Facts::new(question), question.to_json());
    let mut yes = [0; 7];
    for (at, (builtin, compiled)) in stock.iter().enumerate() {
        let (native, rego) = (builtin.decide(&facts), compiled.decide(&input));
        prop_assert_eq!(native.is_ok(), rego.is_ok(), "{:?}: {:?} {:?} {}", builtin, native, rego, input);
        yes[at] = u32::from(native.is_ok());
    }
    Ok(yes)
}

/// One segment: how its token is made, and the shape of each claim. 0 is what honest processes send.
type Shape = (u8, u8, u8, u8);

fn shape() -> impl Strategy<Value = Shape> {
    let mostly = |others: u8| prop_oneof![6 => Just(0), 4 => 0..others];
    (mostly(6), mostly(12), mostly(9), mostly(13))
}

fn set(claims: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        claims.insert(key.to_owned(), value);
    }
}

fn claims(at: usize, (_, exp, sub, aud): Shape) -> Value {
    let (now, own, next) = (seconds(SystemTime::now()), format!("spiffe://d/{at}"), format!("spiffe://d/{}", at + 1));
    let mut claims = Map::new();
    let other = |shape| match shape {
        0 => Some(json!(5)),
        1 => Some(json!(true)),
        2 => Some(Value::Null),
        3 => Some(json!([])),
        4 => Some(json!({})),
        _ => None,
    };
    let end = match exp {
        0 => Some(json!(now + 600)),
        1 => Some(json!(now - 600)),
        2 => Some(json!(now as f64 + 600.5)),
        3 => Some(json!("soon")),
        4 => Some(json!(-1)),
        5 => Some(json!(1e300)),
        shape => other(shape - 6),
    };
    let subject = match sub {
        0 => Some(json!(own)),
        1 => Some(json!("spiffe://d/other")),
        2 => Some(json!(5.0)),
        shape => other(shape - 3),
    };
    let audience = match aud {
        0 => Some(json!([next])),
        1 => Some(json!(next)),
        2 => Some(json!([next, "spiffe://d/other"])),
        3 => Some(json!([next, next])),
        4 => Some(json!({ "a": next })),
        5 => Some(json!([5])),
        6 => Some(json!([null])),
        shape => other(shape - 7),
    };
    set(&mut claims, "exp", end);
    set(&mut claims, "sub", subject);
    set(&mut claims, "aud", audience);
    claims.into()
}

fn token(at: usize, shape: Shape, peer: &Identity, stranger: &Identity) -> String {
    let claims = claims(at, shape);
    match shape.0 {
        0 => peer.sign(&claims),
        1 => stranger.sign(&claims),
        2 => String::new(),
        3 => "no token".to_owned(),
        4 => format!("{}.", peer.sign(&claims)),
        _ => {
            let token = peer.sign(&claims);
            token[..token.rfind('.').unwrap() + 1].to_owned()
        }
    }
}

fn runner() -> TestRunner {
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]))
}

#[test]
fn paths_are_judged_alike() {
    let (stock, peer, stranger) = (stock(), Identity::new("peer"), Identity::new("stranger"));
    let yes = std::cell::RefCell::new([0; 7]);
    let cases = (vec(shape(), 0..=6), 0_u32..8, 0_u8..6);
    let result = runner().run(&cases, |(shapes, index, certificate)| {
        let tokens: Vec<String> = shapes.iter().enumerate().map(|(at, shape)| token(at, *shape, &peer, &stranger)).collect();
        let certificate = match certificate {
            0 => None,
            1 => Some(&stranger.certificate[..]),
            2 => Some(&peer.certificate[..20]),
            _ => Some(&peer.certificate[..]),
        };
        let more = agree(&stock, &question(index, &tokens, certificate))?;
        yes.borrow_mut().iter_mut().zip(more).for_each(|(sum, one)| *sum += one);
        Ok(())
    });
    result.unwrap();
    // The first five must have had something to agree to.
    assert!(yes.borrow()[..5].iter().all(|yes| *yes > CASES / 100), "{yes:?}");
}

#[test]
fn names_and_monitors_are_judged_alike() {
    let stock = stock();
    let names = ["a", "b", "c", ""].map(str::to_owned);
    let some = || vec(proptest::sample::select(names.to_vec()), 0..3);
    let text = || proptest::sample::select(names.to_vec());
    let result = runner().run(&(text(), text(), proptest::option::of(some()), some(), some()), |(name, who, ids, asked, own)| {
        let resource = Resource { name: &name, claimant: &who, registered: ids.as_deref() };
        let base = question(0, &[], None);
        agree(&stock, &Question { resource: Some(resource), ..base.clone() })?;
        let monitored = Monitored { peer: &who, asked: &asked, own: &own };
        agree(&stock, &Question { monitored: Some(monitored), ..base })?;
        Ok(())
    });
    result.unwrap();
}
