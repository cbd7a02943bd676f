//! Dense products.
