//! A certificate authority for one trust domain.
//!
//! It knows no registration entries and no attestation: which socket gives which identity is said to
//! [`Authority::serve`]. Its root does not rotate; who needs that runs an external SPIRE.

use crate::{jwt::JwtKey, peer, secret};
use nsm_api::{Error, Result, SpiffeId};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject};
use spiffe::TrustDomain;
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// How long an X.509-SVID lives unless [`Authority::with_svid_life`] says otherwise.
pub const DEFAULT_SVID_LIFE: Duration = Duration::from_secs(3600);
/// Certificates begin a little earlier than now, for peers whose clocks are behind.
const BACKDATE: Duration = Duration::from_secs(10);
/// The root outlives the mesh.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Root certificate, its key and the key of JWT-SVIDs, in one file so that they are written as one.
const FILE: &str = "authority.pem";

/// Issues identities of one trust domain. Cheap to clone.
#[derive(Clone)]
pub struct Authority {
    inner: Arc<Inner>,
    svid_life: Duration,
}

struct Inner {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    jwt: JwtKey,
}

/// An identity with the key that proves it.
pub struct Svid {
    /// Who it names.
    pub id: SpiffeId,
    /// The leaf certificate, signed by the root itself.
    pub certificate: CertificateDer<'static>,
    /// The P-256 private key.
    pub key: PrivatePkcs8KeyDer<'static>,
}

impl Authority {
    /// A new authority that lives as long as this process. `trust_domain` is a name such as `example.org`.
    pub fn new(trust_domain: &str) -> Result<Authority> {
        Authority::from_pem(&new_pem(&parse_domain(trust_domain)?)?, trust_domain)
    }
    /// The authority whose root and keys are in `dir` (file mode 0600), made where they are missing.
    pub fn load_or_create(dir: &Path, trust_domain: &str) -> Result<Authority> {
        let domain = parse_domain(trust_domain)?;
        let path = dir.join(FILE);
        let pem = secret::load_or_create(&path, || new_pem(&domain))?;
        Authority::from_pem(&pem, trust_domain).map_err(|error| {
            Error::invalid(
                format!("authority file {}", path.display()),
                error.reason,
                "name its trust domain, or remove it to start a new root",
            )
        })
    }
    /// Sets the life of X.509-SVIDs; a workload gets the next one before half of it has passed.
    pub fn with_svid_life(mut self, life: Duration) -> Authority {
        self.svid_life = life;
        self
    }
    /// The name of the trust domain, without scheme.
    pub fn trust_domain(&self) -> &str {
        self.inner.trust_domain.as_str()
    }
    /// The root certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.inner.root
    }
    /// The ID in this trust domain with the given path segments, for instance `["workload", "nsc"]`.
    pub fn id(&self, segments: &[&str]) -> Result<SpiffeId> {
        let id = spiffe::SpiffeId::from_segments(self.inner.trust_domain.clone(), segments).map_err(|error| {
            let fix = "use letters, digits, '.', '-' and '_' in each part";
            Error::invalid(format!("SPIFFE ID path {:?}", segments.join("/")), error.to_string(), fix)
        })?;
        SpiffeId::new(id.to_string())
    }
    /// Makes a key and signs an SVID for `id`, which must be in the trust domain and have a path.
    pub fn issue(&self, id: &SpiffeId) -> Result<Svid> {
        self.check(id)?;
        let failed = |error: rcgen::Error| Error::internal(format!("SVID for {id}"), error.to_string());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = params("NSM workload", id.as_str(), self.svid_life)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.inner.issuer).map_err(failed)?;
        Ok(Svid { id: id.clone(), certificate: certificate.der().clone(), key: key.serialize_der().into() })
    }
    /// Refuses an ID that this authority cannot vouch for.
    pub(crate) fn check(&self, id: &SpiffeId) -> Result<()> {
        let domain = &self.inner.trust_domain;
        let fix = format!("use spiffe://{domain}/ and a path");
        match spiffe::SpiffeId::new(id.as_str()) {
            Err(error) => Err(Error::invalid(format!("SPIFFE ID {id}"), error.to_string(), fix)),
            Ok(parsed) if !parsed.is_member_of(domain) => Err(Error::invalid(format!("SPIFFE ID {id}"), "is of another trust domain", fix)),
            Ok(parsed) if parsed.path().is_empty() => Err(Error::invalid(format!("SPIFFE ID {id}"), "names no workload", fix)),
            Ok(_) => Ok(()),
        }
    }
    /// The trust domain as an ID, which is how bundles are keyed.
    pub(crate) fn trust_domain_id(&self) -> String {
        self.inner.trust_domain.id_string()
    }
    pub(crate) fn jwt(&self) -> &JwtKey {
        &self.inner.jwt
    }
    pub(crate) fn svid_life(&self) -> Duration {
        self.svid_life
    }

    fn from_pem(pem: &[u8], trust_domain: &str) -> Result<Authority> {
        let bad = |reason: &str| Error::invalid("authority", reason, "start a new root");
        let root = CertificateDer::pem_slice_iter(pem).next().and_then(|root| root.ok()).ok_or_else(|| bad("holds no certificate"))?;
        let mut keys = PrivatePkcs8KeyDer::pem_slice_iter(pem).map_while(|key| key.ok());
        let (Some(key), Some(jwt)) = (keys.next(), keys.next()) else { return Err(bad("does not hold two private keys")) };
        let load =
            |key| KeyPair::from_pkcs8_der_and_sign_algo(key, &PKCS_ECDSA_P256_SHA256).map_err(|_| bad("holds a key that is not P-256"));
        let (key, jwt, trust_domain) = (load(&key)?, load(&jwt)?, parse_domain(trust_domain)?);
        check_root(&root, &key, &trust_domain).map_err(|reason| bad(&reason))?;
        // Only the issuer name and the key identifier of these parameters are used; both are as in `root`.
        let issuer = Issuer::new(root_params(&trust_domain)?, key);
        Ok(Authority { inner: Arc::new(Inner { trust_domain, issuer, root, jwt: JwtKey::new(&jwt)? }), svid_life: DEFAULT_SVID_LIFE })
    }
}

