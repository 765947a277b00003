use precis_profiles::OpaqueString;
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Result<String, NameError> {
    username(text).map(|name| name.to_string())
}

fn spelled(text: &str) -> Result<String, PasswordError> {
    password(&SecretText::new(text.into())).map(SecretText::into_exposed)
}

#[test]
fn spellings_of_one_name_are_one_name() {
    for (text, canonical) in [
        ("alice", "alice"),
        ("ALICE", "alice"),
        ("Ａlice", "alice"),
        ("ａｌｉｃｅ", "alice"),
        ("alice@example.com", "alice@example.com"),
        // NFD and NFC, in each case.
        ("Ame\u{301}lie", "am\u{e9}lie"),
        ("AM\u{c9}LIE", "am\u{e9}lie"),
        ("Ｅ\u{301}", "\u{e9}"),
        // Half width katakana with its voicing mark.
        ("ｶﾞ", "\u{30ac}"),
        // No folding: ß stays, and no locale: a dotted capital keeps its dot, dotless i is its own letter.
        ("straße", "straße"),
        ("\u{130}", "i\u{307}"),
        ("I", "i"),
        ("ı", "ı"),
        // A final sigma is a letter of its own; a capital one becomes the ordinary one.
        ("ΣΣ", "σσ"),
        ("σς", "σς"),
        // Right to left throughout, with digits inside.
        ("שלום", "שלום"),
        ("אב12", "אב12"),
        // ZWNJ and ZWJ after a virama, where the scripts need them.
        ("क\u{94d}\u{200d}ष", "क\u{94d}\u{200d}ष"),
        ("क\u{94d}\u{200c}ष", "क\u{94d}\u{200c}ष"),
    ] {
        assert_eq!(name(text), Ok(canonical.into()), "{text:?}");
    }
    assert_ne!(name("straße"), name("strasse"));
    assert_ne!(name("ıo"), name("io"));
}

#[test]
fn refuses_what_is_no_name() {
    for text in [
        "\u{fb01}sh",       // the ligature fi: disallowed, not folded
        "\u{212a}im",       // the Kelvin sign
        "\u{2126}",         // the ohm sign
        "a\u{200d}b",       // ZWJ without a virama
        "a\u{200c}b",       // ZWNJ likewise
        "aא",               // mixed directions
        "אa",               //
        "1א",               // right to left may not start with a digit
        "אב٣3",             // two kinds of digits
        "\u{202e}alice",    // override
        "\u{feff}alice",    // byte order mark
        "al\u{ad}ice",      // soft hyphen
        "\u{378}",          // unassigned
        "\u{1f914}",        // assigned after Unicode 6.3, and a symbol
        "\u{e000}",         // private use
        "\u{ffff}",         // not a character
        "☃",                // symbol
        "alice ",           // spaces, anywhere, of any kind
        " alice",           //
        "al ice",           //
        "alice\u{3000}",    //
        "alice\0",          // controls
        "\0",               //
        "alice\n",          //
        "al\u{1b}[31mice",  //
        "\u{7f}",           //
        "\u{ff}\u{80}\0",   //
        "\u{13a0}\u{13a1}", // capitals whose small letters are newer than the tables
        "l\u{b7}a",         // a middle dot stands only between two l
    ] {
        assert_eq!(name(text), Err(NameError::Character), "{text:?}");
    }
    assert_eq!(name(""), Err(NameError::Empty));
    // ÿ is the character 0xFF. The byte 0xFF is no UTF-8 and cannot reach a `&str`.
    assert_eq!(name("\u{ff}"), Ok("\u{ff}".into()));
}

#[test]
fn caps_names_after_mapping() {
    assert!(username(&"a".repeat(256)).is_ok());
    assert!(username(&"Ａ".repeat(256)).is_ok(), "768 bytes that map to 256");
    assert_eq!(name(&"a".repeat(257)), Err(NameError::TooLong));
    assert_eq!(name(&"é".repeat(129)), Err(NameError::TooLong));
    assert_eq!(name(&"Ａ".repeat(257)), Err(NameError::TooLong));
    assert_eq!(name(&"\0".repeat(1 << 20)), Err(NameError::TooLong));
}

