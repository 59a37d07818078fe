//! The fuzz target for `DATABASE_URL`.

use super::tests::{URLS, settings};
use crate::connection::parse;
use crate::connection::validate::validate;
use std::path::Path;

/// Up to the first NUL, the input is the value of the variable; the rest is what is inside and behind a password.
#[test]
fn fuzz_database_url() {
    let examples = URLS.iter().map(|(url, _)| format!("{url}\0@&:\0/d?sslmode=x"));
    crate::fuzz::fuzz(&examples.collect::<Vec<_>>(), |input| {
        let input = String::from_utf8_lossy(input);
        let mut parts = input.splitn(3, '\0');
        let mut part = || parts.next().unwrap_or_default();
        let text = part();
        let lenient = settings(text);
        // What libpq accepts has at least its TLS.
        if let Ok(lenient) = &lenient
            && text.starts_with("postgres")
            && let Ok(strict) = parse::parse(text)
            && let Ok(strict) = validate(&strict.values, false, Some(Path::new("/home")))
        {
            assert!(
                lenient.tls.mode >= strict.tls.mode,
                "{:?} {:?}",
                lenient.tls.mode,
                strict.tls.mode
            );
        }
        // Without `=`, what is inside is no parameter of its own.
        let [inside, tail] = [part(), part()].map(|part| part.replace(['X', 'Y', 'Z', '='], ""));
        let texts = [
            format!("postgres://u:XYZ{inside}XYZ@h{tail}"),
            format!("jdbc:postgresql://h/d?user=u&password=XYZ{inside}XYZ{tail}"),
            format!("host=h password=XYZ{inside}XYZ {tail}"),
            format!("Host=h;Password=XYZ{inside}XYZ;{tail}"),
            format!("u:XYZ{inside}XYZ@h{tail}"),
        ];
        // One for each input, which is faster.
        let text = &texts[input.len() % texts.len()];
        if let Err(error) = settings(text) {
            let error = error.to_string();
            assert!(!error.contains("XYZ"), "{text:?}: {error:?}");
        }
    });
}