fn parse_domain(name: &str) -> Result<TrustDomain> {
    let fix = "use lower-case letters, digits, '.', '-' and '_', for instance example.org";
    TrustDomain::new(name).map_err(|error| Error::invalid(format!("trust domain {name:?}"), error.to_string(), fix))
}

fn check_root(root: &CertificateDer<'_>, key: &KeyPair, domain: &TrustDomain) -> Result<(), String> {
    let root = peer::parse(root).ok_or("holds a certificate that does not parse")?;
    if peer::spiffe_id(&root).is_none_or(|id| id.as_str() != domain.id_string()) {
        return Err(format!("is not of the trust domain {domain}"));
    }
    if root.public_key().raw != key.subject_public_key_info() {
        return Err("holds a key that does not belong to its certificate".to_owned());
    }
    if peer::not_after(&root) <= SystemTime::now() {
        return Err("holds a root certificate that has expired".to_owned());
    }
    Ok(())
}

fn new_pem(domain: &TrustDomain) -> Result<Vec<u8>> {
    let failed = |error: rcgen::Error| Error::internal("authority", error.to_string());
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let jwt = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let root = root_params(domain)?.self_signed(&key).map_err(failed)?;
    Ok([root.pem(), key.serialize_pem(), jwt.serialize_pem()].concat().into_bytes())
}

fn root_params(domain: &TrustDomain) -> Result<CertificateParams> {
    let mut params = params("NSM authority", &domain.id_string(), ROOT_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn params(organization: &str, uri: &str, life: Duration) -> Result<CertificateParams> {
    let failed = |error: rcgen::Error| Error::internal(format!("certificate for {uri}"), error.to_string());
    let now = SystemTime::now();
    let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
    params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(failed)?)];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + life).into();
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Dir;
    use rustls::{RootCertStore, pki_types::UnixTime, server::WebPkiClientVerifier};
    use std::os::unix::fs::MetadataExt;

    fn verify(svid: &Svid, root: &CertificateDer<'static>) {
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        verifier.verify_client_cert(&svid.certificate, &[], UnixTime::now()).unwrap();
    }

    #[test]
    fn a_leaf_is_as_the_standard_wants_it() {
        let authority = Authority::new("example.org").unwrap();
        let id = authority.id(&["workload", "nsc"]).unwrap();
        let svid = authority.issue(&id).unwrap();
        let leaf = peer::parse(&svid.certificate).unwrap();
        assert_eq!(peer::spiffe_id(&leaf).unwrap(), id);
        assert!(peer::is_p256(&leaf));
        assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
        let usage = leaf.key_usage().unwrap().unwrap().value;
        assert_eq!(usage.flags, 1, "digitalSignature and nothing else");
        let now = SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        let (begin, end) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
        assert!((now - 12..=now - 9).contains(&begin), "{begin} {now}");
        assert!((now + 3598..=now + 3600).contains(&end), "{end} {now}");
        let root = peer::parse(authority.root()).unwrap();
        verify(&svid, authority.root());
        assert_eq!(leaf.issuer(), root.subject());
    }

    #[test]
    fn only_ids_of_the_trust_domain_are_issued() {
        let authority = Authority::new("example.org").unwrap();
        for bad in ["spiffe://other.org/a", "spiffe://example.org", "https://example.org/a", "spiffe://example.org/../a"] {
            assert!(authority.issue(&SpiffeId::new(bad).unwrap()).is_err(), "{bad}");
        }
        assert!(authority.id(&["workload", "a/b"]).is_err());
        assert!(Authority::new("Example Org").is_err());
    }

    #[test]
    fn a_restarted_authority_keeps_its_root_and_guards_its_key() {
        let dir = Dir::new();
        let first = Authority::load_or_create(dir.root(), "example.org").unwrap();
        let second = Authority::load_or_create(dir.root(), "example.org").unwrap();
        assert_eq!(first.root(), second.root());
        assert_eq!(first.jwt().jwks(), second.jwt().jwks());
        assert_eq!(dir.path(FILE).metadata().unwrap().mode() & 0o7777, 0o600);
        let leaf = second.issue(&second.id(&["a"]).unwrap()).unwrap();
        verify(&leaf, first.root());
        assert!(Authority::load_or_create(dir.root(), "other.org").err().unwrap().reason.contains("trust domain other.org"));
        std::fs::write(dir.path(FILE), "").unwrap();
        assert!(Authority::load_or_create(dir.root(), "example.org").err().unwrap().reason.contains("no certificate"));
    }
}
