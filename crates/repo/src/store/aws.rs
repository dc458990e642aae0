//! Opening a bucket that speaks S3, with what the environment says and, where that is silent, a profile of the files that AWS's tools share
//! (`~/.aws/config`, `~/.aws/credentials`): keys, region and endpoint.
//!
//! Invariants: a variable goes before a profile; a profile that is asked for and not there is an error, and never a reason to go on as somebody else.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use aws_config::profile::{Profile, ProfileFileCredentialsProvider, ProfileSet, load};
use aws_credential_types::provider::ProvideCredentials;
use aws_runtime::env_config::property::PropertiesKey;
use aws_types::os_shim_internal::{Env, Fs};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::{CredentialProvider, Error, Result};
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use super::pause;
use super::settings::{address, makes_no_sense, plain};
use crate::error::causes;

const PROFILE: &str = "AWS_PROFILE";
/// Who is somebody by these variables needs no keys of a profile.
const KEY_VARIABLES: [&str; 3] = ["aws_access_key_id", "aws_skip_signature", "aws_web_identity_token_file"];
const REGION_VARIABLES: [&str; 2] = ["aws_region", "aws_default_region"];
const ENDPOINT_VARIABLES: [&str; 3] = ["aws_endpoint", "aws_endpoint_url", "aws_endpoint_url_s3"];
/// Properties of a profile that say where its keys come from.
const KEY_PROPERTIES: [&str; 7] = [
    "aws_access_key_id",
    "credential_process",
    "role_arn",
    "web_identity_token_file",
    "sso_session",
    "sso_start_url",
    "login_session",
];

/// The host of Cloudflare's R2, which wants all parts of an upload but the last to be equally large
/// (<https://developers.cloudflare.com/r2/objects/multipart-objects/>).
const EQUAL_PARTS_HOST: &str = ".r2.cloudflarestorage.com";

/// How large the parts of one upload may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parts {
    /// All alike.
    Equal,
    /// As they come.
    Any,
}

impl Parts {
    /// Of the store at that address.
    fn of(address: &str) -> Self {
        let url = Url::parse(address);
        let host = url.as_ref().ok().and_then(Url::host_str).unwrap_or_default();
        if host.ends_with(EQUAL_PARTS_HOST) { Self::Equal } else { Self::Any }
    }
}

/// Opens the bucket. `options` are settings of the library and the environment's variables in lower case; what comes later goes before.
pub(crate) async fn open(url: &Url, options: &[(String, String)]) -> Result<(AmazonS3, Parts)> {
    let builder = builder(url, options).await?;
    // An address such as https://account.r2.cloudflarestorage.com/bucket is known to the builder only when it builds.
    let keys = [AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::S3Endpoint];
    let addresses = keys.iter().filter_map(|key| builder.get_config_value(key)).chain([url.to_string()]);
    let equal = addresses.map(|address| Parts::of(&address)).any(|parts| parts == Parts::Equal);
    Ok((builder.build()?, if equal { Parts::Equal } else { Parts::Any }))
}

/// What is known of the bucket and of how to reach it.
async fn builder(url: &Url, options: &[(String, String)]) -> Result<AmazonS3Builder> {
    let mut builder = AmazonS3Builder::new().with_url(url.to_string());
    for (name, value) in options {
        if let Ok(key) = name.parse() {
            builder = builder.with_config(key, value);
        }
    }
    let is_said = |names: &[&str]| options.iter().any(|(name, _)| names.contains(&name.as_str()));
    let (fs, env) = (Fs::real(), Env::real());
    let shared = load(&fs, &env, &aws_runtime::env_config::file::EnvConfigFiles::default(), None).await;
    let shared = shared
        .map_err(|error| generic(format!("can't use the files of AWS's profiles: {}", causes(&error))))?;
    let Some(profile) = selected(&shared, env.get(PROFILE).is_ok_and(|name| !name.is_empty()))? else {
        return Ok(builder);
    };
    if let Some(region) = profile.get("region").filter(|_| !is_said(&REGION_VARIABLES)) {
        builder = builder.with_region(said(profile, "region", plain(region))?);
    }
    if let Some(endpoint) = endpoint(&shared, profile).filter(|_| !is_said(&ENDPOINT_VARIABLES)) {
        builder = builder.with_endpoint(said(profile, "endpoint_url", address(endpoint))?);
    }
    let has_keys = KEY_PROPERTIES.iter().any(|name| profile.get(name).is_some());
    if has_keys && !is_said(&KEY_VARIABLES) {
        let provider = ProfileFileCredentialsProvider::builder().profile_name(profile.name()).build();
        builder = builder.with_credentials(Arc::new(Keys::new(profile.name(), provider)));
    }
    Ok(builder)
}

