//! Values of those who may write anything, which are bounded as they are read: what is short in an answer may be long in
//! memory, and what is too long once it is there has taken its place already.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use bytes::{Buf, BufMut};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, skip_field, string},
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::budget::EngineBudget;

/// Most labels of a container or pod, most bytes of one, and of all.
pub(super) const MAX_LABELS: usize = 256;
const MAX_LABEL_LEN: usize = 4 << 10;
pub(super) const MAX_LABELS_LEN: usize = 32 << 10;

/// What is kept of a value beside its text.
const OVERHEAD: usize = 64;

/// A text; one of more than `MAX` bytes, or none, is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Text<const MAX: usize>(pub(super) String);

/// The first `COUNT` of a list of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Texts<const COUNT: usize, const MAX: usize>(pub(super) Vec<String>);

/// Labels, as many as are kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Labels {
    /// By their names.
    pub(super) kept: BTreeMap<String, String>,
    /// How many there were beside these.
    pub(super) left_out: usize,
    len: usize,
    /// Of a message that is read, the last name.
    last: Option<String>,
}

impl Labels {
    fn add(&mut self, name: &str, value: &str) {
        let len = name.len() + value.len();
        let fits = len <= MAX_LABEL_LEN && self.len + len <= MAX_LABELS_LEN && self.kept.len() < MAX_LABELS;
        if fits {
            self.len += len;
            self.kept.insert(name.to_owned(), value.to_owned());
        } else {
            self.left_out += 1;
        }
    }

    /// Bytes that they take.
    pub(super) fn footprint(&self) -> usize {
        self.len + self.kept.len() * OVERHEAD
    }
}

/// Reads a text that may be null; too long ones are empty.
struct TextVisitor(usize);

impl Visitor<'_> for TextVisitor {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(if text.len() <= self.0 {
            text.to_owned()
        } else {
            String::new()
        })
    }

    fn visit_unit<E: Error>(self) -> Result<String, E> {
        Ok(String::new())
    }
}

impl<'de> DeserializeSeed<'de> for TextVisitor {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        TextVisitor(MAX).deserialize(deserializer).map(Self)
    }
}

impl<'de, const COUNT: usize, const MAX: usize> Deserialize<'de> for Texts<COUNT, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextsVisitor<const COUNT: usize, const MAX: usize>;

        impl<'de, const COUNT: usize, const MAX: usize> Visitor<'de> for TextsVisitor<COUNT, MAX> {
            type Value = Texts<COUNT, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts")
            }

            fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
                Ok(Texts::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut texts = Texts::default();
                while texts.0.len() < COUNT
                    && let Some(text) = list.next_element_seed(TextVisitor(MAX))?
                {
                    texts.0.push(text);
                }
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(texts)
            }
        }

        deserializer.deserialize_any(TextsVisitor)
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LabelsVisitor;

        impl<'de> Visitor<'de> for LabelsVisitor {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("labels by their names")
            }

            fn visit_unit<E: Error>(self) -> Result<Labels, E> {
                Ok(Labels::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
                let mut labels = Labels::default();
                // What is longer than a label may be counts as one that is.
                while let Some(name) = map.next_key_seed(LongText)? {
                    let value = map.next_value_seed(LongText)?;
                    labels.add(&name, &value);
                }
                Ok(labels)
            }
        }

        deserializer.deserialize_any(LabelsVisitor)
    }
}

/// A text of which no more is kept than tells that it is too long for a label.
struct LongText;

impl<'de> DeserializeSeed<'de> for LongText {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for LongText {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text[..text.floor_char_boundary(MAX_LABEL_LEN + 4)].to_owned())
    }

    fn visit_unit<E: Error>(self) -> Result<String, E> {
        Ok(String::new())
    }
}

