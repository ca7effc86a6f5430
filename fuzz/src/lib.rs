//! What several fuzz targets share: a measure of memory, the cutting of streams, and a naive shell around the dispatch.

pub mod heap;
pub mod shell;
pub mod stream;
