//! A part that many records share: a pod, or a verdict.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// A shared `T`. Its JSON is made once if other records share it too.
#[derive(Debug, Clone)]
pub struct Part<T>(Arc<SharedPart<T>>);

#[derive(Debug)]
struct SharedPart<T> {
    value: T,
    json: OnceLock<Option<Box<RawValue>>>,
}

impl<T> Part<T> {
    pub fn new(value: T) -> Part<T> {
        Part(Arc::new(SharedPart { value, json: OnceLock::new() }))
    }

    /// Returns the value to be changed, for this record only.
    pub fn to_mut(&mut self) -> &mut T
    where
        T: Clone,
    {
        let inner = Arc::make_mut(&mut self.0);
        inner.json.take();
        &mut inner.value
    }

    pub fn into_inner(self) -> T
    where
        T: Clone,
    {
        Arc::unwrap_or_clone(self.0).value
    }
}

/// Leaves the JSON out: the copy is made to be changed.
impl<T: Clone> Clone for SharedPart<T> {
    fn clone(&self) -> SharedPart<T> {
        SharedPart { value: self.value.clone(), json: OnceLock::new() }
    }
}

impl<T> Deref for Part<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T: PartialEq> PartialEq for Part<T> {
    fn eq(&self, other: &Part<T>) -> bool {
        **self == **other
    }
}

impl<T: Serialize> Serialize for Part<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if Arc::strong_count(&self.0) == 1 {
            return self.0.value.serialize(serializer);
        }
        match self.0.json.get_or_init(|| serde_json::value::to_raw_value(&self.0.value).ok()) {
            Some(json) => json.serialize(serializer),
            None => self.0.value.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Part<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Part<T>, D::Error> {
        T::deserialize(deserializer).map(Part::new)
    }
}

#[cfg(test)]
mod tests {
    use super::Part;

    #[test]
    fn a_change_is_for_one_only() {
        let one = Part::new(vec![1]);
        let mut two = one.clone();
        assert_eq!(serde_json::to_string(&two).unwrap(), "[1]");
        two.to_mut().push(2);
        assert_eq!(serde_json::to_string(&(&one, &two)).unwrap(), "[[1],[1,2]]");
        let mut alone = Part::new(vec![1]);
        alone.to_mut().push(2);
        assert_eq!(alone, two);
    }
}