/// A map of texts as a message has it: each entry is merged into this, its name and then its value.
///
/// Source: "Backwards compatibility" of maps in the language guide of Protocol Buffers 3.
impl Message for Labels {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        // Written as one entry after the other only where each is a field of its own, which a message cannot know.
        for (name, value) in &self.kept {
            string::encode(1, name, buf);
            string::encode(2, value, buf);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => {
                let mut name = String::new();
                string::merge(wire_type, &mut name, buf, ctx)?;
                // A value that is empty need not be there.
                self.add(&name, "");
                self.last = self.kept.contains_key(&name).then_some(name);
                Ok(())
            }
            2 => {
                let mut value = String::new();
                string::merge(wire_type, &mut value, buf, ctx)?;
                if let Some(name) = self.last.take() {
                    self.kept.remove(&name);
                    self.len -= name.len();
                    self.add(&name, &value);
                }
                Ok(())
            }
            _ => skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        let entry =
            |(name, value): (&String, &String)| string::encoded_len(1, name) + string::encoded_len(2, value);
        self.kept.iter().map(entry).sum()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// What takes memory.
pub(super) trait Footprint {
    /// About how many bytes.
    fn footprint(&self) -> usize;
}

/// A list of what one engine tells, as long as there is room for it.
pub(super) struct List<'a, T> {
    allowance: &'a mut EngineBudget,
    item: PhantomData<T>,
}

/// What was taken of a list.
#[derive(Debug)]
pub(super) struct Listed<T> {
    pub(super) items: Vec<T>,
    /// How many there were beside these.
    pub(super) left_out: usize,
}

impl<'a, T> List<'a, T> {
    pub(super) fn within(allowance: &'a mut EngineBudget) -> Self {
        Self {
            allowance,
            item: PhantomData,
        }
    }
}

impl<'de, T: Deserialize<'de> + Footprint> DeserializeSeed<'de> for List<'_, T> {
    type Value = Listed<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Listed<T>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de> + Footprint> Visitor<'de> for List<'_, T> {
    type Value = Listed<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Listed<T>, A::Error> {
        let mut listed = Listed {
            items: Vec::new(),
            left_out: 0,
        };
        while listed.items.len() < self.allowance.workloads
            && let Some(item) = list.next_element::<T>()?
        {
            if !self.allowance.take(size_of::<T>() + item.footprint()) {
                listed.left_out += 1;
                break;
            }
            listed.items.push(item);
        }
        while list.next_element::<IgnoredAny>()?.is_some() {
            listed.left_out += 1;
        }
        Ok(listed)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{discovery::budget::Budget, lookout::Owner};

    #[test]
    fn labels_are_cut_by_count_and_length_and_the_others_stay() {
        let long = "x".repeat(MAX_LABEL_LEN);
        let mut labels = json!({ "a-long": long, "null": null, "short": "1" });
        let read = |labels: &serde_json::Value| serde_json::from_str::<Labels>(&labels.to_string()).unwrap();
        let kept = read(&labels);
        assert_eq!(kept.left_out, 1);
        assert_eq!(kept.kept.keys().collect::<Vec<_>>(), ["null", "short"]);
        for number in 0..1000 {
            labels[format!("l{number}")] = "v".into();
        }
        let kept = read(&labels);
        assert_eq!((kept.kept.len(), kept.left_out), (MAX_LABELS, 1003 - MAX_LABELS));
        for number in 0..1000 {
            labels[format!("l{number}")] = long[..1000].into();
        }
        assert!(read(&labels).footprint() <= MAX_LABELS_LEN + MAX_LABELS * OVERHEAD);
        assert_eq!(read(&serde_json::Value::Null), Labels::default());
    }

    #[test]
    fn labels_of_messages_are_cut_too() {
        let mut labels = Labels::default();
        let entry = |name: &str, value: &str| {
            let mut entry = Vec::new();
            string::encode(1, &name.to_owned(), &mut entry);
            if !value.is_empty() {
                string::encode(2, &value.to_owned(), &mut entry);
            }
            entry
        };
        for number in 0..1000 {
            let value = if number % 2 == 0 { "v" } else { "" };
            labels.merge(&entry(&format!("l{number}"), value)[..]).unwrap();
        }
        labels
            .merge(&entry("long", &"x".repeat(MAX_LABEL_LEN))[..])
            .unwrap();
        assert_eq!(
            (labels.kept.len(), labels.left_out),
            (MAX_LABELS, 1001 - MAX_LABELS)
        );
        assert_eq!((&labels.kept["l0"][..], &labels.kept["l1"][..]), ("v", ""));
    }

    #[derive(Deserialize)]
    struct Named {
        name: Text<8>,
        further: Texts<2, 8>,
    }

    impl Footprint for Named {
        fn footprint(&self) -> usize {
            self.name.0.len()
        }
    }

    fn listed(owner: Owner, list: &str) -> Listed<Named> {
        let mut allowance = Budget::new().allow(owner);
        let mut deserializer = serde_json::Deserializer::from_str(list);
        List::within(&mut allowance)
            .deserialize(&mut deserializer)
            .unwrap()
    }

    #[test]
    fn lists_are_cut_at_what_their_owner_may_have_us_keep() {
        let one = json!({ "name": "123456789", "further": ["a", null, "b", "c"] }).to_string();
        let short = listed(Owner::User(1), &format!("[{one},{one}]"));
        assert_eq!((short.items.len(), short.left_out), (2, 0));
        assert_eq!(
            (&short.items[0].name.0[..], &short.items[0].further.0[..]),
            ("", &["a".to_owned(), String::new()][..])
        );
        let many = format!("[{}]", [&one[..]; 20_000].join(","));
        let of_user = listed(Owner::User(1), &many);
        assert_eq!((of_user.items.len(), of_user.left_out), (1000, 19_000));
        let of_host = listed(Owner::Host, &many);
        assert_eq!((of_host.items.len(), of_host.left_out), (10_000, 10_000));
    }
}
