use crate::given::*;

fn wrong() {
    Saga::define("order", 1)
        .pivot("pay", capture_payment)
        .timeout(Duration::from_secs(60), OnTimeout::Compensate);
}
