//! Every rule has a fault that it finds and, one step away, a legal call that no rule complains about.

#![allow(unreachable_pub, reason = "the modules of one test")]

mod kernels;
mod layouts;
mod lists;

use std::collections::BTreeSet;

use softmetal_formulas::element::Element;
use softmetal_formulas::matrix::{Matrix, MatrixDescriptor};
use softmetal_formulas::rules::{RULES, Refusal, Severity, rule};
use softmetal_formulas::vector::{Vector, VectorDescriptor};

/// The id of a rule, what the planted fault gives, and what the nearest legal call gives.
pub type Pair = (&'static str, Vec<Refusal>, Vec<Refusal>);

/// The refusal, or else the suspicions.
pub fn found<T>(checked: Result<T, Refusal>, suspects: impl FnOnce() -> Vec<Refusal>) -> Vec<Refusal> {
    match checked {
        Ok(_) => suspects(),
        Err(refusal) => vec![refusal],
    }
}

/// The refusal of a constructor.
pub fn made<T>(result: Result<T, Refusal>) -> Vec<Refusal> {
    found(result, Vec::new)
}

/// An address for operands that are checked and never run: far from those of other slots.
pub fn address(slot: usize) -> *mut u8 {
    std::ptr::without_provenance_mut((slot + 1) << 44)
}

/// A matrix at the address of a slot, in a buffer long enough for any.
pub fn place(slot: usize, descriptor: MatrixDescriptor) -> Matrix {
    Matrix::new(address(slot), 1 << 40, 0, descriptor).unwrap()
}

/// One matrix without padding.
pub fn matrix(slot: usize, rows: usize, columns: usize, element: Element) -> Matrix {
    place(slot, MatrixDescriptor::packed(rows, columns, element).unwrap())
}

/// A batch of matrices without padding.
pub fn matrices(slot: usize, count: usize, rows: usize, columns: usize, element: Element) -> Matrix {
    let row_bytes = columns * element.size();
    place(slot, MatrixDescriptor::batch(rows, columns, count, row_bytes, rows * row_bytes, element).unwrap())
}

/// One vector.
pub fn vector(slot: usize, length: usize, element: Element) -> Vector {
    let descriptor = VectorDescriptor::new(length, element).unwrap();
    Vector::new(address(slot), 1 << 40, 0, descriptor).unwrap()
}

fn pairs() -> Vec<Pair> {
    [layouts::pairs(), layouts::array_pairs(), kernels::pairs(), kernels::row_pairs(), lists::pairs()]
        .concat()
}

#[test]
fn every_rule_has_a_fault_and_a_legal_neighbour() {
    let pairs = pairs();
    for (id, fault, legal) in &pairs {
        let rule = rule(id).unwrap_or_else(|| panic!("{id} is no rule"));
        let ids: Vec<_> = fault.iter().map(|refusal| refusal.rule.id).collect();
        match rule.severity {
            Severity::Documented => assert_eq!(ids, [*id], "{fault:?}"),
            Severity::Suspected => assert!(ids.contains(id), "{id}: {fault:?}"),
        }
        assert!(legal.is_empty(), "the legal neighbour of {id} is refused: {legal:?}");
        assert!(fault.iter().all(|refusal| !refusal.message.is_empty()));
    }
    let covered: BTreeSet<_> = pairs.iter().map(|pair| pair.0).collect();
    let missing: Vec<_> = RULES.iter().map(|rule| rule.id).filter(|id| !covered.contains(id)).collect();
    assert!(missing.is_empty(), "rules without a pair: {missing:?}");
}

#[test]
fn rules_are_unique_and_complete() {
    let ids: BTreeSet<_> = RULES.iter().map(|rule| rule.id).collect();
    assert_eq!(ids.len(), RULES.len());
    for rule in RULES {
        assert!(
            rule.id.starts_with("mps-") && rule.text.ends_with('.') && !rule.source.is_empty(),
            "{rule:?}"
        );
    }
}

#[test]
fn every_id_in_the_sources_is_a_rule() {
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in std::fs::read_dir(sources).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for part in text.split("\"mps-").skip(1) {
            let id = format!("mps-{}", part.split('"').next().unwrap());
            assert!(rule(&id).is_some(), "{id} in {}", path.display());
        }
    }
}
