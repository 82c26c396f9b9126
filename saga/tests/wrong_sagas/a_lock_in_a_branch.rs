use crate::given::*;

fn wrong() {
    Saga::<Order>::define("order", 1).parallel(|branches| branches.lock(ACCOUNT, account));
}
