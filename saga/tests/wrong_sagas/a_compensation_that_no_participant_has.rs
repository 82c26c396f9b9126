use crate::given::*;

fn wrong() {
    Saga::define("order", 1).step("pay", capture_payment).compensate();
}
