//! A saga as a picture: Mermaid for documents, SVG for pages.
//!
//! ```
//! # use serde::{Deserialize, Serialize};
//! # use tailrace_saga::{Command, Saga};
//! # #[derive(Serialize, Deserialize)] struct Order {}
//! # #[derive(Serialize, Deserialize)] struct Pay {}
//! # impl Command for Pay {
//! #     const TYPE: &'static str = "pay.v1";
//! #     const TOPIC: &'static str = "payments.commands";
//! #     type Reply = ();
//! #     type Refusal = ();
//! # }
//! use tailrace_saga::diagram;
//!
//! let saga = Saga::<Order>::define("buy", 1).pivot("pay", |_: &Order| Pay {}).build()?;
//!
//! assert!(diagram::states(saga.definition()).starts_with("stateDiagram-v2"));
//! assert!(diagram::sequence(saga.definition()).starts_with("sequenceDiagram"));
//! assert!(diagram::svg(saga.definition()).starts_with("<svg"));
//! # Ok::<(), tailrace_saga::Error>(())
//! ```

use std::fmt::Write;
use std::ops::Range;

use crate::definition::{Definition, StepKind};
use crate::instance::{Instance, StepStatus};
use crate::structure::{Shape, Structure};

/// Its steps as states, forward and back, in Mermaid.
pub fn states(definition: &Definition) -> String {
    states_of(&definition.structure())
}

/// The messages of a saga in which nothing goes wrong, in Mermaid.
pub fn sequence(definition: &Definition) -> String {
    sequence_of(&definition.structure())
}

/// Its steps from left to right, those that are done side by side one below the other; below each what undoes it. In
/// the colours of the page that it stands in.
pub fn svg(definition: &Definition) -> String {
    svg_of(&definition.structure(), None)
}

/// A picture where the code is not at hand, and of how far a saga is.
#[derive(Debug, Clone, Copy)]
pub struct Drawing<'s> {
    structure: &'s Structure,
    saga: Option<&'s Instance>,
}

impl<'s> Drawing<'s> {
    /// Of a definition.
    pub fn of(structure: &'s Structure) -> Self {
        Self { structure, saga: None }
    }

    /// Coloured by how far this saga is.
    #[must_use]
    pub fn at(self, saga: &'s Instance) -> Self {
        Self { saga: Some(saga), ..self }
    }

    /// As [`states`]; what a saga is at has the classes `done`, `waits`, `stuck` and `undone`.
    pub fn states(&self) -> String {
        let mut out = states_of(self.structure);
        if let Some(saga) = self.saga {
            coloured(&mut out, self.structure, saga);
        }
        out
    }

    /// As [`sequence`].
    pub fn sequence(&self) -> String {
        sequence_of(self.structure)
    }

    /// As [`svg`]; the boxes of a saga have a colour each, and say how far they are.
    pub fn svg(&self) -> String {
        svg_of(self.structure, self.saga)
    }
}

/// How far a step is, as far as a picture tells it: the name of a class, and its colour.
fn look(status: StepStatus) -> Option<(&'static str, &'static str)> {
    match status {
        StepStatus::Pending => None,
        StepStatus::Done | StepStatus::Skipped => Some(("done", "#2e7d32")),
        StepStatus::Acting | StepStatus::Delayed | StepStatus::Compensating => {
            Some(("waits", "#1565c0"))
        }
        StepStatus::StuckActing | StepStatus::StuckCompensating => Some(("stuck", "#c62828")),
        StepStatus::Refused | StepStatus::Compensated | StepStatus::Waived => {
            Some(("undone", "#6d6d6d"))
        }
    }
}

fn coloured(out: &mut String, structure: &Structure, saga: &Instance) {
    for status in
        [StepStatus::Done, StepStatus::Acting, StepStatus::StuckActing, StepStatus::Compensated]
    {
        if let Some((class, colour)) = look(status) {
            line(out, &format!("classDef {class} fill:{colour},color:#ffffff"));
        }
    }
    for (number, group) in structure.groups().iter().enumerate() {
        for (at, step) in steps(structure, group).enumerate() {
            let status = saga.step(step.name()).map(|step| step.status());
            let Some((class, _)) = status.and_then(look) else { continue };
            let name =
                if group.len() > 1 { format!("g{number}s{at}") } else { format!("g{number}") };
            line(out, &format!("class {name} {class}"));
        }
    }
}

