//! The shop carries all of its orders through, by choreography and by orchestration, while things go wrong, and its books
//! add up.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// It takes no longer, on a busy machine and without optimisation.
const END_MAX: Duration = Duration::from_secs(400);

/// Of the machinery, those that need no pause of a server.
const TROUBLES: &str =
    "card-declined,out-of-stock,carrier-refuses,duplicates,relay-crash,payments-crash";

#[tokio::test]
async fn the_books_of_the_shop_add_up_whatever_is_killed_and_delivered_twice() {
    let program = Path::new(env!("CARGO_BIN_EXE_node")).with_file_name("shop");
    assert!(
        program.is_file(),
        "{} is missing: `cargo test --workspace` builds it, and so does `cargo build -p shop`",
        program.display()
    );
    let mut command = Command::new(program);
    command
        .args(["--headless", "--orders", "40", "--seed", "7", "--trouble", TROUBLES])
        .stdin(Stdio::null())
        .kill_on_drop(true);

    let output = tokio::time::timeout(END_MAX, command.output()).await;

    let output = output.expect("the shop ends in time").expect("the shop starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}:\n{said}\n{complained}", output.status);
    assert!(said.contains("orders ended            40 of 40"), "{said}");
}
