//! Dates as Python's `datetime.now().strftime` writes them in the C locale.

use jiff::civil::{DateTime, Weekday};

/// A number, its width, and the character that fills it.
fn padded(value: i64, width: usize, fill: char, flag: Option<char>) -> String {
    match (flag, fill) {
        (Some('-'), _) => value.to_string(),
        (Some('_'), _) | (None, ' ') => format!("{value:width$}"),
        _ => format!("{value:0width$}"),
    }
}

/// Writes a time by a format. Directives that C does not know stay as they are.
pub(super) fn strftime(format: &str, time: DateTime, epoch: i64) -> String {
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut raw = String::from("%");
        let mut flag = None;
        let mut upper = None;
        while let Some(c) = chars.next_if(|c| "-_0^#".contains(*c)) {
            raw.push(c);
            if matches!(c, '^' | '#') { upper = Some(c) } else { flag = Some(c) }
        }
        let mut width = String::new();
        while let Some(c) = chars.next_if(char::is_ascii_digit) {
            raw.push(c);
            width.push(c);
        }
        if let Some(c) = chars.next_if(|c| "EO".contains(*c)) {
            raw.push(c);
        }
        let Some(code) = chars.next() else {
            out.push_str(&raw);
            break;
        };
        raw.push(code);
        let text = match directive(code, time, epoch, flag) {
            Some(text) => match (upper, code) {
                (Some('#'), 'p' | 'Z') => text.to_lowercase(),
                (Some(_), _) => text.to_uppercase(),
                _ => text,
            },
            None => raw,
        };
        // Widths are small numbers; larger ones are cut.
        let width = width.parse().unwrap_or(0_usize).min(1024);
        let is_number = text.starts_with(|c: char| c.is_ascii_digit());
        let fill = if is_number && flag != Some('_') || flag == Some('0') { "0" } else { " " };
        out.push_str(&fill.repeat(width.saturating_sub(text.len())));
        out.push_str(&text);
    }
    out
}

fn directive(code: char, time: DateTime, epoch: i64, flag: Option<char>) -> Option<String> {
    let date = time.date();
    let zeros = |value: i64, width| padded(value, width, '0', flag);
    let spaces = |value: i64, width| padded(value, width, ' ', flag);
    let hour = i64::from(time.hour());
    let hour12 = (hour + 11) % 12 + 1;
    let weekday = date.weekday();
    let from_sunday = i64::from(weekday.to_sunday_zero_offset());
    let day_of_year = i64::from(date.day_of_year());
    let week = date.iso_week_date();
    let year = i64::from(date.year());
    let whole = |format: &str| Some(strftime(format, time, epoch));
    Some(match code {
        'Y' => year.to_string(),
        'C' => zeros(year.div_euclid(100), 2),
        'y' => zeros(year.rem_euclid(100), 2),
        'G' => week.year().to_string(),
        'g' => zeros(i64::from(week.year()).rem_euclid(100), 2),
        'm' => zeros(date.month().into(), 2),
        'd' => zeros(date.day().into(), 2),
        'e' => spaces(date.day().into(), 2),
        'j' => zeros(day_of_year, 3),
        'B' => month(date.month()).to_owned(),
        'b' | 'h' => month(date.month())[..3].to_owned(),
        'A' => day(weekday).to_owned(),
        'a' => day(weekday)[..3].to_owned(),
        'u' => weekday.to_monday_one_offset().to_string(),
        'w' => from_sunday.to_string(),
        'U' => zeros((day_of_year + 6 - from_sunday) / 7, 2),
        'W' => zeros((day_of_year + 6 - (from_sunday + 6) % 7) / 7, 2),
        'V' => zeros(week.week().into(), 2),
        'H' => zeros(hour, 2),
        'k' => spaces(hour, 2),
        'I' => zeros(hour12, 2),
        'l' => spaces(hour12, 2),
        'p' => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
        'P' => (if hour < 12 { "am" } else { "pm" }).to_owned(),
        'M' => zeros(time.minute().into(), 2),
        'S' => zeros(time.second().into(), 2),
        'f' => format!("{:06}", time.subsec_nanosecond() / 1000),
        's' => epoch.to_string(),
        'F' => return whole("%Y-%m-%d"),
        'D' | 'x' => return whole("%m/%d/%y"),
        'T' | 'X' => return whole("%H:%M:%S"),
        'R' => return whole("%H:%M"),
        'r' => return whole("%I:%M:%S %p"),
        'c' => return whole("%a %b %e %H:%M:%S %Y"),
        // `datetime.now()` has no time zone.
        'z' | 'Z' => String::new(),
        'n' => "\n".to_owned(),
        't' => "\t".to_owned(),
        '%' => "%".to_owned(),
        _ => return None,
    })
}

fn month(month: i8) -> &'static str {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    MONTHS[usize::try_from(month - 1).unwrap_or(0)]
}

fn day(weekday: Weekday) -> &'static str {
    match weekday {
        Weekday::Monday => "Monday",
        Weekday::Tuesday => "Tuesday",
        Weekday::Wednesday => "Wednesday",
        Weekday::Thursday => "Thursday",
        Weekday::Friday => "Friday",
        Weekday::Saturday => "Saturday",
        Weekday::Sunday => "Sunday",
    }
}
