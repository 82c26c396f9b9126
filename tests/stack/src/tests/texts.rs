//! Names, and the texts of other programs.

use crate::home::User;
use crate::process::State;
use crate::{kafka, maven, postgres, process, unique};

#[test]
fn a_unique_name_fits_every_use() {
    let check = |name: &str, stem: &str| {
        let made = unique(name);
        let suffix = made.strip_prefix(stem).expect("the name begins as given");
        assert_eq!(suffix.len(), 9, "{made}");
        assert!(suffix.starts_with('_') && made.len() <= 63, "{made}");
        assert_ne!(made, unique(name));
    };

    check("orders", "orders");
    check("Orders-2024.É", "orders_2024__");
    check("1st", "st");
    check("", "t");
    check(&"x".repeat(100), &"x".repeat(54));
}

#[test]
fn the_size_of_a_download_is_read_from_maven() {
    let check = |line: &str, size: Option<u64>| assert_eq!(maven::downloaded(line), size, "{line}");

    let from = "[INFO] Downloaded from central: https://example.org/a(1).jar";
    check(&format!("{from} (3.9 kB at 23 kB/s)"), Some(3_900));
    check(&format!("{from} (15 MB at 2.1 MB/s)"), Some(15_000_000));
    check(&format!("{from} (800 B at 1 B/s)"), Some(800));
    check("[INFO] Downloading from central: https://example.org/a(1).jar", None);
    check("[INFO] BUILD SUCCESS", None);
}

#[test]
fn versions_are_read_from_what_programs_say() {
    let java = |text: &str| kafka::java_version(text).map(|(major, _)| major);
    assert_eq!(java("openjdk version \"17.0.15\" 2025-04-15\nOpenJDK"), Some(17));
    assert_eq!(java("openjdk version \"25\" 2025-09-16"), Some(25));
    assert_eq!(java("java version \"1.8.0_402\""), Some(1));
    assert_eq!(java("Unable to locate a Java Runtime."), None);

    let postgres = |text: &str| postgres::major_version(text);
    assert_eq!(postgres("postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)\n"), Some(15));
    assert_eq!(postgres("postgres (PostgreSQL) 18beta1\n"), Some(18));
    assert_eq!(postgres(""), None);
}

#[test]
fn a_process_is_read_whatever_its_name() {
    let check = |stat: &str, row: Option<(i32, i32, State)>| {
        let found = process::row_of_stat(stat).map(|row| (row.pid, row.parent, row.state));
        assert_eq!(found, row, "{stat}");
    };

    check("12 (java) S 3 12 12 0 -1", Some((12, 3, State::Runs)));
    check("12 (a) b) (c) Z 3 12 12", Some((12, 3, State::Ended)));
    check("12 (postgres) T 3 12 12", Some((12, 3, State::Halted)));
    check("12", None);
}

#[test]
fn a_closed_directory_on_the_way_is_seen() {
    use std::fs::{create_dir_all, remove_dir_all, set_permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let closed = std::env::temp_dir().join(unique("tailrace_closed"));
    let inner = closed.join("inner");
    create_dir_all(&inner).unwrap();
    let owner = std::fs::metadata(&inner).unwrap();
    let stranger = User { uid: owner.uid() + 1, gid: owner.gid() + 1 };

    let open = stranger.reaches(&inner);
    set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
    let shut = stranger.reaches(&inner);

    remove_dir_all(&closed).unwrap();
    assert_eq!((open, shut), (true, false));
}
