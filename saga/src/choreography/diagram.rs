//! A choreography as a picture, in the form of those of [orchestrated sagas](crate::diagram).
//!
//! ```
//! # use std::time::Duration;
//! use tailrace_saga::{Choreography, choreography::diagram};
//!
//! let buy = Choreography::define("buy", 1)
//!     .starts("shop", "order").emits("ordered").compensated_by("cancel")
//!     .step("bank", "pay", "ordered").emits("paid").refuses("refused").pivot("called-off")
//!     .ends_with("paid")
//!     .ends_within(Duration::from_secs(60), "expired")
//!     .build()?;
//!
//! assert!(diagram::states(&buy).starts_with("stateDiagram-v2"));
//! assert!(diagram::sequence(&buy).starts_with("sequenceDiagram"));
//! assert!(diagram::svg(&buy).starts_with("<svg"));
//! # Ok::<(), tailrace_saga::Error>(())
//! ```

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Choreography, Kind, Map, Role, Step};

/// Which event leads from which step to which, and which failure to which compensation, in Mermaid.
pub fn states(choreography: &Choreography) -> String {
    let map = choreography.map();
    let mut out = String::from("stateDiagram-v2\n");
    for (at, step) in map.steps.iter().enumerate() {
        let pivot = if is_pivot(step) { " (pivot)" } else { "" };
        line(&mut out, &format!("s{at} : {}{pivot}", step.name));
    }
    for (at, step) in map.steps.iter().enumerate() {
        if let Some(compensation) = step.compensation() {
            line(&mut out, &format!("u{at} : {compensation}"));
        }
    }
    for (at, step) in map.steps.iter().enumerate() {
        if step.on.is_none() {
            line(&mut out, &format!("[*] --> s{at}"));
        }
        for event in &step.emits {
            for next in led_to(map, event) {
                line(&mut out, &format!("s{at} --> s{next} : {event}"));
            }
            if map.ends.contains(event) {
                line(&mut out, &format!("s{at} --> [*] : {event}"));
            }
        }
        for failure in step.failures() {
            for undone in undone_by(map, failure) {
                line(&mut out, &format!("s{at} --> u{undone} : {failure}"));
            }
        }
    }
    if let (Some(expiry), Some((start, _))) = (&map.expiry, map.start()) {
        let pivot = map.pivot().map(|(at, _)| format!("s{at}"));
        let undone = undone_by(map, &expiry.event).into_iter().map(|at| format!("u{at}"));
        for to in pivot.into_iter().chain(undone) {
            line(&mut out, &format!("s{start} --> {to} : {}", expiry.event));
        }
    }
    out
}

/// The events of a saga in which nothing goes wrong, in Mermaid.
pub fn sequence(choreography: &Choreography) -> String {
    let map = choreography.map();
    let places = places(map);
    let place = |step: &Step| places.iter().position(|name| **name == *step.service).unwrap_or(0);
    let mut out = String::from("sequenceDiagram\n");
    for (at, name) in places.iter().enumerate() {
        line(&mut out, &format!("participant p{at} as {name}"));
    }
    for index in in_order(map) {
        let Some(step) = map.steps.get(index) else { continue };
        let from = place(step);
        let pivot = if is_pivot(step) { " (pivot)" } else { "" };
        line(&mut out, &format!("Note over p{from}: {}{pivot}", step.name));
        for event in &step.emits {
            let mut takers: Vec<usize> = led_to(map, event)
                .into_iter()
                .filter_map(|at| map.steps.get(at))
                .map(place)
                .collect();
            if map.ends.contains(event) {
                takers.extend(map.start().map(|(_, start)| place(start)));
            }
            takers.dedup();
            for to in takers {
                line(&mut out, &format!("p{from}-)p{to}: {event}"));
            }
        }
    }
    out
}

/// How wide and how high a step is drawn, and the room between two.
const BOX: (usize, usize) = (190, 54);
const GAP: (usize, usize) = (70, 22);
const TOP: usize = 24;

