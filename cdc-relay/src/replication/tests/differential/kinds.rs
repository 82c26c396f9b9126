//! A column of each common type, with the values that are easily got wrong.

/// Made before the tables. The identifiers have to be quoted, and so do the labels.
pub(super) const TYPES: &str = r#"
CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree; CREATE EXTENSION seg;
CREATE TYPE mood AS ENUM ('good', 'so "so"', 'bad''s', 'süß');
CREATE TYPE pair AS (a int, "B b" text, c int[]);
CREATE TYPE nested AS (p pair, m mood);
CREATE TYPE textrange AS RANGE (subtype = text, collation = "C");
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN loud AS text DEFAULT 'HEY' CHECK (VALUE = upper(VALUE));
CREATE DOMAIN numbers AS int[];
"#;

/// Texts that look like something else, or that some encoder has to escape.
const TEXTS: &[&str] = &[
    "''",
    "'null'",
    "'unchanged-toast-datum'",
    "'it''s'",
    r"'back\slash \n \x41'",
    r"E'\t\n\r\u0001\u007f'",
    "'\" [text]:''a'' '",
    "'ä ß é 日本 🦀 \u{202e}rtl'",
    "'  around  '",
    r#"'{"a":1}'"#,
    "repeat('ä', 3000)",
];

/// Name, type and values of a column, as SQL.
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) r#type: &'static str,
    pub(super) values: &'static [&'static str],
}

