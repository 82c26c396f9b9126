use crate::given::*;

fn wrong() {
    Saga::define("order", 1).pivot("pay", capture_payment).lock(ACCOUNT, account);
}
