//! The parts of the benchmarks that look at what others capture: on streams made by hand.

use packetflix_bench::analysis::{Analysis, Delays, Found};
use packetflix_tests::generator::MAGIC;

/// A frame of the generator with this number and time.
fn frame(number: u64, time: u64) -> Vec<u8> {
    let mut frame = vec![0; 42];
    frame.extend(MAGIC);
    frame.extend(number.to_be_bytes());
    frame.extend(time.to_be_bytes());
    frame.resize(65, 0);
    frame
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn option(code: u16, value: u64) -> Vec<u8> {
    let head = [code.to_ne_bytes(), 8_u16.to_ne_bytes()].concat();
    [head, value.to_ne_bytes().to_vec()].concat()
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let len = body.len() as u32 + 12;
    [words(&[kind, len]), body.to_vec(), words(&[len])].concat()
}

fn packet_block(frame: &[u8], options: &[u8]) -> Vec<u8> {
    let len = frame.len() as u32;
    let mut body = [words(&[0, 0, 0, len, len]), frame.to_vec()].concat();
    body.resize(body.len().next_multiple_of(4), 0);
    body.extend(options);
    block(6, &body)
}

fn pcapng() -> Vec<u8> {
    [
        block(0x0a0d_0d0a, &words(&[0x1a2b_3c4d, 1, 0, 0])),
        packet_block(&frame(0, 1_000), &[]),
        packet_block(&frame(2, 2_000), &option(4, 1)),
        packet_block(&frame(1, 3_000), &[]),
        packet_block(&frame(1, 3_000), &[]),
        packet_block(&[0; 60], &[]),
        block(
            5,
            &[words(&[0, 0, 0]), option(4, 9), option(5, 3), option(7, 2)].concat(),
        ),
    ]
    .concat()
}

const FOUND: Found = Found {
    stream_bytes: 0,
    packets: 5,
    original_bytes: 4 * 65 + 60,
    captured_bytes: 4 * 65 + 60,
    delivered: 3,
    doubled: 1,
    out_of_order: 1,
    packet_drops: 1,
    reported_drops: Some(2),
};

#[test]
fn counts_do_not_depend_on_where_a_stream_is_cut() -> anyhow::Result<()> {
    let stream = pcapng();
    let expected = Found {
        stream_bytes: stream.len() as u64,
        ..FOUND
    };
    for piece in 1..=stream.len() {
        let mut analysis = Analysis::new(100);
        for piece in stream.chunks(piece) {
            analysis.feed(piece, 5_000)?;
        }
        assert_eq!(*analysis.found(), expected, "pieces of {piece}");
    }
    Ok(())
}

#[test]
fn pcap_is_read_too() -> anyhow::Result<()> {
    for magic in [0xa1b2_c3d4, 0xa1b2_3c4d] {
        let mut stream = words(&[magic, 0, 0, 0, 262_144, 1]);
        for number in [0, 1, 3] {
            stream.extend(words(&[0, 0, 65, 1000]));
            stream.extend(frame(number, 1_000));
        }
        for piece in 1..=stream.len() {
            let mut analysis = Analysis::new(100);
            for piece in stream.chunks(piece) {
                analysis.feed(piece, 5_000)?;
            }
            let found = analysis.found();
            assert_eq!((found.packets, found.delivered, found.out_of_order), (3, 3, 0));
            assert_eq!((found.original_bytes, found.captured_bytes), (3000, 3 * 65));
            assert_eq!(found.reported_drops, None);
        }
    }
    Ok(())
}

#[test]
fn what_is_no_capture_is_refused() {
    assert!(Analysis::new(1).feed(b"HTTP/1.1 400", 0).is_err());
    let mut cut = pcapng();
    cut[4] = 0;
    assert!(Analysis::new(1).feed(&cut, 0).is_err());
}

#[test]
fn delays_are_exact_to_one_part_in_64() {
    for delay in [0, 1, 63, 64, 65, 127, 128, 1_000, 123_456_789, u64::MAX / 2] {
        let mut delays = Delays::default();
        delays.push(delay);
        let found = delays.quantile(0.5) * 1e9;
        assert!(
            (found - delay as f64).abs() <= delay as f64 / 64.0,
            "{delay}: {found}"
        );
    }
    let mut delays = Delays::default();
    (1..=1000).for_each(|delay| delays.push(delay * 1_000));
    assert!((delays.quantile(0.5) * 1e6 - 500.0).abs() < 500.0 / 64.0);
    assert!((delays.quantile(0.99) * 1e6 - 990.0).abs() < 990.0 / 64.0);
    assert!(Delays::default().quantile(0.5).is_nan());
}
