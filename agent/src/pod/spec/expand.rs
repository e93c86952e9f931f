//! `$(VAR)` in commands, arguments and environment values.

/// Replaces each `$(NAME)` that `lookup` knows; an unknown one stays as it is; `$$` is a literal `$`.
pub fn expand<'a>(text: &str, lookup: &impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('$') {
        out.push_str(&rest[..position]);
        rest = &rest[position..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix("$(").and_then(|r| r.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion_is_that_of_kubernetes() {
        let lookup = |name: &str| match name {
            "VAR_A" => Some("A"),
            "VAR_EMPTY" => Some(""),
            _ => None,
        };
        for (text, expected) in [
            ("$(VAR_A)", "A"),
            ("___$(VAR_A)___", "___A___"),
            ("$(VAR_A)-$(VAR_A)", "A-A"),
            ("$(MISSING)", "$(MISSING)"),
            ("$$(VAR_A)", "$(VAR_A)"),
            ("$$$(VAR_A)", "$A"),
            ("$$$$(VAR_A)", "$$(VAR_A)"),
            ("$(VAR_EMPTY)", ""),
            ("$VAR_A", "$VAR_A"),
            ("$(VAR_A", "$(VAR_A"),
            ("foo$", "foo$"),
            ("$", "$"),
            ("\n$(VAR_A)é", "\nAé"),
        ] {
            assert_eq!(expand(text, &lookup), expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn text_without_references_stays_as_it_is(text in "[^$]{0,50}") {
            proptest::prop_assert_eq!(expand(&text, &|_| None), text);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,80}") {
            let _ = expand(&text, &|_| Some("x"));
        }
    }
}