#[test]
fn each_single_character_name_is_stable_or_refused() {
    for c in '\0'..=char::MAX {
        if let Ok(canonical) = name(c.encode_utf8(&mut [0; 4])) {
            assert_eq!(name(&canonical).as_ref(), Ok(&canonical), "{c:?}");
        }
    }
}

#[test]
fn passwords_keep_everything_but_their_normal_form() {
    for (text, canonical) in [
        ("Passe\u{301} compose\u{301}", "Pass\u{e9} compos\u{e9}"),
        ("Pass\u{e9} compos\u{e9}", "Pass\u{e9} compos\u{e9}"),
        ("  both ends  ", "  both ends  "),
        ("no\u{a0}break\u{3000}here\u{2003}", "no break here "),
        ("MiXeD", "MiXeD"),
        // NFC, not NFKC.
        ("\u{fb01}\u{212b}Ａ", "\u{fb01}\u{c5}Ａ"),
        // What phones type, which the profile's tables do not know.
        ("🤔❤\u{fe0f}👩\u{200d}🚀", "🤔❤\u{fe0f}👩\u{200d}🚀"),
        ("a\u{b7}b", "a\u{b7}b"),
    ] {
        assert_eq!(spelled(text), Ok(canonical.into()), "{text:?}");
    }
    assert_ne!(spelled("A"), spelled("a"));
    assert_ne!(spelled("a "), spelled("a"));
}

#[test]
fn refuses_what_is_no_password() {
    assert_eq!(spelled(""), Err(PasswordError::Empty));
    // Never truncated at a NUL: refused whole.
    for text in ["a\0b", "\0", "a\n", "\u{7f}", "\u{85}", "\u{378}", "\u{ffff}", "\u{10ffff}"] {
        assert_eq!(spelled(text), Err(PasswordError::Character), "{text:?}");
    }
}

#[test]
fn caps_passwords_by_code_point() {
    for c in ["a", "é", "語", "🤔"] {
        for length in [1, 64, 128, 1024] {
            let text = c.repeat(length);
            assert_eq!(spelled(&text).as_ref(), Ok(&text));
        }
        assert_eq!(spelled(&c.repeat(1025)), Err(PasswordError::TooLong));
    }
    // Counted after NFC.
    assert_eq!(spelled(&"e\u{301}".repeat(1024)), Ok("é".repeat(1024)));
    assert_eq!(spelled(&"a".repeat(4 << 20)), Err(PasswordError::TooLong));
}

/// Text that is rich in what the rules are about.
fn tricky() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<char>(),
        proptest::char::range('\0', '\u{700}'),
        proptest::char::range('\u{900}', '\u{20ff}'),
        proptest::char::range('\u{a640}', '\u{abff}'),
        proptest::char::range('\u{ff00}', '\u{ffef}'),
        proptest::sample::select(vec![
            '\u{200c}', '\u{200d}', '\u{94d}', '\u{301}', '\u{307}', 'א', 'ا', '٣', 'I', 'İ'
        ]),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(String::from_iter)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn a_name_is_its_own_spelling(text in tricky()) {
        if let Ok(canonical) = name(&text) {
            prop_assert_eq!(name(&canonical), Ok(canonical.clone()));
            prop_assert!(Username::from_canonical(&canonical).is_ok());
        }
    }

    #[test]
    fn a_password_is_its_own_spelling(text in tricky()) {
        if let Ok(canonical) = spelled(&text) {
            prop_assert_eq!(spelled(&canonical), Ok(canonical));
        }
    }

    #[test]
    fn a_password_of_the_profile_gives_the_bytes_of_the_profile(text in tricky()) {
        if let Ok(theirs) = OpaqueString::enforce(&*text) {
            prop_assert_eq!(spelled(&text), Ok(theirs.into_owned()));
        }
    }

    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        let _ = name(&text);
        let _ = spelled(&text);
    }
}