/// Its steps from left to right, a row for each service, and below the name of each what becomes of it. In the colours
/// of the page that it stands in.
pub fn svg(choreography: &Choreography) -> String {
    let map = choreography.map();
    let places = places(map);
    let depths = depths(map);
    let columns = depths.values().max().map_or(0, |deepest| deepest + 1);
    let width = GAP.0 + columns * (BOX.0 + GAP.0);
    let height = TOP + GAP.1 + map.steps.len() * (BOX.1 + GAP.1);
    let title = escaped(&map.definition());
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"{title}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"none\" \
         stroke=\"currentColor\">\n<title>{title}</title>\n"
    );
    // Steps of one service stand below each other, so that no two are drawn in one place.
    let mut rows: Vec<usize> = in_order(map);
    rows.sort_by_key(|index| {
        map.steps
            .get(*index)
            .and_then(|step| places.iter().position(|name| **name == *step.service))
    });
    let at: BTreeMap<usize, (usize, usize)> = rows
        .iter()
        .enumerate()
        .map(|(row, index)| {
            let column = depths.get(index).copied().unwrap_or_default();
            (*index, (GAP.0 + column * (BOX.0 + GAP.0), TOP + GAP.1 + row * (BOX.1 + GAP.1)))
        })
        .collect();
    for (index, step) in map.steps.iter().enumerate() {
        let Some((x, y)) = at.get(&index).copied() else { continue };
        drawn(&mut out, step, x, y);
        let nexts = step.emits.iter().flat_map(|event| led_to(map, event));
        for (to_x, to_y) in nexts.filter_map(|next| at.get(&next).copied()) {
            let (from_x, from_y) = (x + BOX.0, y + BOX.1 / 2);
            let (to_y, middle) = (to_y + BOX.1 / 2, from_x + GAP.0 / 2);
            let _ = writeln!(
                out,
                "<path d=\"M{from_x} {from_y} H{middle} V{to_y} H{to_x} m-6 -4 l6 4 l-6 4\"/>"
            );
        }
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"22\" stroke=\"none\" fill=\"currentColor\" font-weight=\"bold\">{title}</text>",
        GAP.0
    );
    out.push_str("</svg>\n");
    out
}

fn drawn(out: &mut String, step: &Step, x: usize, y: usize) {
    let stroke = if is_pivot(step) { 3 } else { 1 };
    let (name, said) = (escaped(&step.name), escaped(&format!("{}: {}", step.service, said(step))));
    let (text_x, name_y, said_y) = (x + 12, y + 23, y + 42);
    let (width, height) = BOX;
    let _ = writeln!(
        out,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"6\" \
         stroke-width=\"{stroke}\"/>\n\
         <text x=\"{text_x}\" y=\"{name_y}\" stroke=\"none\" fill=\"currentColor\">{name}</text>\n\
         <text x=\"{text_x}\" y=\"{said_y}\" stroke=\"none\" fill=\"currentColor\" \
         opacity=\"0.7\" font-size=\"11\">{said}</text>"
    );
}

fn said(step: &Step) -> String {
    match &step.kind {
        Some(Kind::Compensated { by, .. }) => by.to_string(),
        Some(Kind::Pivot { .. }) => "point of no return".to_owned(),
        Some(Kind::Retriable) => "until it is done".to_owned(),
        Some(Kind::NoEffect) | None => "nothing to undo".to_owned(),
    }
}

fn is_pivot(step: &Step) -> bool {
    matches!(step.kind, Some(Kind::Pivot { .. }))
}

fn led_to(map: &Map, event: &str) -> Vec<usize> {
    let steps = map.steps.iter().enumerate();
    steps.filter(|(_, step)| step.on.as_deref() == Some(event)).map(|(index, _)| index).collect()
}

