use crate::given::*;

fn wrong() {
    Saga::<Invoice>::define("invoice", 1).step("reserve", reserve_credit).compensate();
}
