//! What the benchmarks look at streams with, and what they make of figures.

pub mod analysis;
pub mod report;
