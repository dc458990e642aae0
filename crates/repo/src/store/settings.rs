//! What the environment says of a store, looked at before the library sees it, which takes the word of many variables and ends the program where it was wrong.
//!
//! Invariants: an empty variable counts as none; no value is repeated in an error, as it may hold a secret.

use std::ffi::OsString;

use object_store::ObjectStoreScheme;
use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::AzureConfigKey;
use object_store::gcp::GoogleConfigKey;
use url::Url;

use crate::error::{Problem, causes};

/// Variables that hold an address, in lower case as all names here.
const ADDRESSES: [&str; 14] = [
    "aws_endpoint",
    "aws_endpoint_url",
    "aws_endpoint_url_s3",
    "aws_endpoint_url_sts",
    "aws_metadata_endpoint",
    "aws_container_credentials_full_uri",
    "azure_storage_endpoint",
    "azure_endpoint",
    "azure_msi_endpoint",
    "azure_identity_endpoint",
    "azure_authority_host",
    "azure_storage_authority_host",
    AZURITE,
    "google_base_url",
];
/// Names of files may hold any character, and the key of a service account is JSON.
const FREE_TEXT: [&str; 6] =
    ["_profile", "_file", "_path", "_credentials", "_service_account", "_service_account_key"];
const PREFIXES: [&str; 4] = ["aws_", "google_", "azure_", "azurite_"];
/// Where the library looks for the emulator, which it asks the environment itself.
const AZURITE: &str = "azurite_blob_storage_url";
const USES_EMULATOR: &str = "azure_storage_use_emulator";
const AZURE_ENDPOINTS: [&str; 2] = ["azure_storage_endpoint", "azure_endpoint"];
const GOOGLE_ANONYMOUS: &str = "google_skip_signature";
const GOOGLE_TOKEN: &str = "google_bearer_token";
/// What the library takes for yes.
const YES: [&str; 5] = ["1", "true", "on", "yes", "y"];
const NO_ACCOUNT: &str = "Account must be specified";

/// The variables that this store understands, with names in lower case, as the library wants them.
pub(crate) fn of_environment(
    scheme: &ObjectStoreScheme,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, Problem> {
    let prefixes: &[&str] = match scheme {
        ObjectStoreScheme::GoogleCloudStorage => &["GOOGLE_"],
        ObjectStoreScheme::MicrosoftAzure => &["AZURE_", "AZURITE_"],
        _ => &["AWS_"],
    };
    let text =
        variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let is_own = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
    let own = text.filter(|(name, value)| is_own(name) && !value.trim().is_empty());
    let each = own.map(|(name, value)| {
        let lower = name.to_ascii_lowercase();
        // What the library does not know is another program's.
        let is_free = || !is_known(scheme, &lower) || FREE_TEXT.iter().any(|end| lower.ends_with(end));
        let settled = if ADDRESSES.contains(&lower.as_str()) {
            address(&value)
        } else if is_free() {
            Ok(value)
        } else {
            plain(&value)
        };
        settled.map(|value| (lower, value)).map_err(|what| Problem::Settings(format!("{name}: {what}")))
    });
    together(each.collect::<Result<_, _>>()?)
}

/// What variables mean where the library does not see them together.
fn together(mut settings: Vec<(String, String)>) -> Result<Vec<(String, String)>, Problem> {
    let is_yes = |value: &str| YES.contains(&value.to_ascii_lowercase().as_str());
    let has = |names: &[&str]| settings.iter().find(|(name, _)| names.contains(&name.as_str()));
    let says_yes = |name: &str| has(&[name]).is_some_and(|(_, value)| is_yes(value));
    if let Some((name, _)) = has(&AZURE_ENDPOINTS).filter(|_| says_yes(USES_EMULATOR)) {
        // The library would go to the emulator's usual address and say nothing.
        return Err(Problem::Settings(format!(
            "{} is not used with {}=true: {} is the emulator's address, http://127.0.0.1:10000 if it is not set",
            name.to_ascii_uppercase(),
            USES_EMULATOR.to_ascii_uppercase(),
            AZURITE.to_ascii_uppercase(),
        )));
    }
    if says_yes(GOOGLE_ANONYMOUS) && has(&[GOOGLE_TOKEN]).is_none() {
        // The library would read without a token, and ask the machine for one where it writes.
        settings.push((GOOGLE_TOKEN.to_owned(), String::new()));
    }
    Ok(settings)
}

/// Whether the library takes a variable for a setting of that store.
fn is_known(scheme: &ObjectStoreScheme, name: &str) -> bool {
    match scheme {
        ObjectStoreScheme::GoogleCloudStorage => name.parse::<GoogleConfigKey>().is_ok(),
        ObjectStoreScheme::MicrosoftAzure => name.parse::<AzureConfigKey>().is_ok(),
        _ => name.parse::<AmazonS3ConfigKey>().is_ok(),
    }
}

/// An address as a URL over which the library does not stumble; else what is wrong with it.
pub(super) fn address(text: &str) -> Result<String, String> {
    let text = text.trim();
    if !["http://", "https://"].iter().any(|scheme| text.starts_with(scheme)) {
        return Err("it does not begin with `http://` or `https://`".to_owned());
    }
    match Url::parse(text) {
        Ok(url) if url.query().is_some() || url.fragment().is_some() => {
            Err("there must be no `?` or `#` in it".to_owned())
        }
        Ok(url) if url.path() == "/" => Ok(url.as_str().trim_end_matches('/').to_owned()),
        Ok(url) => Ok(url.into()),
        Err(url::ParseError::EmptyHost) => Err("it names no host".to_owned()),
        Err(error) => Err(format!("it is no address: {error}")),
    }
}

/// A word that can stand in a request, without the line break that a file or a secret of Kubernetes often ends with.
pub(super) fn plain(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        return Ok(text.to_owned());
    }
    Err("there is a line break or another character in it that can't be sent".to_owned())
}

