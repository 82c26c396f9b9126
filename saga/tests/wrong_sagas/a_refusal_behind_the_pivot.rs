use crate::given::*;

fn wrong() {
    Saga::define("order", 1).pivot("pay", capture_payment).retriable("reserve", reserve_credit);
}
