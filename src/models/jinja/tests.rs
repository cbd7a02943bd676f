//! Texts that Jinja2 3.1.6 renders for the same templates, set up as transformers 5.24 does.

use serde_json::{Value as Json, json};

use super::Template;

fn render(source: &str) -> Result<String, String> {
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    let variables: [(&str, Json); 3] =
        [("messages", messages), ("d", json!({"b": 1, "a": null})), ("numbers", json!([3, 1, 2]))];
    Template::new(source).and_then(|template| template.render(&variables, None, None)).map_err(|e| e.message)
}

#[track_caller]
fn check(cases: &[(&str, &str)]) {
    for (source, text) in cases {
        assert_eq!(render(source).as_deref(), Ok(*text), "{source}");
    }
}

#[track_caller]
fn refused(sources: &[&str]) {
    for source in sources {
        assert!(render(source).is_err(), "{source}: {:?}", render(source));
    }
}

#[test]
fn python_prints() {
    check(&[
        (
            "{{ 1e-7 }} {{ 1e16 }} {{ [1e22, -0.0, true, none, 'a'] }}",
            "1e-07 1e+16 [1e+22, -0.0, True, None, 'a']",
        ),
        ("{{ 2 ** 70 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }}", "1180591620717411303424 -4 2 3.5"),
        (
            r#"{{ ["it's", 'say "x"', 'a\n\t\\', '\x7f\u200b'] }}"#,
            r#"["it's", 'say "x"', 'a\n\t\\', '\x7f\u200b']"#,
        ),
        (
            "{{ (1,) }} {{ {'a': (1, 2)} }} {{ range(3) }} {{ d.items() }}",
            "(1,) {'a': (1, 2)} range(0, 3) dict_items([('b', 1), ('a', None)])",
        ),
        ("{{ '%s-%d' % ('a', 3) }} {{ '%5.2f|%-3s|%05d' % (3.14159, 'a', 42) }}", "a-3  3.14|a  |00042"),
        ("{{ '{:,} {:.2f} {a:>3}'.format(1234567, 0.5, a='x') }}", "1,234,567 0.50   x"),
    ]);
}

#[test]
fn methods_of_text() {
    check(&[
        ("{{ 'a.b.c'.rsplit('.', 1) }} {{ 'a b c'.split(maxsplit=1) }}", "['a.b', 'c'] ['a', 'b c']"),
        ("{{ 'foobar'.removeprefix('foo') }} {{ 'a=b=c'.partition('=')[2] }}", "bar b=c"),
        ("{{ '-7'.zfill(4) }}{{ 'ab'.center(5, '-') }}{{ 'Ab'.swapcase() }}", "-007--ab-aB"),
        ("{{ 'a\\nb\\r\\n'.splitlines(true) }} {{ 'abcabc'.find('b', 2) }}", "['a\\n', 'b\\r\\n'] 4"),
        ("{{ 'Straße'.casefold() }} {{ \"don't\".title() }} {{ 'abc'[::-2] }}", "strasse Don'T ca"),
    ]);
    refused(&["{{ 'a'.encode() }}", "{{ 'abc'.index('z') }}", "{{ ', '.join([1]) }}", "{{ 'a' + 1 }}"]);
}

#[test]
fn tests_and_undefined_values() {
    check(&[
        ("{{ none is iterable }}{{ 'a' is iterable }}{{ raise_exception is callable }}", "FalseTrueTrue"),
        (
            "{{ x }}|{{ x is defined }}|{{ x ~ 'a' }}|{{ x | length }}|{{ messages[0].y is defined }}",
            "|False|a|0|False",
        ),
        (
            "{{ 1 < 2 < 3 }}{{ 'b' in 'abc' }}{{ 2 not in numbers }}{{ 1 == 1.0 == true }}",
            "TrueTrueFalseTrue",
        ),
        ("{{ d.items is mapping }}{{ d['items'] is callable }}", "FalseTrue"),
    ]);
    refused(&[
        "{{ x.y }}",
        "{{ x + 'a' }}",
        "{{ x() }}",
        "{{ x | tojson }}",
        "{{ none < 1 }}",
        "{{ 'a' is sameas 'a' }}",
    ]);
}

