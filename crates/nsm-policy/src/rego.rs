//! Policy files that users write in Rego, by the older syntax (v0) that the mesh has always had: package `nsm`, and a
//! rule `valid` that must be `true`.
//!
//! Anything else refuses: a rule without value or with another, an error, a builtin that fails, or more than
//! [`TIME_LIMIT`]. Two functions on tokens are added to those of the engine, `io.jwt.decode` and
//! `io.jwt.verify_es256`; on input that they cannot read they have no value, as elsewhere. Files that call other
//! functions on tokens, or ask the network or the machine, are refused when they are loaded.

use crate::{
    Verdict,
    jwt::{self, Leaf},
};
use nsm_api::{Error, Result};
use regex::Regex;
use regorus::{CompiledPolicy, Engine, Value, utils::limits};
use serde_json::json;
use std::{
    num::NonZeroU32,
    path::Path,
    sync::{Arc, LazyLock, Once},
    time::Duration,
};

/// Longest evaluation of one file. A normal one takes less than a hundredth of it.
pub const TIME_LIMIT: Duration = Duration::from_millis(50);
/// Steps between two looks at the clock.
const STEPS_PER_CHECK: NonZeroU32 = NonZeroU32::new(64).expect("64 is not zero");
/// What decides.
const RULE: &str = "data.nsm.valid";
/// Name, number of arguments, and what it does.
type Function = (&'static str, u8, fn(Vec<Value>) -> Value);
/// Functions on tokens that files may call.
const FUNCTIONS: [Function; 2] = [("io.jwt.decode", 1, decode), ("io.jwt.verify_es256", 2, verify_es256)];
/// What files may not call: everything else on tokens, and whatever looks outside of its input.
const REFUSED: [&str; 5] = ["io.", "http.", "net.", "opa.", "rand."];

/// One policy file, ready to be asked by any number of threads.
#[derive(Clone, Debug)]
pub struct Compiled {
    name: Arc<str>,
    policy: CompiledPolicy,
}

impl Compiled {
    /// Reads the text of the file `name`.
    pub fn new(name: &str, source: &str) -> Result<Compiled> {
        bound_time();
        let fail = |reason: String| Error::invalid(format!("policy {name}"), reason, "correct the file");
        if let Some(function) = refused_function(source) {
            return Err(fail(format!("calls {function}, which policies cannot use here (of io.jwt only decode and verify_es256)")));
        }
        let policy = compile(name, source).map_err(|error| fail(format!("is no policy with a rule `valid`: {error:#}")))?;
        Ok(Compiled { name: name.into(), policy })
    }
    /// The file.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Its decision about this input.
    pub fn decide(&self, input: &serde_json::Value) -> Verdict {
        match self.policy.eval_with_input(Value::from(input.clone())) {
            Ok(Value::Bool(true)) => Ok(()),
            Ok(Value::Bool(false) | Value::Undefined) => Err("its rule `valid` is not true".to_owned()),
            Ok(other) => Err(format!("its rule `valid` is {other}, which is neither true nor false")),
            Err(error) => Err(format!("it failed: {error:#}")),
        }
    }
}

/// A compiled policy takes its limit from the process, not from the engine that compiled it.
fn bound_time() {
    static ONCE: Once = Once::new();
    let limit = limits::ExecutionTimerConfig { limit: TIME_LIMIT, check_interval: STEPS_PER_CHECK };
    ONCE.call_once(|| limits::set_fallback_execution_timer_config(Some(limit)));
}

fn compile(name: &str, source: &str) -> std::result::Result<CompiledPolicy, Box<dyn std::error::Error + Send + Sync>> {
    let mut engine = Engine::new();
    engine.set_rego_v0(true);
    engine.set_strict_builtin_errors(false);
    for (path, arguments, function) in FUNCTIONS {
        engine.add_extension(path.to_owned(), arguments, Box::new(move |arguments: Vec<Value>| Ok(function(arguments))))?;
    }
    let package = engine.add_policy(name.to_owned(), source.to_owned())?;
    if package != "data.nsm" {
        return Err(format!("its package is {:?}, not nsm", package.trim_start_matches("data.")).into());
    }
    Ok(engine.compile_with_entrypoint(&RULE.into())?)
}

/// A call that this process does not allow to policies.
fn refused_function(source: &str) -> Option<String> {
    static NO_CODE: LazyLock<Regex> = LazyLock::new(|| regex(r#""(?:[^"\\\n]|\\.)*"|`[^`]*`|#[^\n]*"#));
    static CALL: LazyLock<Regex> = LazyLock::new(|| regex(r"[A-Za-z_][A-Za-z0-9_]*(?:\s*\.\s*[A-Za-z_][A-Za-z0-9_]*)+\s*\("));
    let code = NO_CODE.replace_all(source, " ");
    let names = CALL.find_iter(&code).map(|call| call.as_str().replace(|c: char| c.is_whitespace() || c == '(', ""));
    let known = |name: &String| FUNCTIONS.iter().any(|(function, ..)| function == name);
    names.into_iter().find(|name| !known(name) && REFUSED.iter().any(|prefix| name.starts_with(prefix)))
}

fn regex(text: &str) -> Regex {
    Regex::new(text).expect("a constant expression is well-formed")
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// `[header, claims, signature in hexadecimal digits]`
fn decode(arguments: Vec<Value>) -> Value {
    let Some(token) = arguments.first().and_then(text).and_then(jwt::decode) else { return Value::Undefined };
    let signature: String = token.signature.iter().map(|byte| format!("{byte:02x}")).collect();
    Value::from(json!([token.header, token.claims, signature]))
}

/// Of a token and a certificate, or public key, in PEM.
fn verify_es256(arguments: Vec<Value>) -> Value {
    let [token, certificate] = &arguments[..] else { return Value::Undefined };
    let verified = text(certificate).and_then(Leaf::from_pem).zip(text(token)).and_then(|(leaf, token)| leaf.signed(token));
    verified.map_or(Value::Undefined, Value::from)
}

/// The text of a policy file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<String> {
    let fail = |reason: String| Error::invalid(format!("policy {}", path.display()), reason, "let this user read a small text file there");
    let size = path.metadata().map_err(|error| fail(error.to_string()))?.len();
    if size > limit {
        return Err(fail(format!("has {size} bytes, the limit is {limit}")));
    }
    std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(source: &str) -> Verdict {
        Compiled::new("x.rego", &format!("package nsm\n{source}")).unwrap().decide(&json!({"a": "b"}))
    }

    #[test]
    fn only_true_is_yes() {
        assert_eq!(decide("valid = true"), Ok(()));
        assert_eq!(decide("default valid = false\nvalid { input.a == \"b\" }"), Ok(()));
        for no in [
            "valid = false",
            "valid { input.nobody == 1 }",
            "valid = 1",
            "valid = \"true\"",
            "valid = [true]",
            "valid { io.jwt.decode(5) }",
        ] {
            assert!(decide(no).is_err(), "{no}");
        }
        let contradiction = decide("f(x) = 1 { x }\nf(x) = 2 { x }\nvalid { f(true) == 1 }").unwrap_err();
        assert!(contradiction.contains("failed"), "{contradiction}");
    }

    #[test]
    fn what_is_no_policy_is_refused_at_once() {
        for (source, says) in [
            ("package nsm\nvalid {", "x.rego"),
            ("package other\nvalid = true", "other"),
            ("package nsm\nother = true", "`valid`"),
            ("package nsm\nvalid { io.jwt.decode_verify(input.a, {}) }", "io.jwt.decode_verify"),
            ("package nsm\nvalid { io . jwt.verify_rs256 (input.a, \"\") }", "io.jwt.verify_rs256"),
            ("package nsm\nvalid { http.send({}) }", "http.send"),
            ("package nsm\nvalid { x := opa.runtime() }", "opa.runtime"),
        ] {
            let error = Compiled::new("x.rego", source).unwrap_err().to_string();
            assert!(error.contains("x.rego") && error.contains(says), "{error}");
        }
        assert!(Compiled::new("x.rego", "package nsm\n# http.send(\nvalid { input.a != \"io.jwt.encode_sign(\" }").is_ok());
        assert!(decide("valid { no.such_function(1) }").is_err());
    }

    #[test]
    fn a_policy_without_end_is_stopped() {
        let long = "n := numbers.range(1, 3000)\nvalid { count([1 | n[_] > 0; n[_] > 1; n[_] > 2]) > 0 }";
        let start = std::time::Instant::now();
        let refused = decide(long).unwrap_err();
        assert!(refused.contains("failed") && start.elapsed() < TIME_LIMIT * 40, "{refused} {:?}", start.elapsed());
    }
}
