use crate::given::*;

fn wrong() {
    Saga::define("order", 1)
        .pivot("pay", capture_payment)
        .retriable("mail", send_mail)
        .on_refused(|_, _| OnRefused::Abort);
}
