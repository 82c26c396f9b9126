use crate::given::*;

fn wrong() {
    Saga::define("order", 1).step("reserve", reserve_credit).pivot("pay", capture_payment);
}
