//! Numbers that look random, and are the same each time.

/// Generator of numbers: SplitMix64 of Steele, Lea and Flood (2014).
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Of 64 bits.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Less than `end`, which is not zero.
    pub fn below(&mut self, end: u32) -> u32 {
        (self.number() % u64::from(end)) as u32
    }

    /// True so many times of a hundred.
    pub fn percent(&mut self, share: u32) -> bool {
        self.below(100) < share
    }

    /// One of these, which are not none.
    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u32) as usize].clone()
    }

    /// So many bytes.
    pub fn bytes(&mut self, len: u32) -> Vec<u8> {
        (0..len).map(|_| self.number() as u8).collect()
    }
}