/// Why a store could not be opened. Nothing has been asked of it yet, so it is what it was told that makes no sense.
pub(crate) fn opening(error: object_store::Error, environment: &[(String, String)]) -> Problem {
    let names = |what: &dyn Fn(&(String, String)) -> bool| {
        let names = environment.iter().filter(|variable| what(variable));
        names.map(|(name, _)| name.to_ascii_uppercase()).collect::<Vec<_>>()
    };
    match &error {
        object_store::Error::Generic { store, source } if *store == "Config" => {
            let what = source.to_string();
            let quoted = names(&|(_, value)| what.contains(&format!("\"{value}\"")));
            Problem::Settings(quoted.first().map_or_else(|| what.clone(), |name| format!("{name}: {what}")))
        }
        object_store::Error::Generic { source, .. } if source.to_string().contains(NO_ACCOUNT) => {
            Problem::Settings("AZURE_STORAGE_ACCOUNT_NAME is not set".to_owned())
        }
        object_store::Error::Generic { .. } => {
            let what = causes(&error);
            let is_secret = |name: &str| ["key", "secret", "token"].iter().any(|word| name.contains(word));
            // A key that is no JSON object is quoted by who reads it.
            let repeats = |(name, value): &(String, String)| {
                is_secret(name) && what.contains(value.trim().trim_matches('"'))
            };
            if let Some(name) = names(&repeats).first() {
                return Problem::Settings(format!("{name}: its value is not what it must be"));
            }
            let set = names(&|(name, _)| PREFIXES.iter().any(|prefix| name.starts_with(prefix)));
            let is_said = PREFIXES.iter().any(|prefix| what.contains(&prefix.to_ascii_uppercase()));
            let set = if is_said || set.is_empty() {
                String::new()
            } else {
                format!(" (set are {})", set.join(", "))
            };
            Problem::Settings(what + &set)
        }
        _ => error.into(),
    }
}

