//! Nothing: this package only names what is copied.
