use crate::given::*;

fn wrong() {
    Saga::<Order>::define("order", 1).parallel(|branches| branches.pivot("pay", capture_payment));
}