fn states_of(definition: &Structure) -> String {
    let mut out = String::from("stateDiagram-v2\n");
    let groups = definition.groups();
    for (number, group) in groups.iter().enumerate() {
        state(&mut out, definition, number, group);
    }
    let undone: Vec<usize> = (0..groups.len())
        .filter(|number| {
            groups.get(*number).is_some_and(|group| compensated(definition, group).next().is_some())
        })
        .collect();
    for number in &undone {
        let group = groups.get(*number).cloned().unwrap_or_default();
        let names: Vec<&str> = compensated(definition, &group).map(Shape::name).collect();
        line(&mut out, &format!("u{number} : undo {}", names.join(", ")));
    }
    line(&mut out, "[*] --> g0");
    for number in 1..groups.len() {
        line(&mut out, &format!("g{} --> g{number}", number - 1));
    }
    line(&mut out, &format!("g{} --> completed", groups.len().saturating_sub(1)));
    for (number, group) in groups.iter().enumerate() {
        let turns = steps(definition, group).any(|step| step.kind() != StepKind::Retriable);
        let is_pivot = steps(definition, group).any(|step| step.kind() == StepKind::Pivot);
        // What may have been done is undone too, but a refused pivot was not done.
        let from = undone.iter().rev().find(|at| **at < number || **at == number && !is_pivot);
        let to = from.map_or_else(|| "compensated".to_owned(), |at| format!("u{at}"));
        if turns {
            let why = if is_pivot { "refused" } else { "refused, late or cancelled" };
            line(&mut out, &format!("g{number} --> {to} : {why}"));
        }
    }
    for pair in undone.windows(2) {
        if let [before, after] = pair {
            line(&mut out, &format!("u{after} --> u{before}"));
        }
    }
    if let Some(first) = undone.first() {
        line(&mut out, &format!("u{first} --> compensated"));
    }
    line(&mut out, "completed --> [*]");
    if definition.steps().iter().any(|step| step.kind() != StepKind::Retriable) {
        line(&mut out, "compensated --> [*]");
    }
    out
}

fn state(out: &mut String, definition: &Structure, number: usize, group: &Range<usize>) {
    let mut members = steps(definition, group);
    match (members.next(), members.next()) {
        (Some(only), None) => line(out, &format!("g{number} : {}", label(only))),
        _ => {
            line(out, &format!("state g{number} {{"));
            for (at, step) in steps(definition, group).enumerate() {
                if at > 0 {
                    line(out, "    --");
                }
                line(out, &format!("    g{number}s{at} : {}", label(step)));
            }
            line(out, "}");
        }
    }
}

fn sequence_of(definition: &Structure) -> String {
    let mut out = String::from("sequenceDiagram\n");
    let mut topics: Vec<&str> = Vec::new();
    for (topic, _) in definition.steps().iter().filter_map(Shape::command) {
        if !topics.contains(&topic) {
            topics.push(topic);
        }
    }
    line(&mut out, &format!("participant saga as {}", definition.identity().name));
    for (at, topic) in topics.iter().enumerate() {
        line(&mut out, &format!("participant t{at} as {topic}"));
    }
    for group in definition.groups() {
        let is_parallel = group.len() > 1;
        for (at, step) in steps(definition, &group).enumerate() {
            if is_parallel {
                line(&mut out, if at == 0 { "par" } else { "and" });
            }
            exchange(&mut out, step, &topics);
        }
        if is_parallel {
            line(&mut out, "end");
        }
    }
    out
}

fn exchange(out: &mut String, step: &Shape, topics: &[&str]) {
    if step.kind() == StepKind::Pivot {
        line(out, "Note over saga: the pivot follows");
    }
    let Some((topic, message_type)) = step.command() else {
        let what = match step.signal_type() {
            Some(signal) => format!("{} waits for {signal}", step.name()),
            None if step.is_lock() => format!("{}, until the end", label(step)),
            None => format!("{} (local)", step.name()),
        };
        line(out, &format!("Note over saga: {what}"));
        return;
    };
    let at = topics.iter().position(|known| *known == topic).unwrap_or_default();
    let what =
        step.part().map_or_else(|| message_type.to_owned(), |part| format!("the saga {part}"));
    line(out, &format!("saga-)t{at}: {} ({what})", step.name()));
    line(out, &format!("t{at}--)saga: done"));
}

