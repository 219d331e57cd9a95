//! Drawings as pixels, lettered in whatever fonts the machine has: none come with the program. Knows SVG, not what is drawn.

use resvg::{
    render,
    tiny_skia::{Pixmap, Transform},
    usvg::{
        Options, Tree,
        fontdb::{Database, Family, Query},
    },
};
use std::sync::Arc;

/// Pixels of a unit of the drawing: enough for print at the size of a column.
const SCALE: f32 = 2.0;

/// Paints drawings.
pub struct Painter {
    options: Options<'static>,
}

/// A drawing that cannot be painted.
#[derive(Debug, thiserror::Error)]
pub enum PaintError {
    /// It is not SVG.
    #[error("not a drawing: {0}")]
    Svg(#[from] resvg::usvg::Error),
    /// It has no area, or more than fits into memory.
    #[error("a drawing of {0} by {1} units has no area that can be painted")]
    Size(f32, f32),
    /// Its pixels cannot be written down.
    #[error("{0}")]
    Encoding(String),
}

impl Painter {
    /// With the system's fonts.
    pub fn new() -> Self {
        let mut fonts = Database::new();
        fonts.load_system_fonts();
        Self::with(fonts)
    }

    fn with(mut fonts: Database) -> Self {
        let generic = Query { families: &[Family::SansSerif], ..Query::default() };
        if fonts.query(&generic).is_none() {
            // Any letters are better than none.
            let any = fonts.faces().find_map(|face| Some(face.families.first()?.0.clone()));
            any.into_iter().for_each(|family| fonts.set_sans_serif_family(family));
        }
        Self { options: Options { fontdb: Arc::new(fonts), ..Options::default() } }
    }

    /// Whether there is any font: without, drawings have no letters.
    pub fn has_fonts(&self) -> bool {
        !self.options.fontdb.is_empty()
    }

    /// A drawing that needs no page around it, as PNG.
    ///
    /// # Errors
    /// If it is not SVG, or has no area.
    pub fn png(&self, svg: &str) -> Result<Vec<u8>, PaintError> {
        let tree = Tree::from_str(svg, &self.options)?;
        let size = tree.size();
        let [width, height] = [size.width(), size.height()].map(|side| (side * SCALE).ceil() as u32);
        let pixels = Pixmap::new(width, height);
        let mut pixels = pixels.ok_or(PaintError::Size(size.width(), size.height()))?;
        render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
        pixels.encode_png().map_err(|error| PaintError::Encoding(error.to_string()))
    }
}

impl Default for Painter {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Line, Lines, Page};

    fn drawing() -> String {
        let line = Line { name: "a line", points: vec![(0.0, 0.0), (1.0, 1.0)], band: Vec::new() };
        let mut page = Page::new("page");
        page.figure(&Lines { lines: vec![line], axes: ("x", "y"), range: None }, "a line");
        page.figures()[0].clone()
    }

    /// Pixels of an ink: dark, and without colour as letters are.
    fn letters(png: &[u8]) -> usize {
        let pixels = Pixmap::decode_png(png).unwrap();
        let dark = |of: &&resvg::tiny_skia::PremultipliedColorU8| of.red() < 120 && of.red().abs_diff(of.blue()) < 30;
        pixels.pixels().iter().filter(dark).count()
    }

    #[test]
    fn a_figure_becomes_twice_as_many_pixels_with_letters_where_there_are_fonts() {
        let (svg, painter) = (drawing(), Painter::new());
        let bare = Painter::with(Database::new());
        assert!(!bare.has_fonts());
        let (with, without) = (painter.png(&svg).unwrap(), bare.png(&svg).unwrap());
        let size = Tree::from_str(&svg, &bare.options).unwrap().size();
        let pixels = Pixmap::decode_png(&without).unwrap();
        assert_eq!((pixels.width(), pixels.height()), ((2.0 * size.width()) as u32, (2.0 * size.height()) as u32));
        assert!(pixels.pixels().iter().all(|of| of.alpha() == 255), "on a white ground");
        assert_eq!(letters(&without), 0);
        assert_eq!(letters(&with) > 100, painter.has_fonts());
    }

    #[test]
    fn what_is_no_drawing_is_refused() {
        let painter = Painter::with(Database::new());
        for (svg, what) in [("", "not a drawing"), ("<p>", "not a drawing"), ("<svg xmlns='x'/>", "not a drawing")] {
            let error = painter.png(svg).unwrap_err().to_string();
            assert!(error.contains(what), "{svg}: {error}");
        }
    }
}
