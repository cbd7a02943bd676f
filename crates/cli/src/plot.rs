//! The loss curves as pictures.
//!
//! The PNG's text is set in DejaVu Sans, which the tool carries (Bitstream Vera licence), because a bare machine has
//! no fonts; the SVG's text is text.

use std::path::Path;
use std::sync::Once;

use metal_candle::training::metrics::Report;
use plotters::coord::Shift;
use plotters::prelude::*;

use metal_candle::atomic;

const SIZE: (u32, u32) = (900, 540);
const FONT: &str = "sans-serif";
const TRAIN: RGBColor = RGBColor(0x4c, 0x78, 0xa8);
const VALID: RGBColor = RGBColor(0xe4, 0x57, 0x56);

/// (step, loss) pairs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Curves {
    pub(crate) train: Vec<(f64, f64)>,
    pub(crate) valid: Vec<(f64, f64)>,
}

impl Curves {
    pub(crate) fn of(reports: &[Report]) -> Self {
        let curve = |loss: fn(&Report) -> Option<f64>| {
            reports
                .iter()
                .filter_map(|r| Some((r.step as f64, loss(r)?)))
                .filter(|(_, y)| y.is_finite())
                .collect()
        };
        Self { train: curve(|r| r.train_loss), valid: curve(|r| r.valid_loss) }
    }
}

/// Writes `loss.svg` and `loss.png` into a folder.
pub(crate) fn write(folder: &Path, title: &str, curves: &Curves) -> anyhow::Result<()> {
    atomic::write(&folder.join("loss.svg"), svg(title, curves)?.as_bytes())?;
    atomic::write(&folder.join("loss.png"), &png(title, curves)?)?;
    Ok(())
}

fn svg(title: &str, curves: &Curves) -> anyhow::Result<String> {
    font();
    let mut text = String::new();
    draw(SVGBackend::with_string(&mut text, SIZE).into_drawing_area(), title, curves)?;
    Ok(text)
}

fn png(title: &str, curves: &Curves) -> anyhow::Result<Vec<u8>> {
    font();
    let mut pixels = vec![0; SIZE.0 as usize * SIZE.1 as usize * 3];
    draw(BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area(), title, curves)?;
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, SIZE.0, SIZE.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header()?.write_image_data(&pixels)?;
    Ok(bytes)
}

/// Registers the font, of which the SVG needs the sizes of letters too.
fn font() {
    static FONT_ONCE: Once = Once::new();
    FONT_ONCE.call_once(|| {
        // The font is sound: a test draws with it. Were it not, drawing would fail and say so.
        let _ = plotters::style::register_font(FONT, FontStyle::Normal, dejavu::sans::regular());
    });
}

/// The range of values, a little wider than they are.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
    if low > high {
        return (0.0, 1.0);
    }
    let margin = ((high - low) * 0.05).max(0.05);
    ((low - margin).max(0.0), high + margin)
}

fn draw<B: DrawingBackend>(area: DrawingArea<B, Shift>, title: &str, curves: &Curves) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
{
    let failed = |error: DrawingAreaErrorKind<B::ErrorType>| {
        anyhow::anyhow!("the loss curve cannot be drawn: {error}")
    };
    let all = || curves.train.iter().chain(&curves.valid);
    let last = all().map(|&(step, _)| step).fold(1.0, f64::max);
    let (low, high) = range(all().map(|&(_, loss)| loss));
    area.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, (FONT, 20))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(58)
        .build_cartesian_2d(0..last as usize, low..high)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("loss (nats per token)")
        .y_label_formatter(&|y| format!("{y:.2}"))
        .label_style((FONT, 14))
        .axis_desc_style((FONT, 15))
        .bold_line_style(RGBColor(0xe4, 0xe4, 0xe4))
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(failed)?;
    for (name, colour, points) in [("train", TRAIN, &curves.train), ("validation", VALID, &curves.valid)] {
        if points.is_empty() {
            continue;
        }
        // Whole steps, so that a short run's axis has no ticks between them.
        let points: Vec<(usize, f64)> = points.iter().map(|&(step, loss)| (step as usize, loss)).collect();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))
            .map_err(failed)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(2)));
        if name == "validation" {
            let dots = points.iter().map(|&point| Circle::new(point, 4, colour.filled()));
            chart.draw_series(dots).map_err(failed)?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(RGBColor(0xcc, 0xcc, 0xcc))
        .label_font((FONT, 15))
        .draw()
        .map_err(failed)?;
    area.present().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curves() -> Curves {
        let report =
            |step, train_loss, valid_loss| Report { step, train_loss, valid_loss, ..Report::default() };
        Curves::of(&[
            report(0, None, Some(3.2)),
            report(5, Some(3.0), None),
            report(10, Some(2.0), Some(2.1)),
            report(15, Some(f64::NAN), None),
        ])
    }

    #[test]
    fn reports_become_two_curves_without_broken_values() {
        assert_eq!(curves().train, [(5.0, 3.0), (10.0, 2.0)]);
        assert_eq!(curves().valid, [(0.0, 3.2), (10.0, 2.1)]);
    }

    #[test]
    fn the_svg_holds_its_labels_and_the_same_run_gives_the_same_file() {
        let text = svg("SmolLM2 on shell", &curves()).unwrap();
        for label in ["SmolLM2 on shell", "loss (nats per token)", "step", "train", "validation"] {
            assert!(text.contains(label), "{label}");
        }
        assert_eq!(text, svg("SmolLM2 on shell", &curves()).unwrap());
    }

    #[test]
    fn the_png_decodes_and_holds_both_curves_and_text() {
        let bytes = png("title", &curves()).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), SIZE);
        let count =
            |colour: RGBColor| pixels.chunks(3).filter(|p| **p == [colour.0, colour.1, colour.2]).count();
        assert!(count(TRAIN) > 200 && count(VALID) > 200);
        // The title's letters: dark pixels in the first rows.
        let top = &pixels[..40 * SIZE.0 as usize * 3];
        assert!(top.chunks(3).filter(|p| p[0] < 80).count() > 30);
    }

    #[test]
    fn a_short_run_has_ticks_at_whole_steps_only() {
        let short = Curves { train: vec![(1.0, 3.0), (4.0, 2.0)], valid: vec![(0.0, 3.0)] };
        let text = svg("short", &short).unwrap();
        let ticks = |label: &str| text.lines().filter(|line| *line == label).count();
        assert_eq!(["0", "1", "2", "3", "4"].map(ticks), [1; 5]);
    }

    #[test]
    fn an_empty_run_still_has_axes() {
        let empty = Curves { train: Vec::new(), valid: Vec::new() };
        assert!(svg("empty", &empty).unwrap().contains("step"));
    }
}