const fn kind(name: &'static str, r#type: &'static str, values: &'static [&'static str]) -> Kind {
    Kind { name, r#type, values }
}

pub(super) const KINDS: &[Kind] = &[
    kind("boolean", "bool DEFAULT true", &["true", "false"]),
    kind("\"char\"", "\"char\"", &["'a'", "''", "''''"]),
    kind("int2", "int2", &["-32768", "0", "32767"]),
    kind("int4", "int4 DEFAULT 42", &["-2147483648", "-1", "2147483647"]),
    kind("int8", "int8", &["-9223372036854775808", "0", "9223372036854775807"]),
    kind(
        "numeric",
        "numeric",
        &[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "0",
            "0.000",
            "-0.00010",
            "1e300",
            "1e-300",
            "123456789012345678901234567890.12345678900",
            "10000",
            "99999999",
            "-1.5",
        ],
    ),
    kind("scaled", "numeric(10,3) DEFAULT 1", &["1.5", "-9999999.999", "'NaN'", "0"]),
    kind("rounded", "numeric(3,-2)", &["12345", "-100", "49"]),
    kind(
        "float4",
        "float4",
        &["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "1e-45", "3.4028235e38", "0.1", "16777217"],
    ),
    kind(
        "float8",
        "float8",
        &["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "5e-324", "0.1", "1e23", "-1.5"],
    ),
    kind("money", "money", &["'-92233720368547758.08'", "'12.34'", "'0'"]),
    kind("text", "text DEFAULT 'a default'", TEXTS),
    kind("\"odd Näme\"\"'\"", "text", TEXTS),
    kind("varchar", "varchar(20)", &["''", "'ä'", "repeat('é', 20)", "'a  '"]),
    kind("bpchar", "char(8)", &["''", "'a'", "'trail   '", "' ä'"]),
    kind("name", "name", &["''", "'Some \"Name'"]),
    kind(
        "bytea",
        "bytea",
        &[
            r"'\x'",
            r"'\x00ff275c0a'",
            "(SELECT decode(string_agg(lpad(to_hex(i), 2, '0'), ''), 'hex') FROM generate_series(0, 255) i)",
        ],
    ),
    kind(
        "uuid",
        "uuid DEFAULT '018f2c4e-0000-7000-8000-00000000002a'",
        &["'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"],
    ),
    kind(
        "date",
        "date DEFAULT '2000-01-01'",
        &["'infinity'", "'-infinity'", "'4713-01-01 BC'", "'0001-12-31 BC'", "'5874897-12-31'"],
    ),
    kind("time", "time", &["'00:00'", "'24:00:00'", "'12:34:56.789012'"]),
    kind("timetz", "timetz(3)", &["'23:59:59.999-15:59'", "'00:00+15:59'", "'12:00 UTC'"]),
    kind(
        "timestamp",
        "timestamp",
        &[
            "'infinity'",
            "'-infinity'",
            "'4713-01-01 00:00:00 BC'",
            "'1999-12-31 23:59:59.999999'",
            "'294276-12-31 23:59:59.999999'",
            "'2000-01-01'",
        ],
    ),
    kind(
        "timestamptz",
        "timestamptz(0) DEFAULT '2000-01-01 12:00:00+01'",
        &["'infinity'", "'-infinity'", "'0044-03-15 12:00:00+00 BC'", "'2038-01-19 03:14:07.6+00'"],
    ),
    kind(
        "interval",
        "interval",
        &[
            "'0'",
            "'1 mon -1 day 00:00:00.000001'",
            "'-178000000 years'",
            "'-1 us'",
            "'1 year 25:00'",
        ],
    ),
    kind(
        "json",
        "json",
        &[r#"'{"a" : [1, null, "\u00e9"],  "a":2}'"#, "'null'", "'\"it''s\"'", "' 1.0e5 '"],
    ),
    kind(
        "jsonb",
        "jsonb",
        &[r#"'{"b": [1.50, null, "\u00e9\\"], "a": {}}'"#, "'null'", "'[]'", "'\"\"'"],
    ),
    kind("jsonpath", "jsonpath", &["'$.a[*] ? (@ > 1)'", "'strict $'"]),
    kind("int4s", "int4[]", &["'{}'", "'{1,NULL,-3}'", "'{{1,2},{3,NULL}}'", "'[0:1]={5,6}'"]),
    kind(
        "texts",
        "text[]",
        &[r#"ARRAY['', 'NULL', 'a"b\c', NULL, '{}', ',', 'it''s', ' ä ']"#, "'{}'", "'{{a},{b}}'"],
    ),
    kind("numerics", "numeric(6,2)[]", &["'{NaN,1.005,NULL}'"]),
    kind("timestamps", "timestamptz[]", &["'{infinity,NULL,\"0044-03-15 12:00:00+00 BC\"}'"]),
    kind("byteas", "bytea[]", &[r"ARRAY['\x00ff'::bytea, NULL, '\x']"]),
    kind("jsonbs", "jsonb[]", &[r#"ARRAY['{"a": "}"}'::jsonb, 'null', NULL]"#]),
    kind("mood", "mood", &["'good'", "'so \"so\"'", "'bad''s'", "'süß'"]),
    kind("moods", "mood[]", &["'{}'", r#"ARRAY['so "so"', NULL, 'bad''s']::mood[]"#]),
    kind("positive", "positive DEFAULT 7", &["1", "2147483647"]),
    kind("loud", "loud", &["'A'", "''", "'IT''S'"]),
    kind("numbers", "numbers", &["'{1,NULL}'", "'{}'"]),
    kind(
        "pair",
        "pair",
        &["ROW(1, 'x\"y,(z)\\', ARRAY[1, NULL])", "ROW(NULL, NULL, NULL)", "ROW(-1, '', '{}')"],
    ),
    kind(
        "pairs",
        "pair[]",
        &["ARRAY[ROW(1, 'a', NULL)::pair, NULL, ROW(NULL, '}', '{2}')]::pair[]"],
    ),
    kind("nested", "nested", &["ROW(ROW(1, 'it''s', '{}'), 'good')", "ROW(NULL, 'süß')"]),
    kind("int4range", "int4range", &["'empty'", "'[1,5)'", "'(,)'", "'[,3]'"]),
    kind("numrange", "numrange", &["'empty'", "'(-1.50,NaN]'", "'[0,)'"]),
    kind("tsrange", "tsrange", &["'[-infinity,infinity]'", "'(2000-01-01,)'"]),
    kind("textrange", "textrange", &[r#"'["a, b","c\"d")'"#, "'(,\"\"]'", "'empty'"]),
    kind("int4multirange", "int4multirange", &["'{}'", "'{[1,3),[5,)}'"]),
    kind("inet", "inet", &["'::1'", "'10.0.0.1/8'", "'2001:db8::ff/64'", "'255.255.255.255'"]),
    kind("cidr", "cidr", &["'10.0.0.0/8'", "'::/0'"]),
    kind("macaddr", "macaddr", &["'08:00:2b:01:02:03'"]),
    kind("macaddr8", "macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    kind("bit", "bit(5)", &["B'10101'", "B'00000'"]),
    kind("varbit", "varbit", &["B''", "B'1'", "B'111111111'"]),
    kind("tsvector", "tsvector", &["'a:1A,2 ''it''''s'':3B'", "''"]),
    // Not the empty one: what tsquery's send function writes of it, its receive function refuses.
    kind("tsquery", "tsquery", &["'a & !b:*A | ''c d'''"]),
    kind("xml", "xml", &["'<a b=\"c\">ä &lt; it''s</a>'", "'text <b/>'"]),
    kind("point", "point", &["'(NaN,-Infinity)'", "'(1.5,-0)'"]),
    kind("path", "path", &["'[(0,0),(1,1)]'", "'((0,0),(1,1))'"]),
    kind("circle", "circle", &["'<(1,2),3>'"]),
    kind("pg_lsn", "pg_lsn", &["'0/0'", "'16/B374D848'"]),
    kind("oid", "oid", &["0", "4294967295"]),
    kind("regclass", "regclass", &["'pg_class'", "0"]),
    kind("hstore", "hstore", &[r#"'a=>1, "b c"=>NULL, "it''s"=>"\"q\""'"#, "''"]),
    kind("citext", "citext", &["'MiXed'", "'it''s'"]),
    kind("ltree", "ltree", &["'Top.Science.A_1'", "''"]),
    // Without a send function: comes as text where binary was asked for.
    kind("seg", "seg", &["'1.50 .. 2'", "'<3'"]),
];