/// The same as an error of the library, where one is to be given.
pub(super) fn makes_no_sense(what: String) -> object_store::Error {
    object_store::Error::Generic { store: "Config", source: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(scheme: &ObjectStoreScheme, name: &str, value: &str) -> Result<Vec<(String, String)>, String> {
        let variables = [(OsString::from(name), OsString::from(value))];
        of_environment(scheme, variables.into_iter()).map_err(|problem| problem.to_string())
    }

    #[test]
    fn an_address_is_whole_or_its_variable_is_named() {
        use ObjectStoreScheme as S;
        let variables = [
            (S::AmazonS3, "AWS_ENDPOINT"),
            (S::AmazonS3, "AWS_ENDPOINT_URL_S3"),
            (S::MicrosoftAzure, "AZURE_STORAGE_ENDPOINT"),
            (S::GoogleCloudStorage, "GOOGLE_BASE_URL"),
        ];
        for (scheme, name) in &variables {
            for (value, words) in [
                ("localhost:9000", "does not begin with `http://`"),
                ("=foo", "does not begin with `http://`"),
                ("foo:99", "does not begin with `http://`"),
                ("//foo", "does not begin with `http://`"),
                ("http:foo", "does not begin with `http://`"),
                ("http://", "names no host"),
                ("http://:9000", "names no host"),
                ("http://foo:99999", "invalid port"),
                ("http://fo o", "invalid"),
                ("http://foo?secret", "no `?`"),
            ] {
                let refused = read(scheme, name, value).unwrap_err();
                assert!(
                    refused.contains(&format!("{name}: ")) && refused.contains(words),
                    "{value}: {refused}"
                );
                assert!(!refused.contains("secret"), "{refused}");
            }
            for (value, wanted) in [
                ("http://foo:99", "http://foo:99"),
                ("https://foo/", "https://foo"),
                (" https://foo/bar\n", "https://foo/bar"),
                ("http://FOO/{x}", "http://foo/%7Bx%7D"),
            ] {
                let lower = name.to_lowercase();
                assert_eq!(read(scheme, name, value).unwrap(), [(lower, wanted.to_owned())]);
            }
            assert_eq!(read(scheme, name, "").unwrap(), [], "empty counts as unset");
            assert_eq!(read(scheme, name, " \n").unwrap(), []);
        }
        assert_eq!(read(&S::AmazonS3, "GOOGLE_BASE_URL", "foo").unwrap(), [], "another store's");
    }

    #[test]
    fn the_emulators_address_is_one() {
        let read = |variables: &[(&str, &str)]| {
            let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
            of_environment(&ObjectStoreScheme::MicrosoftAzure, variables)
                .map_err(|problem| problem.to_string())
        };
        let (emulator, endpoint) =
            (("AZURE_STORAGE_USE_EMULATOR", "True"), ("AZURE_STORAGE_ENDPOINT", "http://x:1/account"));
        let refused = read(&[emulator, endpoint]).unwrap_err();
        assert!(
            refused.contains("AZURE_STORAGE_ENDPOINT is not")
                && refused.contains(": AZURITE_BLOB_STORAGE_URL is"),
            "{refused}"
        );
        assert_eq!(read(&[("AZURE_STORAGE_USE_EMULATOR", "no"), endpoint]).unwrap().len(), 2);
        assert_eq!(read(&[emulator, ("AZURITE_BLOB_STORAGE_URL", "http://x:1")]).unwrap().len(), 2);
        // The library would end the program.
        let refused = read(&[emulator, ("AZURITE_BLOB_STORAGE_URL", "localhost:10000")]).unwrap_err();
        assert!(refused.contains("AZURITE_BLOB_STORAGE_URL: it does not begin"), "{refused}");
    }

    #[test]
    fn who_is_nobody_at_google_writes_as_nobody() {
        let read = |name, value| read(&ObjectStoreScheme::GoogleCloudStorage, name, value).unwrap();
        assert!(read("GOOGLE_SKIP_SIGNATURE", "true").contains(&(GOOGLE_TOKEN.to_owned(), String::new())));
        assert_eq!(read("GOOGLE_SKIP_SIGNATURE", "false").len(), 1);
    }

    #[test]
    fn a_secret_in_the_librarys_words_is_not_passed_on() {
        let variables = [("google_service_account_key".to_owned(), "\"hunter2\"".to_owned())];
        let error =
            |what: &str| object_store::Error::Generic { store: "GCS", source: what.to_owned().into() };
        let quoting = opening(error("invalid type: string \"hunter2\""), &variables).to_string();
        assert!(
            quoting.contains("GOOGLE_SERVICE_ACCOUNT_KEY: ") && !quoting.contains("hunter2"),
            "{quoting}"
        );
        let other = opening(error("it lacks something"), &variables).to_string();
        assert!(other.contains("it lacks something (set are GOOGLE_SERVICE_ACCOUNT_KEY)"), "{other}");
    }

    #[test]
    fn what_can_not_be_sent_is_refused_and_not_repeated() {
        use ObjectStoreScheme as S;
        let scheme = ObjectStoreScheme::AmazonS3;
        for value in ["hun\nter2", "hünter2"] {
            let refused = read(&scheme, "AWS_SECRET_ACCESS_KEY", value).unwrap_err();
            assert!(refused.contains("AWS_SECRET_ACCESS_KEY: ") && !refused.contains("ter2"), "{refused}");
        }
        let trimmed = read(&scheme, "AWS_ACCESS_KEY_ID", "some\n").unwrap();
        assert_eq!(trimmed, [("aws_access_key_id".to_owned(), "some".to_owned())]);
        let file = read(&scheme, "AWS_WEB_IDENTITY_TOKEN_FILE", "/run/ünter").unwrap();
        assert_eq!(file[0].1, "/run/ünter");
        // What other programs are told stands in nobody's way.
        for (scheme, name) in [
            (S::AmazonS3, "AWS_CA_BUNDLE"),
            (S::AmazonS3, "AWS_VAULT"),
            (S::MicrosoftAzure, "AZURE_CONFIG_DIR"),
            (S::GoogleCloudStorage, "GOOGLE_OTHER"),
        ] {
            assert_eq!(read(&scheme, name, "/ünter").unwrap()[0].1, "/ünter");
        }
    }
}
