//! The reference: every key with its default and its meaning, as a file to start from.

use std::fmt::Write as _;

use super::Config;
use super::load::variable;

/// A TOML file with every key commented out, at its default.
pub fn reference() -> String {
    let mut text = String::from(
        "# Every key of avouch with its default. A value given by the environment, under the name\n\
         # in brackets, goes over the file; a flag (--set section.key=value) goes over both.\n",
    );
    for (section, keys) in Config::default().keys() {
        let _ = write!(text, "\n[{section}]\n");
        for key in keys {
            let name = format!("{section}.{}", key.name);
            let _ = writeln!(text, "# {} [{}]", key.doc, variable(&name));
            let bare = matches!(key.value.as_str(), "true" | "false")
                || (!key.value.is_empty() && key.value.bytes().all(|b| b.is_ascii_digit()));
            let value = if bare { key.value } else { format!("{:?}", key.value) };
            let _ = writeln!(text, "#{} = {value}", key.name);
        }
    }
    text.push_str(
        "\n# What a caller with a client certificate may do; repeat for each right. Rights:\n\
         # introspect, watch, revoke, sessions, admin, backup. The limits are optional.\n\
         #[[grant]]\n\
         #certificate_name = \"spiffe://example.com/ns/shop/sa/orders\"\n\
         #right = \"watch\"\n\
         #audience = \"orders\"\n\
         #client = \"shop\"\n\
         #subject = \"\"\n",
    );
    text
}
