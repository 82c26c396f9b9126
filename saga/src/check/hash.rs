//! A hash that is quick in a debug build: an exploration runs inside `cargo test` and hashes a world for each move.

use std::hash::{BuildHasherDefault, Hasher};

/// A map by the quick hash. Its keys are our own, so nobody can choose them to collide.
pub(super) type Map<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<Fold>>;

/// Multiplies and rotates.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Fold(u64);

impl Fold {
    fn add(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x517C_C1B7_2722_0A95);
    }
}

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let number = chunk.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
            self.add(number);
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.add(number.into());
    }

    fn write_u16(&mut self, number: u16) {
        self.add(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.add(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.add(number);
    }

    fn write_u128(&mut self, number: u128) {
        let half = |bits| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
        self.add(half(number));
        self.add(half(number >> 64));
    }

    fn write_usize(&mut self, number: usize) {
        self.add(u64::try_from(number).unwrap_or_default());
    }

    fn write_i8(&mut self, number: i8) {
        self.add(number.unsigned_abs().into());
        self.add(number.is_negative().into());
    }
}
