//! What a store says when it refuses: an error code and a message, in XML that spans lines.
//!
//! The library passes the text on as it came, and its types say little of it: a listing that fails is an error of its own whatever the reason. Only codes
//! are judged here, never messages, which stores translate and change.
//!
//! Codes: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>, <https://cloud.google.com/storage/docs/xml-api/reference-status>,
//! <https://learn.microsoft.com/en-us/rest/api/storageservices/common-rest-api-error-codes>.

use object_store::Error;

use crate::error::Problem;

/// Codes that say of any request that the bucket or container is not there.
const NO_BUCKET: [&str; 3] = ["NoSuchBucket", "ContainerNotFound", "FilesystemNotFound"];
/// The same of a listing, which asks for the container and nothing else.
const NO_LISTED_BUCKET: &str = "ResourceNotFound";
/// Codes that say that nothing can have this name, a bucket or container first of all.
const NO_SUCH_NAME: [&str; 3] = ["InvalidBucketName", "InvalidResourceName", "OutOfRangeInput"];
/// How the HTTP client refuses an address without TLS.
const NO_TLS: &str = "URL scheme is not allowed";
/// Where machines of the large clouds are asked for their role.
const ROLE_ADDRESS: &str = "http://169.254.169.254/";

/// What the error says of the store as a whole, and not of an object, if it does. `words` is its text.
pub(crate) fn of_the_store(error: &Error, words: &str) -> Option<Problem> {
    let code = code(words).unwrap_or_default();
    match error {
        Error::NotFound { .. } | Error::Generic { .. } if NO_BUCKET.contains(&code) => {
            Some(Problem::NoBucket)
        }
        // Requests for objects that fail so are `NotFound`.
        Error::Generic { .. } if code == NO_LISTED_BUCKET => Some(Problem::NoBucket),
        Error::Generic { .. } if NO_SUCH_NAME.contains(&code) => {
            Some(Problem::Location(format!("the store takes no such name: {}", in_one_line(words))))
        }
        Error::Generic { store, .. } if words.contains(NO_TLS) => {
            let allows = match *store {
                "S3" => "AWS_ALLOW_HTTP",
                "GCS" => "GOOGLE_ALLOW_HTTP",
                _ => "AZURE_ALLOW_HTTP",
            };
            let what = format!("its address begins with `http://`, which only {allows}=true allows");
            Some(Problem::Settings(what))
        }
        Error::Generic { .. } if words.contains(ROLE_ADDRESS) => Some(Problem::NoKeys(in_one_line(words))),
        _ => None,
    }
}

/// An error's text in one line, with the code and the message of what a store answered instead of its XML.
pub(crate) fn in_one_line(words: &str) -> String {
    let (before, answer) = match words.find("<?xml").or_else(|| words.find("<Error>")) {
        Some(at) => words.split_at(at),
        None => (words, ""),
    };
    let mut line = if before.contains('\n') {
        before.split_whitespace().collect::<Vec<_>>().join(" ")
    } else {
        // Names in it are as they are.
        before.trim_end().to_owned()
    };
    // Azure adds the request's id and the time, on lines of their own.
    let message = element(answer, "Message").and_then(|text| text.lines().next());
    for said in [code(answer), message].into_iter().flatten() {
        let glue = if line.ends_with(':') || line.is_empty() { " " } else { ": " };
        line.push_str(glue);
        line.push_str(said.trim());
    }
    line.trim().trim_end_matches(':').to_owned()
}

fn code(words: &str) -> Option<&str> {
    element(words, "Code")
}

/// What stands in the first element of that name.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (content, _) = rest.split_once(&format!("</{name}>"))?;
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Azurite 3.35.0 answers.
    const AZURE: &str = "Error performing GET http://x/one in 3ms - Server returned non-2xx status code: 404 Not Found: \
        <?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n<Error>\n  <Code>ContainerNotFound</Code>\n  \
        <Message>The specified container does not exist.\nRequestId:dc39\nTime:2026-11-26T19:19:01.450Z</Message>\n</Error>";

    fn generic(words: &str) -> Error {
        Error::Generic { store: "MicrosoftAzure", source: words.to_owned().into() }
    }

    fn not_found(words: &str) -> Error {
        Error::NotFound { path: "x".to_owned(), source: words.to_owned().into() }
    }

    fn answer(code: &str) -> String {
        AZURE.replace("ContainerNotFound", code)
    }

    #[test]
    fn an_answer_is_one_line_with_code_and_message() {
        assert_eq!(
            in_one_line(AZURE),
            "Error performing GET http://x/one in 3ms - Server returned non-2xx status code: 404 Not Found: \
             ContainerNotFound: The specified container does not exist."
        );
        assert_eq!(in_one_line("503:\n <Error><Code>SlowDown</Code></Error>"), "503: SlowDown");
        assert_eq!(in_one_line("403 Forbidden: "), "403 Forbidden");
        assert_eq!(in_one_line("timed out\nat last\n"), "timed out at last");
        assert_eq!(in_one_line("/srv/a  b: no"), "/srv/a  b: no");
        assert_eq!(in_one_line("what <b>is</b> no answer"), "what <b>is</b> no answer");
        assert_eq!(in_one_line("500: <?xml version"), "500", "cut off");
    }

    #[test]
    fn a_bucket_that_is_missing_is_not_taken_for_an_object() {
        for code in NO_BUCKET {
            for error in [generic(&answer(code)), not_found(&answer(code))] {
                assert!(matches!(Problem::from(error), Problem::NoBucket), "{code}");
            }
        }
        assert!(matches!(Problem::from(generic(&answer(NO_LISTED_BUCKET))), Problem::NoBucket));
        for code in ["NoSuchKey", "BlobNotFound", NO_LISTED_BUCKET] {
            assert!(matches!(Problem::from(not_found(&answer(code))), Problem::Missing), "{code}");
        }
        assert!(matches!(Problem::from(not_found("404 Not Found: ")), Problem::Missing));
    }

    #[test]
    fn what_is_wrong_with_what_was_told_is_told_from_a_store_that_fails() {
        for code in NO_SUCH_NAME {
            let Problem::Location(what) = Problem::from(generic(&answer(code))) else { panic!("{code}") };
            assert!(what.contains(code) && !what.contains('\n'), "{what}");
        }
        let plain =
            "Error performing GET http://x/y in 1ms - HTTP error: builder error: URL scheme is not allowed";
        for (store, variable) in
            [("S3", "AWS_ALLOW_HTTP"), ("GCS", "GOOGLE_ALLOW_HTTP"), ("MicrosoftAzure", "AZURE_ALLOW_HTTP")]
        {
            let Problem::Settings(what) = Problem::from(Error::Generic { store, source: plain.into() })
            else {
                panic!("{store}")
            };
            assert!(what.contains(variable), "{what}");
        }
        let role =
            "Error performing PUT http://169.254.169.254/latest/api/token in 1s - HTTP error: timed out";
        assert!(matches!(Problem::from(generic(role)), Problem::NoKeys(_)));
        assert!(matches!(Problem::from(generic(&answer("ServerBusy"))), Problem::Store(_)));
    }
}
