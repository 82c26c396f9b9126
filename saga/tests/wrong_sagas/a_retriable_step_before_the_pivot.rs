use crate::given::*;

fn wrong() {
    Saga::<Order>::define("order", 1).retriable("mail", send_mail);
}
