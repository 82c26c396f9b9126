use crate::given::*;

fn wrong() {
    Saga::define("order", 1).step("reserve", reserve_credit).step("reserve-2", reserve_credit);
}
