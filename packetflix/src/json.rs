//! Reading JSON of programs that write `null` for what is empty, as those in Go do.

use serde::{Deserialize, Deserializer};

/// For `deserialize_with`: `null` is the default.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// For `deserialize_with`: `null` and zero are nothing.
pub(crate) fn zero_as_none<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Default + PartialEq + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.filter(|value| *value != T::default()))
}