/// The profile that the environment names, or `default`, which need not be there.
fn selected(shared: &ProfileSet, is_named: bool) -> Result<Option<&Profile>> {
    let name = shared.selected_profile();
    match shared.get_profile(name) {
        None if is_named => Err(generic(format!(
            "{PROFILE} names `{name}`, and neither ~/.aws/config nor ~/.aws/credentials has such a profile"
        ))),
        found => Ok(found),
    }
}

/// What a profile says of something; it may be nonsense.
fn said(profile: &Profile, of: &str, what: std::result::Result<String, String>) -> Result<String> {
    what.map_err(|what| makes_no_sense(format!("`{of}` of the profile `{}`: {what}", profile.name())))
}

/// The address that the profile names for S3, or for all services.
fn endpoint<'a>(shared: &'a ProfileSet, profile: &'a Profile) -> Option<&'a str> {
    let of_s3 = profile.get("services").and_then(|services| {
        let key = PropertiesKey::builder()
            .section_key("services")
            .section_name(services)
            .property_name("s3")
            .sub_property_name("endpoint_url");
        shared.other_sections().get(&key.build().ok()?)
    });
    of_s3.map(String::as_str).or_else(|| profile.get("endpoint_url"))
}

/// The keys of a profile, fetched again when they run out.
struct Keys<P> {
    profile: String,
    provider: P,
    kept: Mutex<Option<(Arc<AwsCredential>, Option<Instant>)>>,
}

impl<P> Keys<P> {
    fn new(profile: &str, provider: P) -> Self {
        Self { profile: profile.to_owned(), provider, kept: Mutex::default() }
    }
}

impl<P> fmt::Debug for Keys<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("profile", &self.profile).finish_non_exhaustive()
    }
}

#[async_trait]
impl<P: ProvideCredentials> CredentialProvider for Keys<P> {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> Result<Arc<AwsCredential>> {
        let mut kept = self.kept.lock().await;
        if let Some((credential, until)) = kept.as_ref()
            && until.is_none_or(|until| pause::now() < until)
        {
            return Ok(Arc::clone(credential));
        }
        let found =
            self.provider.provide_credentials().await.map_err(|error| {
                generic(format!("no keys by profile `{}`: {}", self.profile, causes(&error)))
            })?;
        let credential = Arc::new(AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().map(str::to_owned),
        });
        *kept = Some((Arc::clone(&credential), found.expiry().map(pause::shortly_before)));
        Ok(credential)
    }
}

fn generic(what: String) -> Error {
    Error::Generic { store: "S3", source: what.into() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, SystemTime};

    use aws_credential_types::Credentials;
    use aws_credential_types::provider::future;

    use super::*;

    #[derive(Debug, Default)]
    struct Counting {
        asked: AtomicU32,
        expiry: Option<SystemTime>,
    }

    impl ProvideCredentials for Counting {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let number = self.asked.fetch_add(1, Ordering::Relaxed);
            let keys = Credentials::new(format!("key-{number}"), "secret", None, self.expiry, "test");
            future::ProvideCredentials::ready(Ok(keys))
        }
    }

    async fn two(expiry: Option<SystemTime>) -> [String; 2] {
        let keys = Keys::new("some", Counting { expiry, ..Counting::default() });
        let first = keys.get_credential().await.unwrap().key_id.clone();
        [first, keys.get_credential().await.unwrap().key_id.clone()]
    }

    #[test]
    fn a_store_that_wants_equal_parts_is_known_by_its_host() {
        for (address, parts) in [
            ("https://0123abc.r2.cloudflarestorage.com", Parts::Equal),
            ("https://0123abc.eu.r2.cloudflarestorage.com/bucket/x", Parts::Equal),
            ("https://minio.example:9000/r2.cloudflarestorage.com", Parts::Any),
            ("s3://bucket/x", Parts::Any),
        ] {
            assert_eq!(Parts::of(address), parts, "{address}");
        }
    }

    #[tokio::test]
    async fn keys_are_kept_until_shortly_before_they_run_out() {
        assert_eq!(two(None).await, ["key-0", "key-0"]);
        let far = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40));
        assert_eq!(two(far).await, ["key-0", "key-0"]);
        assert_eq!(two(Some(SystemTime::UNIX_EPOCH)).await, ["key-0", "key-1"], "run out");
    }
}
