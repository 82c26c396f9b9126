use crate::builder::Saga;
use crate::definition::{Forward, OnTimeout};
use crate::fixture::{
    AllocateStock, CapturePayment, Order, QuoteShipping, ReserveCredit, SECOND, SendMail,
    create_order,
};

use super::*;

fn three_steps() -> Saga<Order> {
    Saga::define("three", 1)
        .step("reserve", ReserveCredit::of)
        .timeout(SECOND, OnTimeout::Retry)
        .on_refused(|_, _| OnRefused::Retry)
        .compensate()
        .step("allocate", AllocateStock::of)
        .timeout(SECOND, OnTimeout::Compensate)
        .compensate()
        .pivot("pay", CapturePayment::of)
        .build()
        .unwrap()
}

fn parallel() -> Saga<Order> {
    Saga::define("parallel", 1)
        .step("reserve", ReserveCredit::of)
        .compensate()
        .parallel(|branches| {
            branches
                .step("allocate", AllocateStock::of)
                .compensate()
                .step("quote", QuoteShipping::of)
                .no_effect()
        })
        .pivot("pay", CapturePayment::of)
        .timeout(SECOND, Forward::Retry)
        .build()
        .unwrap()
}

#[test]
fn measures() {
    for saga in [three_steps(), parallel(), create_order()] {
        let begun = std::time::Instant::now();
        let coverage = check(saga.definition());
        eprintln!("{:?} {}", begun.elapsed(), match coverage { Ok(c) => c.to_string(), Err(e) => e.to_string() });
    }
    let _ = SendMail::of;
}
