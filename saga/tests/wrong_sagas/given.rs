//! A saga that is right, and what the wrong ones are made of.

pub use std::time::Duration;

use serde::{Deserialize, Serialize};
pub use tailrace_saga::{
    Command, Compensable, Error, Forward, Irrefusable, LocalCx, Lock, OnRefused, OnTimeout, Retry,
    Saga, SagaId, Sagas, local,
};

#[derive(Serialize, Deserialize)]
pub struct Order {
    pub hold: Option<i64>,
}

/// The data of another saga.
#[derive(Serialize, Deserialize)]
pub struct Invoice {}

#[derive(Serialize, Deserialize)]
pub struct ReserveCredit {}

#[derive(Serialize, Deserialize)]
pub struct CreditReserved {
    pub hold: i64,
}

impl Command for ReserveCredit {
    const TYPE: &'static str = "credit.reserve.v1";
    const TOPIC: &'static str = "customers.commands";
    type Reply = CreditReserved;
    type Refusal = String;
}

impl Compensable for ReserveCredit {}

/// Nobody can undo it.
#[derive(Serialize, Deserialize)]
pub struct CapturePayment {}

impl Command for CapturePayment {
    const TYPE: &'static str = "payment.capture.v1";
    const TOPIC: &'static str = "payments.commands";
    type Reply = ();
    type Refusal = String;
}

#[derive(Serialize, Deserialize)]
pub struct SendMail {}

impl Command for SendMail {
    const TYPE: &'static str = "mail.send.v1";
    const TOPIC: &'static str = "mail.commands";
    type Reply = ();
    type Refusal = Irrefusable;
}

pub fn reserve_credit(_: &Order) -> ReserveCredit {
    ReserveCredit {}
}

pub fn capture_payment(_: &Order) -> CapturePayment {
    CapturePayment {}
}

pub fn send_mail(_: &Order) -> SendMail {
    SendMail {}
}

pub async fn note(_: LocalCx<'_>, _: Order) -> Result<Result<(), Irrefusable>, std::io::Error> {
    Ok(Ok(()))
}

pub async fn forget(_: LocalCx<'_>, _: Order) -> Result<(), std::io::Error> {
    Ok(())
}

pub const ACCOUNT: Lock = Lock::named("account");

pub fn account(_: &Order) -> [String; 1] {
    ["ada".to_owned()]
}

pub fn right() -> Result<Saga<Order>, Error> {
    Saga::define("right", 1)
        .lock_order(&["account"])
        .lock(ACCOUNT, account)
        .step("reserve", reserve_credit)
        .on_reply(|order, reply| order.hold = Some(reply.hold))
        .compensate()
        .step("note", local(note).undo(forget))
        .compensate()
        .pivot("pay", capture_payment)
        .timeout(Duration::from_secs(1), Forward::Park)
        .retriable("mail", send_mail)
        .retriable("note-again", local(note))
        .build()
}
