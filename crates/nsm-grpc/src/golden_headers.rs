//! Headers as the Go implementation sent them, see `tests/golden/README.md`: each is read, and what of it is ours to write
//! is written the same.

use crate::{metadata, registry_path::RegistryPath};
use http::{HeaderMap, HeaderName, HeaderValue};

macro_rules! golden {
    ($name:literal) => {
        parse(include_str!(concat!("../tests/golden/", $name, ".headers")))
    };
}

fn parse(text: &str) -> HeaderMap {
    let pair = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
    };
    text.lines().map(pair).collect()
}

/// Every call of a Go process carries a token that we can read, whatever the number of digits of its end.
#[test]
fn each_call_has_a_token() {
    for headers in [
        golden!("request-first"),
        golden!("request-refresh"),
        golden!("close"),
        golden!("monitor"),
        golden!("service-register"),
        golden!("service-find"),
        golden!("endpoint-register"),
        golden!("endpoint-register-onward"),
        golden!("endpoint-find"),
        golden!("endpoint-unregister"),
        golden!("endpoint-unregister-onward"),
    ] {
        let token = metadata::read_token(&headers).unwrap();
        let mut again = HeaderMap::new();
        assert!(metadata::write_token(&mut again, &token));
        for key in ["nsm-client-token", "nsm-client-token-expires"] {
            assert_eq!(again.get(key), headers.get(key), "{key}");
        }
    }
}

/// The path of a registration is read and written to the letter.
#[test]
fn paths_of_registrations_are_written_as_they_came() {
    for (headers, tokens) in [
        (golden!("service-register"), 0),
        (golden!("endpoint-register"), 0),
        (golden!("endpoint-unregister"), 0),
        (golden!("endpoint-register-onward"), 2),
        (golden!("endpoint-unregister-onward"), 2),
        (golden!("endpoint-register-answer"), 3),
    ] {
        let path = RegistryPath::read(&headers).unwrap().unwrap();
        assert_eq!(path.tokens().len(), tokens);
        let mut again = HeaderMap::new();
        path.write(&mut again);
        assert_eq!(again.get("path"), headers.get("path"));
    }
    for questions in [golden!("service-find"), golden!("endpoint-find")] {
        assert!(RegistryPath::read(&questions).unwrap().is_none(), "a question carries no path");
    }
}
