//! A growing array that never moves: a vector doubles, and needs three times its size while it does.

/// Elements of one piece.
const PIECE: usize = 4096;

/// See the module.
pub(super) struct Chunked<T> {
    pieces: Vec<Vec<T>>,
}

impl<T> Chunked<T> {
    pub(super) fn new() -> Self {
        Self { pieces: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.pieces.last().map_or(0, |last| (self.pieces.len() - 1) * PIECE + last.len())
    }

    /// Bytes that the next element will take.
    pub(super) fn bytes_for_next(&self) -> usize {
        if self.len().is_multiple_of(PIECE) { PIECE * size_of::<T>() } else { 0 }
    }

    pub(super) fn push(&mut self, element: T) {
        match self.pieces.last_mut() {
            Some(last) if last.len() < PIECE => last.push(element),
            _ => {
                let mut piece = Vec::with_capacity(PIECE);
                piece.push(element);
                self.pieces.push(piece);
            }
        }
    }
}

impl<T> std::ops::Index<u32> for Chunked<T> {
    type Output = T;

    fn index(&self, at: u32) -> &T {
        &self.pieces[at as usize / PIECE][at as usize % PIECE]
    }
}

impl<T> std::ops::IndexMut<u32> for Chunked<T> {
    fn index_mut(&mut self, at: u32) -> &mut T {
        &mut self.pieces[at as usize / PIECE][at as usize % PIECE]
    }
}
