//! The meta tags of a discovery page.
//!
//! Pure. The page is hostile: it is read by the tokenizer of the HTML standard, so that a tag in a comment, a script, a style,
//! a title or another tag's attribute is none. Only what stands before `</head>` or `<body>` counts, as in rkt: what readers
//! of a site may write on its pages stands below.

use html5gum::emitters::default::DefaultEmitter;
use html5gum::{Token, Tokenizer};

/// Most tags of a page that are looked at, of either kind. 64: real ones have two.
pub(super) const TAGS_MAX: usize = 64;

/// The names of the tags.
const DISCOVERY: &str = "ac-discovery";
const KEYS: &str = "ac-discovery-pubkeys";

/// What a page says, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// Of `ac-discovery`: templates.
    pub(super) templates: Vec<Tag>,
    /// Of `ac-discovery-pubkeys`: addresses.
    pub(super) keys: Vec<Tag>,
    /// Tags of these names whose content is not two words.
    pub(super) malformed: usize,
}

/// One tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    /// The names it is for begin with this.
    pub(super) prefix: String,
    /// A template or an address.
    pub(super) what: String,
}

impl Tag {
    /// Whether it is for this name: the name itself, or one below it. `example.com/a` is not above `example.com/ab`.
    pub(super) fn matches(&self, name: &str) -> bool {
        let prefix = self.prefix.trim_end_matches('/');
        let rest = name.strip_prefix(prefix).filter(|_| !prefix.is_empty());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl Page {
    /// Those of this page. What is no HTML has none.
    pub(super) fn parse(html: &[u8]) -> Self {
        let mut page = Self::default();
        let mut emitter = DefaultEmitter::default();
        // Nothing in a script is a tag.
        emitter.naively_switch_states(true);
        let mut templates_deep = 0usize;
        for token in Tokenizer::new_with_emitter(html, emitter) {
            let Ok(token) = token;
            match token {
                Token::StartTag(tag) => match &**tag.name {
                    b"body" | b"frameset" => break,
                    // What stands in one is not part of the page.
                    b"template" => templates_deep += 1,
                    b"meta" if templates_deep == 0 => {
                        let text = |name: &[u8]| {
                            let value = tag.attributes.get(name);
                            value.map(|value| String::from_utf8_lossy(value).into_owned())
                        };
                        page.add(&text(b"name").unwrap_or_default(), &text(b"content").unwrap_or_default());
                    }
                    _ => {}
                },
                Token::EndTag(tag) => match &**tag.name {
                    b"head" => break,
                    b"template" => templates_deep = templates_deep.saturating_sub(1),
                    _ => {}
                },
                _ => {}
            }
        }
        page
    }

    fn add(&mut self, name: &str, content: &str) {
        let name = name.trim();
        let kind = if name.eq_ignore_ascii_case(DISCOVERY) {
            &mut self.templates
        } else if name.eq_ignore_ascii_case(KEYS) {
            &mut self.keys
        } else {
            return;
        };
        let mut words = content.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(prefix), Some(what), None) if kind.len() < TAGS_MAX => {
                kind.push(Tag { prefix: prefix.to_owned(), what: what.to_owned() });
            }
            (Some(_), Some(_), None) => {}
            _ => self.malformed += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn templates(html: &str) -> Vec<String> {
        let tags = Page::parse(html.as_bytes()).templates.into_iter();
        tags.map(|tag| format!("{} {}", tag.prefix, tag.what)).collect()
    }

    #[test]
    fn tags_are_found_however_they_are_written() {
        for html in [
            "<meta name=\"ac-discovery\" content=\"p t\">",
            "<META CONTENT='p t' NAME='AC-Discovery'/>",
            "<meta\n\tname=ac-discovery\n\tcontent=p&#32;t\n>",
            "<!doctype html><html><head lang=x><meta charset=utf-8><meta property=x name=\" ac-discovery \" content=\" p\n t \">",
            "<meta name=ac&#45;discovery content='p&Tab;&#x74;'>",
            "hello <p> <meta name=ac-discovery content='p t' content='q u' name=x>",
            "<script>if (a </b/ c) {}</script><meta name=ac-discovery content='p t'>",
            "<meta name=ac-discovery content='p t' </head>",
        ] {
            assert_eq!(templates(html), ["p t"], "{html}");
        }
    }

    #[test]
    fn what_is_no_tag_or_not_of_the_head_is_none() {
        let tag = "<meta name=ac-discovery content='p t'>";
        for html in [
            format!("<!-- {tag} -->"),
            format!("<!--> --> <!-- --!{tag}-->"),
            format!("<script>\"{tag}\"</script>"),
            format!("<script><!-- <script> </script> {tag} --></script>"),
            format!("<style>{tag}</style><title>{tag}</title><textarea>{tag}</textarea>"),
            format!("<template><template></template>{tag}</template>"),
            // As with a browser that runs scripts.
            format!("<noscript>{tag}</noscript>"),
            format!("</head>{tag}"),
            format!("<BODY class=x>{tag}"),
            format!("<a title=\"{tag}\">"),
            tag.replace('<', "&lt;"),
            tag[..tag.len() - 1].to_owned(),
            "<metaname=ac-discovery content='p t'>".to_owned(),
            "<meta name=ac-discovery-x content='p t'>".to_owned(),
            "<meta http-equiv=ac-discovery content='p t'>".to_owned(),
        ] {
            assert_eq!(templates(&html), [] as [&str; 0], "{html}");
        }
    }

    #[test]
    fn contents_are_two_words_and_there_are_not_too_many() {
        let page = Page::parse(
            b"<meta name=ac-discovery content=p><meta name=ac-discovery-pubkeys content='p k'>\
              <meta name=ac-discovery content='p t u'><meta name=ac-discovery>",
        );
        assert_eq!((page.templates.len(), page.keys.len(), page.malformed), (0, 1, 3));
        let many = "<meta name=ac-discovery content='p t'>".repeat(TAGS_MAX + 5);
        assert_eq!(templates(&many).len(), TAGS_MAX);
        assert_eq!(templates("<meta name=ac-discovery content='p \u{fffd}'>"), ["p \u{fffd}"]);
    }

    #[test]
    fn a_prefix_ends_where_a_part_of_the_name_does() {
        let matches = |prefix: &str, name| Tag { prefix: prefix.into(), what: String::new() }.matches(name);
        for prefix in ["e.com", "e.com/", "e.com/a", "e.com/a/b"] {
            assert!(matches(prefix, "e.com/a/b"), "{prefix}");
        }
        for prefix in ["", "/", "e", "e.co", "e.com/a/", "e.com/ab", "e.com/a/b/c", "E.com", "com/a"] {
            assert_eq!(matches(prefix, "e.com/a/b"), prefix == "e.com/a/", "{prefix}");
        }
    }
}
