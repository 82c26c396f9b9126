use crate::given::*;

fn wrong() {
    Saga::define("order", 1)
        .pivot("pay", capture_payment)
        .on_refused(|_, _| OnRefused::GoOn);
}
