//! Sections: plain structs, each declared once with the name, the default and the meaning of its
//! keys, so that reading, the reference and the hints for misspelt keys cannot disagree.

/// One key as the reference shows it.
#[derive(Clone, Debug)]
pub struct KeyDoc {
    /// Its name in the section.
    pub name: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// Its value; empty when it is not set.
    pub value: String,
}

/// What may go wrong with one key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum KeyFault {
    /// The section has no such key.
    Unknown,
    /// The value is not what the key wants.
    Value(String),
}

macro_rules! section {
    (
        $(#[$meta:meta])*
        $name:ident {
            $($(#[doc = $doc:literal])+ $field:ident : $kind:ty = $default:expr,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Eq, PartialEq)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $kind,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $name {
            pub(crate) fn set(
                &mut self,
                key: &str,
                text: &str,
            ) -> Result<(), $crate::config::section::KeyFault> {
                use $crate::config::section::KeyFault;
                match key {
                    $(stringify!($field) => {
                        self.$field = $crate::config::value::Value::read(text).map_err(KeyFault::Value)?;
                    })+
                    _ => return Err(KeyFault::Unknown),
                }
                Ok(())
            }

            pub(crate) fn keys(&self) -> Vec<$crate::config::section::KeyDoc> {
                vec![$($crate::config::section::KeyDoc {
                    name: stringify!($field),
                    doc: concat!($($doc),+).trim(),
                    value: $crate::config::value::Value::show(&self.$field),
                }),+]
            }
        }
    };
}

pub(crate) use section;
