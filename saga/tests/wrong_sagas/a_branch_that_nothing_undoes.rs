use crate::given::*;

fn wrong() {
    Saga::define("order", 1).parallel(|branches| branches.step("reserve", reserve_credit));
}
