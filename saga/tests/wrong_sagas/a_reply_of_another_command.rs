use crate::given::*;

fn wrong() {
    Saga::define("order", 1)
        .step("reserve", reserve_credit)
        .on_reply(|_, reply: String| drop(reply))
        .compensate();
}