/// How wide and how high a step is drawn, and the room between two.
const BOX: (usize, usize) = (190, 54);
const GAP: (usize, usize) = (40, 22);

fn svg_of(definition: &Structure, saga: Option<&Instance>) -> String {
    let groups = definition.groups();
    let rows = groups.iter().map(Range::len).max().unwrap_or_default();
    let width = groups.len() * (BOX.0 + GAP.0) + GAP.0;
    let height = rows * (BOX.1 + GAP.1) + GAP.1 + 24;
    let identity = definition.identity();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"{identity}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"none\" \
         stroke=\"currentColor\">\n<title>{identity}</title>\n"
    );
    for (column, group) in groups.iter().enumerate() {
        let x = GAP.0 + column * (BOX.0 + GAP.0);
        if column > 0 {
            let (from, y) = (x - GAP.0, 24 + GAP.1 + BOX.1 / 2);
            let _ = writeln!(out, "<path d=\"M{from} {y} H{x} m-6 -4 l6 4 l-6 4\"/>");
        }
        for (row, step) in steps(definition, group).enumerate() {
            let status = saga.and_then(|saga| saga.step(step.name())).map(|step| step.status());
            drawn(&mut out, step, status, (x, 24 + GAP.1 + row * (BOX.1 + GAP.1)));
        }
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"22\" stroke=\"none\" fill=\"currentColor\" font-weight=\"bold\">{identity}</text>",
        GAP.0
    );
    out.push_str("</svg>\n");
    out
}

fn drawn(out: &mut String, step: &Shape, status: Option<StepStatus>, (x, y): (usize, usize)) {
    let stroke = if step.kind() == StepKind::Pivot { 3 } else { 1 };
    let name = escaped(&label_of_box(step));
    let kind = match status {
        Some(status) => status.as_str().replace('_', " "),
        None => said(step).to_owned(),
    };
    let colour = status.and_then(look).map_or_else(String::new, |(_, colour)| {
        format!(" fill=\"{colour}\" fill-opacity=\"0.35\"")
    });
    let (text_x, name_y, kind_y) = (x + 12, y + 23, y + 42);
    let (width, height) = BOX;
    let _ = writeln!(
        out,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"6\" \
         stroke-width=\"{stroke}\"{colour}/>\n\
         <text x=\"{text_x}\" y=\"{name_y}\" stroke=\"none\" fill=\"currentColor\">{name}</text>\n\
         <text x=\"{text_x}\" y=\"{kind_y}\" stroke=\"none\" fill=\"currentColor\" \
         opacity=\"0.7\" font-size=\"11\">{kind}</text>"
    );
}

/// What is said of a step below its name.
fn said(step: &Shape) -> &'static str {
    match step.kind() {
        StepKind::Compensable => "can be undone",
        StepKind::NoEffect if step.signal_type().is_some() => "waits for a signal",
        StepKind::NoEffect if step.is_lock() => "locked until the end",
        StepKind::NoEffect => "leaves nothing to undo",
        StepKind::Pivot => "point of no return",
        StepKind::Retriable => "repeated until it is done",
    }
}

/// The pivot is known by its frame.
fn label_of_box(step: &Shape) -> String {
    if step.kind() == StepKind::Pivot { step.name().to_owned() } else { label(step) }
}

fn label(step: &Shape) -> String {
    match step.kind() {
        StepKind::Pivot => format!("{} (pivot)", step.name()),
        _ if step.is_lock() => format!("lock {}", step.name()),
        _ => step.name().to_owned(),
    }
}

/// Names hold nothing that would have to be escaped; the rule for them may change.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn steps<'d>(
    definition: &'d Structure,
    group: &Range<usize>,
) -> impl Iterator<Item = &'d Shape> + use<'d> {
    definition.steps.iter().skip(group.start).take(group.len())
}

