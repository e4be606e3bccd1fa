//! What becomes of the names in an expression: whatever the text and whatever is found for them, nothing panics, and what
//! is to be compiled has none left.

#![no_main]

use libfuzzer_sys::fuzz_target;
use packetflix_filter::{Found, Kind, Language, Lookup, Names};

fuzz_target!(|expression: &str| {
    for version in [(1, 10), (1, 11)] {
        let language = Language::of_libpcap(version);
        let _ = language.check(expression, &Names::Refused);
        let Ok(wanted) = language.wanted(expression) else {
            continue;
        };
        let known = wanted.into_iter().map(|lookup| {
            let found = found(&lookup);
            (lookup, found)
        });
        if let Ok(checked) = language.check(expression, &Names::Known(known.collect())) {
            assert_eq!(
                language.wanted(&checked),
                Ok(Vec::new()),
                "{expression:?}: {checked:?}"
            );
        }
    }
});

/// What a name stands for here: something else for each length.
fn found(lookup: &Lookup) -> Found {
    let len = lookup.name.len() as u8;
    match lookup.kind {
        _ if len.is_multiple_of(7) => Found::Nothing,
        Kind::Host if len.is_multiple_of(2) => Found::Addresses(vec![[10, 0, 0, len].into()]),
        Kind::Host => Found::Addresses(vec![[10, 0, 0, len].into(), [len.into(); 8].into()]),
        Kind::EthernetAddress => Found::EthernetAddress([len; 6]),
        Kind::Network => Found::Network(vec![len; usize::from(len % 4) + 1]),
        Kind::Port => Found::Port {
            tcp: Some(len.into()).filter(|_| !len.is_multiple_of(3)),
            udp: Some(u16::from(len / 5 * 5)).filter(|_| !len.is_multiple_of(4)),
        },
        Kind::Protocol => Found::Protocol(len),
    }
}
