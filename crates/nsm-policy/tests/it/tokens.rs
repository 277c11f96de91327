//! What a process with an identity may try with tokens, and what becomes of it.

use crate::world::{Identity, question, seconds};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use nsm_api::{Kind, limits::MAX_TOKEN_BYTES};
use nsm_policy::{Hop, PolicySet};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.", part(header), part(claims))
}

/// A client, a manager, a forwarder; the question is the forwarder's about the manager's Request.
struct Path {
    client: Identity,
    manager: Identity,
    forwarder: Identity,
}

impl Path {
    fn new() -> Path {
        Path { client: Identity::new("client"), manager: Identity::new("manager"), forwarder: Identity::new("forwarder") }
    }
    fn tokens(&self) -> Vec<String> {
        vec![self.client.token(&self.manager), self.manager.token(&self.forwarder), self.forwarder.token(&self.manager)]
    }
    fn ask(&self, tokens: &[String]) -> nsm_api::Result<()> {
        PolicySet::server().check("connection \"x\"", &question(2, tokens, Some(&self.manager.certificate)))
    }
}

#[test]
fn an_honest_path_passes_on_both_sides() {
    let path = Path::new();
    path.ask(&path.tokens()).unwrap();
    let client = PolicySet::client();
    client.check("x", &question(0, &path.tokens(), Some(&path.manager.certificate))).unwrap();
    let wrong = client.check("x", &question(0, &path.tokens(), Some(&path.forwarder.certificate))).unwrap_err();
    assert!(wrong.reason.contains("next_token_signed"), "{wrong}");
}

#[test]
fn forged_tokens_of_the_caller_are_refused() {
    let path = Path::new();
    let now = seconds(SystemTime::now());
    let honest = json!({"sub": path.manager.id, "aud": [path.forwarder.id], "exp": now + 600});
    let with = |key: &str, value: Value| {
        let mut claims = honest.clone();
        claims[key] = value;
        path.manager.sign(&claims)
    };
    let without = |key: &str| {
        let mut claims = honest.clone();
        claims.as_object_mut().unwrap().remove(key);
        path.manager.sign(&claims)
    };
    let good = path.manager.sign(&honest);
    let (head, tail) = good.rsplit_once('.').unwrap();
    let cases = [
        ("alg none", unsigned(&json!({"alg": "none"}), &honest)),
        ("no alg", unsigned(&json!({}), &honest)),
        ("HS256", unsigned(&json!({"alg": "HS256", "typ": "JWT"}), &honest) + tail),
        ("ES384", unsigned(&json!({"alg": "ES384", "typ": "JWT"}), &honest) + tail),
        ("somebody else's key", path.client.sign(&honest)),
        ("no signature", format!("{head}.")),
        ("signature of another token", format!("{head}.{}", with("exp", json!(now + 601)).rsplit_once('.').unwrap().1)),
        ("padded", format!("{good}=")),
        ("bad base64", good.replacen("ey", "e!", 1)),
        ("two parts", head.to_owned()),
        ("four parts", format!("{good}.x")),
        ("empty", String::new()),
        ("nested", unsigned(&json!({"alg": "ES256", "cty": "JWT"}), &honest) + tail),
        ("huge", with("padding", "x".repeat(MAX_TOKEN_BYTES).into())),
        ("replay after its end", with("exp", json!(now - 1))),
        ("end as text", with("exp", json!("9999999999"))),
        ("end as list", with("exp", json!([now + 600]))),
        ("end as object", with("exp", json!({"at": now + 600}))),
        ("end true", with("exp", json!(true))),
        ("end null", with("exp", Value::Null)),
        ("no end", without("exp")),
        ("not good yet", with("nbf", json!(now + 60))),
        ("another's name", with("sub", json!(path.client.id))),
        ("other domain", with("sub", json!("spiffe://other/manager"))),
        ("name with dots", with("sub", json!("spiffe://d/../d/manager"))),
        ("name in upper case", with("sub", json!("SPIFFE://D/MANAGER"))),
        ("name that looks alike", with("sub", json!("spiffe://d/m\u{0430}nager"))),
        ("name as list", with("sub", json!([path.manager.id]))),
        ("no name", without("sub")),
        ("for somebody else", with("aud", json!([path.client.id]))),
        ("for two", with("aud", json!([path.forwarder.id, path.client.id]))),
        ("for the same twice", with("aud", json!([path.forwarder.id, path.forwarder.id]))),
        ("for text", with("aud", json!(path.forwarder.id))),
        ("for an object", with("aud", json!({"a": path.forwarder.id}))),
        ("for nobody", without("aud")),
        ("replay of another hop's", path.tokens()[0].clone()),
    ];
    for (what, token) in cases {
        let mut tokens = path.tokens();
        tokens[1] = token;
        let error = path.ask(&tokens).expect_err(what);
        assert!(error.kind == Kind::Denied && error.to_string().contains("no sufficient privileges"), "{what}: {error}");
    }
}

#[test]
fn duplicate_keys_count_once_and_the_same_everywhere() {
    let path = Path::new();
    let claims = format!(r#"{{"sub":"spiffe://d/client","sub":"{}","aud":["{}"],"exp":9999999999}}"#, path.manager.id, path.forwarder.id);
    let forged = format!("{}.{}.AAAA", URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256"}"#), URL_SAFE_NO_PAD.encode(claims));
    assert_eq!(nsm_policy::jwt::decode(&forged).unwrap().claims["sub"], path.manager.id);
}

#[test]
fn forged_segments_before_the_caller_are_refused() {
    let path = Path::new();
    let mut missing = path.tokens();
    missing.remove(0);
    let mut extra = path.tokens();
    extra.insert(1, path.client.token(&path.manager));
    let mut long = path.tokens();
    long.resize(40, path.client.token(&path.manager));
    let mut unsigned_first = path.tokens();
    unsigned_first[0] =
        unsigned(&json!({"alg": "none"}), &json!({"sub": path.client.id, "aud": [path.manager.id], "exp": 9_999_999_999_u64}));
    for (what, tokens) in [("missing", missing), ("extra", extra), ("long", long), ("unsigned", unsigned_first)] {
        assert_eq!(path.ask(&tokens).expect_err(what).kind, Kind::Denied, "{what}");
    }
}

#[test]
fn a_token_must_last_as_long_as_its_sender_says() {
    let path = Path::new();
    let tokens = path.tokens();
    let ask = |named: Duration| {
        let mut question = question(2, &tokens, Some(&path.manager.certificate));
        question.segments[1] = Hop { expires: Some(SystemTime::now() + named), ..question.segments[1] };
        PolicySet::server().check("x", &question)
    };
    ask(Duration::from_secs(600)).unwrap();
    ask(Duration::from_secs(10)).unwrap();
    assert!(ask(Duration::from_secs(604)).unwrap_err().reason.contains("ends before"));
}

#[test]
fn a_server_without_peer_refuses() {
    let path = Path::new();
    let error = PolicySet::server().check("x", &question(2, &path.tokens(), None)).unwrap_err();
    assert!(error.reason.contains("no certificate"), "{error}");
}
