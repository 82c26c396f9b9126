//! Rows that were ever seen, each with a number, so that a world is made of numbers alone.

use std::hash::Hash;

use super::hash::Map;

/// The first row that is given has the number 0.
#[derive(Debug)]
pub(super) struct Rows<T> {
    all: Vec<Box<[T]>>,
    numbers: Map<Box<[T]>, u32>,
    /// By a row, a place and what stands there from now on.
    changed: Map<(u32, usize, T), u32>,
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self { all: Vec::new(), numbers: Map::default(), changed: Map::default() }
    }
}

impl<T: Copy + Eq + Hash> Rows<T> {
    pub(super) fn number(&mut self, row: Box<[T]>) -> u32 {
        if let Some(number) = self.numbers.get(&row) {
            return *number;
        }
        let number = u32::try_from(self.all.len()).expect("fewer rows than memory has");
        self.all.push(row.clone());
        self.numbers.insert(row, number);
        number
    }

    pub(super) fn row(&self, number: u32) -> &[T] {
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        self.all.get(at).expect("numbers are those of rows")
    }

    pub(super) fn at(&self, number: u32, place: usize) -> Option<T> {
        self.row(number).get(place).copied()
    }

    /// The row with something else at one place; itself where it has no such place.
    pub(super) fn with(&mut self, number: u32, place: usize, item: T) -> u32 {
        if let Some(known) = self.changed.get(&(number, place, item)) {
            return *known;
        }
        let mut row: Box<[T]> = self.row(number).into();
        if let Some(there) = row.get_mut(place) {
            *there = item;
        }
        let changed = self.number(row);
        self.changed.insert((number, place, item), changed);
        changed
    }
}
