//! One table for each closed set of values.

/// Declares an enum from its table: for each value its meaning, its variant and its name.
///
/// The name is what records, options, metric labels and messages use. The JSON schema, and with it docs/records.md, lists names and meanings.
macro_rules! closed_set {
    ($(#[$about:meta])* pub enum $set:ident { $($(#[$meaning:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$about])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
        )]
        pub enum $set {
            $($(#[$meaning])* #[serde(rename = $name)] $variant,)+
        }

        impl $set {
            /// Every value, in the order of the table.
            pub const ALL: &'static [$set] = &[$($set::$variant),+];

            /// Returns the value's name.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($set::$variant => $name,)+
                }
            }
        }

        impl From<$set> for $crate::model::Text {
            fn from(value: $set) -> $crate::model::Text {
                value.as_str().into()
            }
        }
    };
}

pub(crate) use closed_set;

#[cfg(test)]
mod tests {
    use crate::model::{Cause, Family, Mechanism};

    /// serde, `as_str` and the schema have the same names.
    #[test]
    fn a_value_has_one_name() {
        for cause in Cause::ALL {
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.as_str());
            assert_eq!(serde_json::from_value::<Cause>(cause.as_str().into()).unwrap(), *cause);
        }
        assert_eq!(Mechanism::IptablesLegacy.as_str(), "iptables-legacy");
        let schema = serde_json::to_value(schemars::schema_for!(Family)).unwrap().to_string();
        assert!(Family::ALL.iter().all(|family| schema.contains(family.as_str())), "{schema}");
    }
}
