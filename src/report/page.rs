//! A page: headings, paragraphs, tables that sort at a click, figures. Everything that is given is text and is escaped here.

use std::fmt::Write;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5d6670;--line:#d5dae0;--paper:#fff;--band:#f4f6f8}
@media(prefers-color-scheme:dark){:root{--ink:#e8ebee;--soft:#9aa4ae;--line:#39414a;--paper:#14181c;--band:#1c2228}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.8rem;line-height:1.2}h2{font-size:1.25rem;margin-top:2.5rem;border-top:1px solid var(--line);padding-top:1rem}
p{max-width:46rem}table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{cursor:pointer;color:var(--soft);font-weight:600}
pre{background:var(--band);padding:.8rem 1rem;overflow-x:auto;font-size:.85rem}
figure{margin:1rem 1.5rem 1rem 0;display:inline-block;vertical-align:top}figcaption{color:var(--soft);font-size:.85rem;max-width:34rem}
.wide{overflow-x:auto}svg{max-width:100%;height:auto}svg text{fill:var(--ink);font:12px system-ui,sans-serif}
svg .soft{fill:var(--soft)}svg .axis{stroke:var(--line)}";

/// Sorts a table by the column whose head is clicked, numbers as numbers; again, the other way.
const SCRIPT: &str = "\
for(const h of document.querySelectorAll('th'))h.onclick=()=>{const t=h.closest('table'),b=t.tBodies[0],i=h.cellIndex,
d=h.dataset.up=h.dataset.up=='1'?'0':'1',v=r=>r.cells[i].textContent.trim(),n=s=>parseFloat(s.replace('\\u2212','-'));
[...b.rows].sort((x,y)=>{const p=v(x),q=v(y),m=n(p),k=n(q);return(isNaN(m)||isNaN(k)?p.localeCompare(q):m-k)*(d=='1'?1:-1)})
.forEach(r=>b.append(r))}";

/// `text` as it may stand in HTML and in a quoted attribute.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // Control characters are no part of HTML.
            c if c.is_control() && !matches!(c, '\n' | '\t') => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// Rows under a head; the first column is words, the others are figures.
pub struct Table<'a> {
    /// What the columns are.
    pub head: Vec<&'a str>,
    /// As many cells each as the head has.
    pub rows: Vec<Vec<String>>,
}

/// A page as it grows.
pub struct Page {
    title: String,
    body: String,
    figures: Vec<String>,
}

impl Page {
    /// An empty page.
    pub fn new(title: &str) -> Self {
        Self { title: escape(title), body: String::new(), figures: Vec::new() }
    }

    /// A section's heading.
    pub fn section(&mut self, heading: &str) {
        self.put("h2", heading);
    }

    /// A paragraph.
    pub fn text(&mut self, text: &str) {
        self.put("p", text);
    }

    /// Lines as they are, such as commands.
    pub fn lines(&mut self, text: &str) {
        self.put("pre", text);
    }

    fn put(&mut self, element: &str, text: &str) {
        writeln!(self.body, "<{element}>{}</{element}>", escape(text)).expect("memory does not fail");
    }

    /// A table.
    pub fn table(&mut self, table: &Table<'_>) {
        let cells = |cells: &mut dyn Iterator<Item = &str>, element: &str| {
            let cell = |cell: &str| format!("<{element}>{}</{element}>", escape(cell));
            format!("<tr>{}</tr>", cells.map(cell).collect::<String>())
        };
        let head = cells(&mut table.head.iter().copied(), "th");
        let rows = table.rows.iter().map(|row| cells(&mut row.iter().map(String::as_str), "td"));
        let rows = rows.collect::<Vec<_>>().join("\n");
        writeln!(self.body, "<div class=\"wide\"><table><thead>{head}</thead><tbody>\n{rows}\n</tbody></table></div>")
            .expect("memory does not fail");
    }

    /// A drawing with what it shows in words.
    pub fn figure(&mut self, drawing: &impl Drawing, caption: &str) {
        let svg = drawing.svg();
        writeln!(self.body, "<figure>{svg}<figcaption>{}</figcaption></figure>", escape(caption))
            .expect("memory does not fail");
        self.figures.push(alone(&svg));
    }

    /// Every figure so far as a file of its own.
    pub fn figures(&self) -> &[String] {
        &self.figures
    }

    /// The whole page.
    pub fn finish(self) -> String {
        let Self { title, body, .. } = self;
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>{title}</title>\n\
             <style>\n{STYLE}\n</style></head><body>\n<h1>{title}</h1>\n{body}<script>\n{SCRIPT}\n</script></body></html>\n"
        )
    }
}

/// A drawing that needs no page around it: with a name space, a white ground and the page's light colours.
fn alone(svg: &str) -> String {
    const LIGHT: &str = "<style>text{fill:#1b1f24;font:12px system-ui,'DejaVu Sans',sans-serif}.soft{fill:#5d6670}\
.axis{stroke:#d5dae0}</style><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>";
    match svg.split_once('>') {
        Some((head, body)) => {
            format!("{} xmlns=\"http://www.w3.org/2000/svg\"{}>{LIGHT}{body}\n", &head[..4], &head[4..])
        }
        None => svg.to_owned(),
    }
}

/// What can stand in a figure.
pub trait Drawing {
    /// As one SVG element.
    fn svg(&self) -> String;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_given_stays_text() {
        let nasty = "<script>alert('x')</script> & \"q\" \u{1b}[0m";
        let mut page = Page::new(nasty);
        page.section(nasty);
        page.text(nasty);
        page.lines(nasty);
        page.table(&Table { head: vec![nasty], rows: vec![vec![nasty.into()]] });
        let html = page.finish();
        assert_eq!(html.matches("<script>").count(), 1, "only the page's own");
        assert!(!html.contains("alert('x')") && !html.contains('\u{1b}'));
        for fetched in ["http:", "https:", "src=", "href=", "@import", "url("] {
            assert!(!html.contains(fetched), "{fetched}");
        }
    }
}