#[test]
fn loops_macros_and_scopes() {
    check(&[
        ("{% for c in 'ab' %}{{ c }}{{ loop.last }}{{ loop.length }}{% endfor %}", "aFalse2bTrue2"),
        (
            "{% macro m(a, b=a) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1) }}{{ m(1, 2, 3, z=4) }}",
            "11(){}12(3,){'z': 4}",
        ),
        ("{% macro m(a) %}{{ caller(a) }}{% endmacro %}{% call(x) m(1) %}<{{ x }}>{% endcall %}", "<1>"),
        ("{% set x = 1 %}{% for i in [2] %}{% set x = i %}{% endfor %}{{ x }}", "1"),
        (
            "{% for x in [1, [2]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor %}",
            "1(2)",
        ),
        (
            "{% set j = joiner('|') %}{% for m in messages %}{{ j() }}{{ m.role }}{% endfor %}",
            "user|assistant",
        ),
        (
            "{% set ns = namespace(n=1) %}{% for i in [1, 2, 3] if ns.n < 2 %}{{ i }}{% set ns.n = 5 %}{% endfor %}",
            "1",
        ),
    ]);
    refused(&[
        "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}",
        "{% break %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ]);
}

#[test]
fn filters_of_jinja2() {
    check(&[
        (
            "{{ 'abcdefghijkl' | truncate(5, true, '') }}{{ 'a' | center(3) }}{{ 'a b' | wordcount }}",
            "abcde a 2",
        ),
        ("{{ '<b>x</b>  &amp;' | striptags }} {{ 2.5 | round }} {{ '42.7' | int }}", "x & 2.0 42"),
        (
            "{{ numbers | sort }}{{ numbers | sum }}{{ messages | map(attribute='role') | join(',') }}",
            "[1, 2, 3]6user,assistant",
        ),
        (
            "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ d | dictsort }}",
            "1[('a', None), ('b', 1)]",
        ),
        (
            "{{ [1, 2, 3] | batch(2) | list }}{{ messages | groupby('role') | map(attribute='grouper') | list }}",
            "[[1, 2], [3]]['assistant', 'user']",
        ),
        ("{{ ('<' | e) + '<' }} {{ d | tojson(indent=1) }}", "&lt;&lt; {\n \"b\": 1,\n \"a\": null\n}"),
        (
            "{{ ['word ' * 17] | pprint }}",
            "['word word word word word word word word word word word word word word word '\n 'word word ']",
        ),
    ]);
    refused(&[
        "{{ 1 | nothing }}",
        "{{ [1, 'a'] | sort }}",
        "{{ [1] | map(attribute='a') }}",
        "{{ lipsum() }}",
    ]);
}

#[test]
fn white_space_around_tags() {
    check(&[
        ("  {% if true %}\n  x\n  {%- endif %}\n  y\n", "  x  y"),
        ("a {%- if true -%} b {%- endif +%}\n c", "ab\n c"),
        ("{% raw %}{{ x }}{% endraw %}{# c #}\nz", "{{ x }}z"),
        ("{{ '\\u00e9' 'b' }}{{- ' x ' -}}  y\n\n", "éb x y\n"),
    ]);
    refused(&["{% include 'x' %}", "{{ 'a }}", "{% if %}{% endif %}", "{% for %}", "{{ 1 + }}", "{{ (1 }}"]);
}

#[test]
fn values_cannot_change() {
    refused(&[
        "{{ [1].append(2) }}",
        "{{ d.update({'x': 1}) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ range(200000) }}",
    ]);
    check(&[("{{ [].append is defined }}{{ d.pop is defined }}", "FalseFalse")]);
}

#[test]
fn endless_templates_are_refused() {
    refused(&[
        "{{ 2 ** 1000000 }}",
        "{% set ns = namespace(x='abcdefgh') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    ]);
    let nested = [
        format!("{{{{ {}", "(".repeat(5000)),
        "{% if 1 %}".repeat(5000),
        format!("{{{{ {}1 }}}}", "-".repeat(5000)),
    ];
    refused(&nested.each_ref().map(String::as_str));
}

#[test]
fn dates() {
    let at = |text: &str| text.parse::<jiff::civil::DateTime>().unwrap();
    let text = |format: &str, time: &str| super::time::strftime(format, at(time), 0);
    assert_eq!(
        text("%A, %-d %B %Y %H:%M:%S %j %y %p %I", "2000-02-29T12:34:56"),
        "Tuesday, 29 February 2000 12:34:56 060 00 PM 12"
    );
    assert_eq!(
        text("%F %T %a %% %q|%z|%Z|%e %C %D %R %r", "2101-03-01T23:59:59"),
        "2101-03-01 23:59:59 Tue % %q||| 1 21 03/01/01 23:59 11:59:59 PM"
    );
    assert_eq!(text("%U %W %V %G %g %u %w", "2024-12-30T00:00:00"), "52 53 01 2025 25 1 1");
    assert_eq!(
        text("%c|%x|%X|%^a|%_d|%f|%k|%l|%P", "2026-11-07T05:06:07.000008"),
        "Sat Nov  7 05:06:07 2026|11/07/26|05:06:07|SAT| 7|000008| 5| 5|am"
    );
}
