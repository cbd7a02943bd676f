//! Numbers in the sentences of messages.

#![forbid(unsafe_code)]

/// Formats a number with what it counts, in the plural where it is not one.
pub fn counted(count: usize, what: &str) -> String {
    format!("{} {what}{}", thousands(count), if count == 1 { "" } else { "s" })
}

/// Formats a number with a space between groups of three digits.
pub fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_a_plural() {
        assert_eq!(counted(1, "step"), "1 step");
        assert_eq!([counted(0, "row"), counted(1500, "row")], ["0 rows", "1 500 rows"]);
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(
            ["7", "1234", "134515008"].map(|n| thousands(n.parse().unwrap())),
            ["7", "1 234", "134 515 008"]
        );
    }
}
