use serde_json::{Value, json};

use super::*;
use crate::correlation::{Epoch, SagaId};
use crate::fixture::{at, create_order, order, saga_id};
use crate::instance::Status;

fn started() -> Transition {
    let saga = create_order();
    let instance = saga.instance(saga_id(), &order(), at(0)).unwrap();
    step(saga.definition(), &instance, Input::Start, at(0)).unwrap()
}

fn answer(of: &CommandMessage, answer: Answer, payload: Value) -> Input {
    Input::Reply { correlation: of.instruction.correlation.clone(), answer, payload }
}

#[test]
fn a_saga_goes_forward_to_its_end() {
    let saga = create_order();
    let mut turn = started();
    let mut asked = Vec::new();
    while let Some(command) = turn.commands.pop() {
        asked.push(command.instruction.correlation.step.to_string());
        let mut left = std::mem::take(&mut turn.commands);
        let reply = answer(&command, Answer::Done, json!({ "hold": 3 }));
        let payload = if command.request.key == "ada" {
            reply
        } else {
            answer(&command, Answer::Done, Value::Null)
        };
        turn = step(saga.definition(), &turn.instance, payload, at(1)).unwrap();
        turn.commands.append(&mut left);
    }

    assert_eq!(turn.instance.status(), Status::Completed);
    assert_eq!(saga.data(&turn.instance).unwrap().hold, Some(3));
    assert_eq!(asked.len(), 5, "{asked:?}");
}

#[test]
fn a_refusal_undoes_what_was_done() {
    let saga = create_order();
    let turn = started();
    let reply = answer(&turn.commands[0], Answer::Done, json!({ "hold": 3 }));
    let turn = step(saga.definition(), &turn.instance, reply, at(1)).unwrap();
    let refusal = answer(&turn.commands[1], Answer::Refused, Value::Null);

    let turn = step(saga.definition(), &turn.instance, refusal, at(2)).unwrap();

    assert_eq!(turn.instance.status(), Status::Compensating);
    let command = &turn.commands[0];
    assert_eq!(command.request.message_type.as_ref(), "stock.allocate.v1");
    assert_eq!(command.instruction.correlation.operation, Operation::Compensation);
    assert_eq!(command.instruction.correlation.epoch, Epoch::new(2));
    assert_eq!(command.instruction.deadline, None);

    let turn = step(
        saga.definition(),
        &turn.instance,
        answer(command, Answer::Blocked, Value::Null),
        at(3),
    )
    .unwrap();
    let command = &turn.commands[0];
    assert_eq!(command.request.payload, json!({ "customer": "ada", "cents": 1999 }));
    let turn =
        step(saga.definition(), &turn.instance, answer(command, Answer::Done, Value::Null), at(4))
            .unwrap();
    assert_eq!(turn.instance.status(), Status::Compensated);
    assert_ne!(turn.instance.id, SagaId::from_uuid(uuid::Uuid::nil()));
}

#[test]
fn an_instance_is_read_as_it_was_written() {
    let turn = started();

    let text = serde_json::to_string(&turn.instance).unwrap();

    assert_eq!(serde_json::from_str::<Instance>(&text).unwrap(), turn.instance);
}
