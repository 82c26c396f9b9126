//! Nothing is tested here: cargo builds a package's program where the package has a test. The test that runs the
//! examples and compares what they say is `tests/e2e/examples.rs`.

fn main() {}
