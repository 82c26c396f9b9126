use proptest::prelude::*;

use super::{Statement, must_take};

#[test]
fn a_statement_is_read_as_far_as_a_message_needs_it() {
    let check = |text: &str, expected: &str, has_returning: bool, parameters: usize| {
        let expected = Statement { text: expected, has_returning, parameters };
        assert_eq!(Statement::read(text).expect(text), expected);
    };

    check("INSERT INTO t VALUES ($1, $2)", "INSERT INTO t VALUES ($1, $2)", false, 2);
    check("\n insert into t values ($2) ;; \n", "insert into t values ($2)", false, 2);
    check("update t set a = 1 returning a", "update t set a = 1 returning a", true, 0);
    check("delete from t -- returning $7;\n", "delete from t", false, 0);
    check("delete from t /* ; /* ) */ $9 */;", "delete from t", false, 0);
    check(
        "-- why\ninsert into t values ('$5;)''(', \"a;\"\"(\") returning 1",
        "-- why\ninsert into t values ('$5;)''(', \"a;\"\"(\") returning 1",
        true,
        0,
    );
    check(
        r"update t set a = E'\';\\''$3', b = e'x'",
        r"update t set a = E'\';\\''$3', b = e'x'",
        false,
        0,
    );
    check("update t set a = '\\' where b = $1", "update t set a = '\\' where b = $1", false, 1);
    check(
        "update t set a = $$;($4$$, b = $x$ $$ $4) $x$, c = $1",
        "update t set a = $$;($4$$, b = $x$ $$ $4) $x$, c = $1",
        false,
        1,
    );
    check("update t set a$1 = 1e5, é = 2", "update t set a$1 = 1e5, é = 2", false, 0);
    check(
        "insert into t select 1 as returning union select 2",
        "insert into t select 1 as returning union select 2",
        false,
        0,
    );
    check(
        "insert into t select 1 AS returning returning id",
        "insert into t select 1 AS returning returning id",
        true,
        0,
    );
    check(
        "update t set a = E'x' -- more\n -- still\n '\\'; returning $9' where b = $1",
        "update t set a = E'x' -- more\n -- still\n '\\'; returning $9' where b = $1",
        false,
        1,
    );
    check(
        "update t set a = E'x' '\\' where b = $2",
        "update t set a = E'x' '\\' where b = $2",
        false,
        2,
    );
    check("update t set a = x.returning", "update t set a = x.returning", false, 0);
    check(
        "update t set a = (select returning from x)",
        "update t set a = (select returning from x)",
        false,
        0,
    );
    check(
        "with a(b) as (select 1), c as materialized (select 2) insert into t select * from a",
        "with a(b) as (select 1), c as materialized (select 2) insert into t select * from a",
        false,
        0,
    );
}

#[test]
fn an_insert_may_select_what_it_inserts() {
    for text in [
        "insert into t (a) select 1",
        "insert into t (a) values (1), (2)",
        "with a as (select 1) insert into t (a) select * from a",
        "with a as (select 1) insert into t (a) values (1)",
        "with a(b) as not materialized (select 1) update t set a = (select 1)",
    ] {
        assert!(Statement::read(text).is_ok(), "{text}");
    }
}

#[test]
fn what_is_not_one_statement_that_changes_data_is_refused() {
    let check = |text: &str, expected: &str| {
        let error = Statement::read(text).expect_err(text);
        assert!(error.is_invalid(), "{error:?}");
        assert_eq!(
            error.to_string().split(';').next(),
            Some(format!("the business statement {expected}").as_str()),
            "{text}"
        );
    };

    check("", "is empty");
    check(" ; -- nothing", "is empty");
    check("select 1", "changes no data");
    check("(insert into t values (1))", "changes no data");
    check("'insert'", "changes no data");
    check("truncate t", "changes no data");
    check("with a as (select 1) select * from a", "changes no data");
    check("with a as (select 1) table a", "changes no data");
    check("delete from t; delete from u", "is more than one");
    check("delete from t) select 1 from (select 1", "closes a bracket it never opened");
    check("delete from t where a in (1", "leaves a bracket open");
    check("delete from t where a = 'x", "leaves a quote open");
    check("delete from t where a = E'x\\'", "leaves a quote open");
    check("delete from \"t", "leaves a quote open");
    check("delete from t where a = $x$ $y$", "leaves a quote open");
    check("delete from t /* /* */", "leaves a comment open");
    check("delete from t where a = $65536", "has a parameter out of range");
}

#[test]
fn the_values_must_be_as_many_as_the_parameters() {
    assert!(must_take(2, 2).is_ok());
    for wrong in [0, 1, 3] {
        assert!(must_take(2, wrong).unwrap_err().is_invalid());
    }
}

proptest! {
    #[test]
    fn any_text_is_read_without_a_panic(text in ".*", tail in "[-/*'\"$eE\\\\a1;() .]*") {
        let _ = Statement::read(&text).is_ok();
        let _ = Statement::read(&format!("insert {tail}")).is_ok();
    }
}
