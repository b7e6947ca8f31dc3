//! `WWW-Authenticate`, read: which schemes a server offers, and their parameters (RFC 9110 section 11.6.1).
//!
//! Pure, and lenient as the servers out there demand: what cannot be understood is skipped up to the next comma. Work is
//! linear in the length of the header, which the HTTP client bounds.

/// One way to authenticate that a server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    /// `bearer`, `basic`, ...: in lower case.
    pub(super) scheme: String,
    /// Parameters in order, names in lower case.
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The first parameter of this (lower-case) name, unless it is empty.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Takes a parameter out.
    pub(super) fn remove(&mut self, name: &str) {
        self.parameters.retain(|(key, _)| key != name);
    }

    /// All of them.
    #[cfg(feature = "fuzzing")]
    pub(super) fn parameters(&self) -> &[(String, String)] {
        &self.parameters
    }
}

/// The challenges of one header, in order. A header may hold several, and parameters are separated by the same commas
/// that separate challenges: a word followed by `=` is a parameter, any other begins a challenge.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = Cursor(header);
    loop {
        rest.skip(|c| c == ',' || c.is_ascii_whitespace());
        if rest.0.is_empty() {
            return challenges;
        }
        let word = rest.take(is_token);
        if word.is_empty() {
            rest.take(|c| c != ',');
            continue;
        }
        rest.skip(|c| c.is_ascii_whitespace());
        if !rest.eat('=') {
            challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
            continue;
        }
        rest.skip(|c| c.is_ascii_whitespace());
        let value = match rest.eat('"') {
            true => rest.quoted(),
            // Some servers leave the quotes off addresses; RFC 9110 would end the value at the first colon.
            false => Some(rest.take(|c| c != ',' && !c.is_ascii_whitespace()).to_owned()),
        };
        if let (Some(challenge), Some(value)) = (challenges.last_mut(), value) {
            challenge.parameters.push((word.to_ascii_lowercase(), value));
        }
    }
}

struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn take(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let end = self.0.find(|c| !wanted(c)).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(end);
        self.0 = rest;
        taken
    }

    fn skip(&mut self, unwanted: impl Fn(char) -> bool) {
        self.take(unwanted);
    }

    fn eat(&mut self, c: char) -> bool {
        match self.0.strip_prefix(c) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    /// The rest of a quoted string; `None` when it has no end.
    fn quoted(&mut self) -> Option<String> {
        let mut value = String::new();
        let mut chars = self.0.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.0 = &self.0[at + 1..];
                    return Some(value);
                }
                '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
                _ => value.push(c),
            }
        }
        self.0 = "";
        None
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(header: &str) -> Challenge {
        let mut challenges = parse(header);
        assert_eq!(challenges.len(), 1, "{header}: {challenges:?}");
        challenges.remove(0)
    }

    #[test]
    fn challenges_of_real_registries_are_understood() {
        let hub = one(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull""#,
        );
        assert_eq!(hub.scheme, "bearer");
        assert_eq!(hub.parameter("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(hub.parameter("service"), Some("registry.docker.io"));
        assert_eq!(hub.parameter("scope"), Some("repository:library/alpine:pull"));
        let quay = one(r#"BEARER Realm="https://quay.io/v2/auth" , SERVICE="quay.io""#);
        assert_eq!(
            (quay.scheme.as_str(), quay.parameter("realm")),
            ("bearer", Some("https://quay.io/v2/auth"))
        );
        let commas = one(r#"Bearer realm="r",scope="repository:a/b:pull,push",error="insufficient_scope""#);
        assert_eq!(commas.parameter("scope"), Some("repository:a/b:pull,push"));
        let nexus = one(r#"BASIC realm="Sonatype \"Nexus\" Repository""#);
        assert_eq!(nexus.parameter("realm"), Some("Sonatype \"Nexus\" Repository"));
        let bare = one("Bearer realm=https://r.io/token?a=b,service=r.io");
        assert_eq!(bare.parameter("realm"), Some("https://r.io/token?a=b"));
    }

    #[test]
    fn one_header_may_hold_several_challenges() {
        let both = parse(r#"Negotiate abc==, Basic realm="x", Bearer realm="y", service=z"#);
        let schemes: Vec<&str> = both.iter().map(|challenge| challenge.scheme.as_str()).collect();
        assert_eq!(
            (schemes[0], schemes[schemes.len() - 2], schemes[schemes.len() - 1]),
            ("negotiate", "basic", "bearer")
        );
        assert_eq!(both.last().unwrap().parameter("service"), Some("z"));
    }

    #[test]
    fn nonsense_yields_nothing_usable_and_no_panic() {
        for header in
            ["", ",,,", "=", "\"", "Bearer realm=\"open", "realm=x", "\u{fc}\u{1F600},", "Bearer =x", "\\"]
        {
            let realm = parse(header).iter().find_map(|c| c.parameter("realm").map(str::to_owned));
            assert_eq!(realm, None, "{header}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(header in ".{0,400}") {
            parse(&header);
        }

        #[test]
        fn any_text_of_the_grammars_own_characters_is_survived(header in "[A-Za-z =,\"\\\\;]{0,200}") {
            let parameters: usize = parse(&header).iter().map(|challenge| challenge.parameters.len()).sum();
            prop_assert!(parameters <= header.matches('=').count());
        }

        #[test]
        fn what_is_written_by_the_rules_reads_back(
            scheme in "[A-Za-z][A-Za-z0-9]{0,8}",
            parameters in proptest::collection::vec(("[a-z_]{1,8}", "[ -~]{0,30}"), 0..6),
        ) {
            let written: Vec<String> = parameters.iter().map(|(name, value)| {
                format!("{name}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
            }).collect();
            let header = format!("{scheme} {}", written.join(", "));
            prop_assert_eq!(parse(&header), vec![Challenge { scheme: scheme.to_ascii_lowercase(), parameters }]);
        }
    }
}
