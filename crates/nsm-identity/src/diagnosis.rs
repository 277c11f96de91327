//! Why an identity that the Workload API gives cannot be used. Asked only when it took too long to get one, because
//! the library that follows the API goes on waiting for a better one without a word.

use crate::{
    jwt,
    pb::{X509svidRequest, spiffe_workload_api_client::SpiffeWorkloadApiClient},
    peer,
};
use nsm_api::{Error, Result};
use std::time::Duration;
use tonic::{Request, metadata::MetadataValue, transport::Endpoint};

/// How long it may take to be given an SVID before somebody looks at it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Resolves with what is wrong with the SVIDs of `endpoint`; never when nothing is.
pub(crate) async fn unusable(endpoint: &str) -> Error {
    loop {
        tokio::time::sleep(PATIENCE).await;
        if let Ok(Ok(Err(error))) = tokio::time::timeout(PATIENCE, look(endpoint)).await {
            return error;
        }
    }
}

/// Looks at the first SVID. The outer error is that there was none to look at.
async fn look(endpoint: &str) -> Result<Result<()>, Box<dyn std::error::Error + Send + Sync>> {
    let channel = Endpoint::from_shared(endpoint.to_owned())?.connect().await?;
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let mut answers = SpiffeWorkloadApiClient::new(channel).fetch_x509svid(request).await?.into_inner();
    let answer = answers.message().await?.ok_or("the stream ended")?;
    let svid = answer.svids.first().ok_or("it holds no SVID")?;
    let chain = svid.x509_svid.as_slice().into();
    let (leaf, _) = peer::parse_first(&chain).ok_or("its certificate does not parse")?;
    Ok(jwt::usable(&leaf, &svid.spiffe_id))
}