fn compensated<'d>(
    definition: &'d Structure,
    group: &Range<usize>,
) -> impl Iterator<Item = &'d Shape> + use<'d> {
    steps(definition, group).filter(|step| step.kind() == StepKind::Compensable)
}

fn line(out: &mut String, text: &str) {
    out.push_str("    ");
    out.push_str(text);
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Saga;
    use crate::fixture::{CapturePayment, Order, create_order};
    use crate::lock::Lock;

    #[test]
    fn a_saga_is_drawn_as_states_forward_and_back() {
        let expected = "\
stateDiagram-v2
    g0 : reserve-credit
    state g1 {
        g1s0 : allocate-stock
        --
        g1s1 : quote-shipping
    }
    g2 : capture-payment (pivot)
    g3 : send-mail
    u0 : undo reserve-credit
    u1 : undo allocate-stock
    [*] --> g0
    g0 --> g1
    g1 --> g2
    g2 --> g3
    g3 --> completed
    g0 --> u0 : refused, late or cancelled
    g1 --> u1 : refused, late or cancelled
    g2 --> u1 : refused
    u1 --> u0
    u0 --> compensated
    completed --> [*]
    compensated --> [*]
";
        assert_eq!(states(create_order().definition()), expected);
    }

    #[test]
    fn a_saga_is_drawn_as_the_messages_that_it_sends() {
        let expected = "\
sequenceDiagram
    participant saga as create-order
    participant t0 as customers.commands
    participant t1 as warehouse.commands
    participant t2 as shipping.commands
    participant t3 as payments.commands
    participant t4 as mail.commands
    saga-)t0: reserve-credit (credit.reserve.v1)
    t0--)saga: done
    par
    saga-)t1: allocate-stock (stock.allocate.v1)
    t1--)saga: done
    and
    saga-)t2: quote-shipping (shipping.quote.v1)
    t2--)saga: done
    end
    Note over saga: the pivot follows
    saga-)t3: capture-payment (payment.capture.v1)
    t3--)saga: done
    saga-)t4: send-mail (mail.send.v1)
    t4--)saga: done
";
        assert_eq!(sequence(create_order().definition()), expected);
    }

    #[test]
    fn a_lock_is_drawn_where_it_is_taken() {
        const ACCOUNT: Lock = Lock::named("account");
        let saga = Saga::<Order>::define("pay", 1)
            .lock_order(&["account"])
            .lock(ACCOUNT, |order: &Order| [order.customer.clone()])
            .pivot("capture", CapturePayment::of)
            .build()
            .unwrap();

        assert!(states(saga.definition()).contains("    g0 : lock account\n"));
        let sequence = sequence(saga.definition());
        assert!(
            sequence.contains("    Note over saga: lock account, until the end\n"),
            "{sequence}"
        );
        let svg = svg(saga.definition());
        assert!(svg.contains(">lock account</text>") && svg.contains(">locked until the end<"));
        assert!(svg.contains(">capture</text>"), "{svg}");
    }

    #[test]
    fn the_svg_holds_every_step_and_closes_what_it_opens() {
        let svg = svg(create_order().definition());

        for step in create_order().definition().steps() {
            assert!(svg.contains(&format!(">{}</text>", step.name())), "{svg}");
        }
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert_eq!(svg.matches("<rect").count(), 5);
        assert_eq!(svg.matches("<path").count(), 3);
        assert!(svg.ends_with("</svg>\n"));
    }
    #[test]
    fn a_picture_is_coloured_by_how_far_a_saga_is() {
        let saga = create_order();
        let running = crate::testing::Scenario::given(&saga, &crate::fixture::order())
            .when_done("reserve-credit", &crate::fixture::CreditReserved { hold: 3 });
        let structure = saga.definition().structure();

        let drawing = Drawing::of(&structure).at(running.instance());
        let (states, svg) = (drawing.states(), drawing.svg());

        assert!(states.starts_with(&super::states(saga.definition())), "{states}");
        assert!(states.contains("classDef done fill:"), "{states}");
        for named in ["class g0 done", "class g1s0 waits", "class g1s1 waits"] {
            assert!(states.contains(named), "{named} is not in {states}");
        }
        assert!(!states.contains("class g2 "), "{states}");
        assert_eq!(svg.matches("fill-opacity").count(), 3, "{svg}");
    }
}
