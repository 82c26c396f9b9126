use crate::given::*;

fn wrong() {
    Saga::define("order", 1).pivot("reserve", reserve_credit).compensate();
}