fn undone_by(map: &Map, event: &str) -> Vec<usize> {
    let services = map.steps.iter().map(|step| &*step.service);
    let services: std::collections::BTreeSet<&str> = services.collect();
    let roles = services.into_iter().flat_map(|service| map.roles(service, event));
    let mut undone: Vec<usize> = roles
        .filter_map(|role| match role {
            Role::Undo(index) => Some(index),
            _ => None,
        })
        .collect();
    undone.sort_unstable();
    undone
}

/// Services in the order in which their first step is declared.
fn places(map: &Map) -> Vec<&str> {
    let mut places: Vec<&str> = Vec::new();
    for step in &map.steps {
        if !places.contains(&&*step.service) {
            places.push(&step.service);
        }
    }
    places
}

/// How many events lie between the start and each step.
fn depths(map: &Map) -> BTreeMap<usize, usize> {
    let mut depths: BTreeMap<usize, usize> = BTreeMap::new();
    let mut open: Vec<(usize, usize)> =
        map.start().map(|(index, _)| (index, 0)).into_iter().collect();
    while let Some((index, depth)) = open.pop() {
        depths.insert(index, depth);
        let events = map.steps.get(index).into_iter().flat_map(|step| &step.emits);
        open.extend(events.flat_map(|event| led_to(map, event)).map(|next| (next, depth + 1)));
    }
    depths
}

/// Steps by their distance from the start.
fn in_order(map: &Map) -> Vec<usize> {
    let mut order: Vec<(usize, usize)> =
        depths(map).into_iter().map(|(index, depth)| (depth, index)).collect();
    order.sort_unstable();
    order.into_iter().map(|(_, index)| index).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn line(out: &mut String, text: &str) {
    out.push_str("    ");
    out.push_str(text);
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choreography::tests::order;

    #[test]
    fn a_choreography_is_drawn_as_what_leads_where_and_what_undoes_what() {
        let expected = "\
stateDiagram-v2
    s0 : place-order
    s1 : reserve-credit
    s2 : allocate-stock
    s3 : capture-payment (pivot)
    s4 : approve-order
    u0 : reject-order
    u1 : release-credit
    u2 : free-stock
    [*] --> s0
    s0 --> s1 : order.placed
    s1 --> s2 : credit.reserved
    s1 --> u0 : credit.refused
    s2 --> s3 : stock.allocated
    s2 --> u0 : stock.refused
    s2 --> u1 : stock.refused
    s3 --> s4 : payment.captured
    s3 --> u0 : payment.refused
    s3 --> u1 : payment.refused
    s3 --> u2 : payment.refused
    s3 --> u0 : payment.called-off
    s3 --> u1 : payment.called-off
    s3 --> u2 : payment.called-off
    s4 --> [*] : order.approved
    s0 --> s3 : order.expired
";
        assert_eq!(states(&order().build().unwrap()), expected);
    }

    #[test]
    fn a_choreography_is_drawn_as_the_events_that_pass() {
        let expected = "\
sequenceDiagram
    participant p0 as orders
    participant p1 as customers
    participant p2 as warehouse
    participant p3 as payments
    Note over p0: place-order
    p0-)p1: order.placed
    Note over p1: reserve-credit
    p1-)p2: credit.reserved
    Note over p2: allocate-stock
    p2-)p3: stock.allocated
    Note over p3: capture-payment (pivot)
    p3-)p0: payment.captured
    Note over p0: approve-order
    p0-)p0: order.approved
";
        assert_eq!(sequence(&order().build().unwrap()), expected);
    }

    #[test]
    fn the_svg_holds_every_step_and_no_two_in_one_place() {
        let order = order().build().unwrap();
        let svg = svg(&order);

        for step in &order.map().steps {
            assert!(svg.contains(&format!(">{}</text>", step.name)), "{svg}");
        }
        let boxes: std::collections::BTreeSet<&str> =
            svg.lines().filter(|line| line.starts_with("<rect")).collect();
        assert_eq!(boxes.len(), 5);
        assert_eq!(svg.matches("<path").count(), 4);
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(svg.ends_with("</svg>\n"));
    }
}
