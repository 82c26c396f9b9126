use crate::given::*;

fn wrong() {
    Saga::define("order", 1).step("note", local(note)).compensate();
}
