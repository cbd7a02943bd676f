//! Templates that would run forever, fill the memory or overflow the stack. Each ends with an error that says which limit
//! it met and where.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::{Template, TemplateError};

fn render(source: &str) -> Result<String, TemplateError> {
    let messages = json!([{"role": "user", "content": "hi"}]);
    Template::new(source)?.render(&[("messages", messages)], None, None)
}

/// Fails unless the template is refused with this part of the message.
#[track_caller]
fn refused(source: &str, part: &str) {
    let shown: String = source.chars().take(100).collect();
    match render(source) {
        Ok(text) => panic!("{shown}: rendered {} bytes", text.len()),
        Err(error) => {
            assert!(error.message.contains(part), "{shown}: {}", error.message);
            assert!(error.line.is_some(), "{shown}: no line");
            assert!(error.message.len() < 4000, "{shown}: the message has {} bytes", error.message.len());
        }
    }
}

#[test]
fn endless_templates_end() {
    let steps = format!("more than {} steps", super::limits::MAX_STEPS);
    let steps = steps.as_str();
    let mut loops = String::new();
    (0..6).for_each(|index| loops += &format!("{{% for a{index} in range(100000) %}}"));
    refused(&(loops + &"{% endfor %}".repeat(6)), steps);
    let error = render("a\n{% for i in range(99999) %}\n{% for k in range(99999) %}{% endfor %}{% endfor %}");
    assert_eq!(error.unwrap_err().line, Some(3));
    refused("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "recursion depth exceeded");
    // Shared items make comparisons, keys and text exponential.
    let doubled = "{% set ns = namespace(a=(1,), b=(1,)) %}{% for i in range(60) %}{% set ns.a = (ns.a, ns.a) %}\
                   {% set ns.b = (ns.b, ns.b) %}{% endfor %}";
    refused(&format!("{doubled}{{{{ ns.a == ns.b }}}}"), steps);
    refused(&format!("{doubled}{{{{ ns.a < ns.b }}}}"), steps);
    refused(&format!("{doubled}{{{{ {{ns.a: 1}} }}}}"), steps);
    refused(
        "{{ range(0, 10, 2)[::9223372036854775807] }}{{ 'a' | truncate(-9223372036854775808) }}",
        "too large",
    );
    refused(&format!("{doubled}{{{{ [ns.a] | pprint }}}}"), "more than");
    refused(&format!("{doubled}{{{{ ns.a | tojson }}}}"), "bytes");
    let huge = "{% set x = (2 ** 65000) %}{% for i in range(100000) %}{% set y = x * x // x %}{% endfor %}";
    refused(huge, "too large");
    let large = "{% set x = (2 ** 30000) %}{% for i in range(100000) %}{% set y = x * x // x %}{% endfor %}";
    refused(large, steps);
    let scan = "{% set x = 'ab' * 9000000 %}{% for i in range(100000) %}{{ 'q' in x }}{% endfor %}";
    refused(scan, steps);
}

#[test]
fn large_allocations_are_refused() {
    for source in [
        "{{ 'abc' | indent(99999999999) }}",
        "{{ 'abc\ndef' | indent(33000000) }}",
        "{{ 'abc' | center(99999999999) }}",
        "{{ 'abc'.ljust(99999999999) }}{{ 'abc'.zfill(99999999999) }}",
        "{{ 'a\tb'.expandtabs(99999999999) }}",
        "{{ 'abc' * 99999999999 }}",
        "{% set ns = namespace(t='x') %}{% for i in range(64) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{{ (['x' * 9999] * 9999) | join }}",
        "{{ range(99999) | join('x' * 99999) }}",
        "{{ ('x' * 9999).join(['y'] * 99999) }}",
        "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
        "{{ ('x' * 99999) | replace('', 'y' * 99999) }}",
        "{{ ([[1, 2]] * 500) | tojson(indent=9999999) }}",
        "{{ (range(99999) | list) | tojson(separators=('x' * 99999, ':')) }}",
        "{{ {'x' * 9999: range(90000) | map('string') | list} | pprint }}",
        "{{ ('%s' * 9999) | format(*(['x' * 9999] * 9999)) }}",
        "{{ ('{0}' * 9999).format('x' * 9999) }}",
        "{{ ('x ' * 99999) | wordwrap(1, wrapstring='y' * 99999) }}",
    ] {
        refused(source, "bytes");
    }
    // Adding reads both texts, which takes steps: in tests those are used up before the text is too long.
    let doubled =
        "{% set ns = namespace(t='x') %}{% for i in range(64) %}{% set ns.t = ns.t + ns.t %}{% endfor %}";
    refused(doubled, "more than");
    for source in [
        "{{ [1] * 99999999999 }}",
        "{{ ('x,' * 9999999).split(',') | length }}",
        "{{ ('x\n' * 9999999).splitlines() | length }}",
        "{{ ('x' * 9999999) | list | length }}",
        "{% for c in 'x' * 9999999 %}{% endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(64) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
    ] {
        refused(source, "items; the limit is");
    }
    refused("{{ range(1000000000000000000) | list }}", "MAX_RANGE");
    for source in [
        "{{ '%99999999999d' % 1 }}",
        "{{ '%*d' % (9999999, 1) }}",
        "{{ '%.99999f' % 1.5 }}",
        "{{ '{:99999}'.format(1) }}",
        "{{ '{:.70000f}'.format(0.5) }}",
        "{{ '{:0999999,}'.format(1) }}",
    ] {
        refused(source, "width or precision");
    }
    refused("{{ strftime_now('%1023Y' * 99999) }}", "the limit is 1000");
    refused(&format!("{{{{ {} }}}}", "9".repeat(200_000)), "the limit is 4300");
    refused(&format!("{{{{ 0x{} }}}}", "f".repeat(200_000)), "the limit is 4300");
}

/// Memory that is reachable at once is bounded too, whatever holds it.
#[test]
fn many_large_values_are_refused() {
    let texts = "{% set ns = namespace(l=[]) %}{% for i in range(999) %}{% set ns.l = ns.l + ['x' * 9999999] %}{% endfor %}";
    refused(texts, "builds values of more than");
    let lists = "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = ns.l + [[0] * 99999] %}{% endfor %}";
    refused(lists, "builds values of more than");
    let spaces = "{% set ns = namespace() %}{% for i in range(99) %}{% for k in range(99999) %}\
                  {% set ns.v = namespace(v=ns.v) %}{% endfor %}{% endfor %}";
    refused(spaces, "more than");
}

#[test]
fn deep_trees_are_refused_and_deep_values_end() {
    let nested = "nested too deeply; the limit is 100";
    refused(&format!("{{{{ {}1 }}}}", "not ".repeat(100_000)), nested);
    for (open, close) in [("(", ")"), ("[", "]"), ("{1: ", "}"), ("f(", ")"), ("a[", "]")] {
        let (open, close) = (open.repeat(100_000), close.repeat(100_000));
        refused(&format!("{{{{ {open}1{close} }}}}"), nested);
    }
    refused(&format!("{{{{ {}1 }}}}", "- ".repeat(100_000)), nested);
    let (open, close) = ("(".repeat(100_000), ")".repeat(100_000));
    refused(&format!("{{% set {open}a{close} = 1 %}}"), nested);
    refused(&"{% if 1 %}".repeat(100_000), nested);
    for link in [" + 1", " or 1", " and 1", "|abs", ".a", "[0]", "()", " ** 1", " if 1", " is odd()", " * 1"]
    {
        refused(&format!("{{{{ 1{} }}}}", link.repeat(100_000)), "a tag has more than 1000");
    }
    let deep = "nested in one another more than 256";
    for (first, next) in [
        ("[]", "[ns.v]"),
        ("[]", "(ns.v,)"),
        ("[]", "{'a': ns.v}"),
        ("[]", "[ns.v] | map('default') | reverse"),
        ("[]", "[[ns.v].index]"),
        ("joiner()", "joiner(ns.v)"),
        ("cycler(1)", "cycler(ns.v)"),
        ("{}", "{'a': ns.v}.items()"),
        ("{}", "dict(a=ns.v)"),
    ] {
        let source = format!(
            "{{% set ns = namespace(v={first}) %}}{{% for i in range(99999) %}}{{% set ns.v = {next} %}}{{% endfor %}}"
        );
        refused(&source, deep);
    }
}

/// Namespaces, loops and macros refer to themselves and to chains of their like. Dropping them must neither recurse nor
/// leave them in memory.
#[test]
fn long_chains_of_references_are_dropped() {
    for body in [
        "{% set ns.v = namespace(v=ns.v) %}",
        "{% for k in [ns.v] %}{% set ns.v = loop %}{% endfor %}",
        "{% for k in [1] %}{% if loop.changed(ns.v) %}{% set ns.v = loop %}{% endif %}{% endfor %}",
        "{% set w = ns.v %}{% macro m() %}{{ w }}{% endmacro %}{% set ns.v = m %}",
        "{% macro f() %}{% set ns.v = caller %}{% endmacro %}{% set w = ns.v %}{% call f() %}{% endcall %}",
        "{% set ns.v = ns %}{% for k in [1] %}{% set ok = loop.changed(loop) %}{% endfor %}",
    ] {
        let source =
            format!("{{% set ns = namespace() %}}{{% for i in range(30000) %}}{body}{{% endfor %}}end");
        assert_eq!(render(&source).map_err(|e| e.message).as_deref(), Ok("end"), "{body}");
    }
}

/// What is quadratic in the length of a template or of its values is refused or charged.
#[test]
fn quadratic_work_ends() {
    let many = |part: &dyn Fn(usize) -> String| (0..50_000).map(part).collect::<String>();
    refused(&format!("{{{{ dict({}) }}}}", many(&|i| format!("a{i}=1,"))), "more than 1000 arguments");
    refused(
        &format!("{{% macro f({}z) %}}{{% endmacro %}}", many(&|i| format!("a{i},"))),
        "more than 1000 arguments",
    );
    let start = std::time::Instant::now();
    let text = render("{{ ('a' * 2000000).strip('b' * 2000000 ~ 'a') | length }}");
    assert_eq!(text.map_err(|e| e.message).as_deref(), Ok("0"));
    let spread = "{{ dict(**dict.fromkeys(range(99999) | map('string'))) | length }}";
    refused(spread, "steps");
    let same = "{% set x = 'a' * 9000000 %}{{ ((x ~ 'b'),) * 90000 == ((x ~ 'b'),) * 90000 }}";
    refused(same, "steps");
    let affixes = "{% set x = 'a' * 9000000 %}{{ (x ~ 'b').startswith((x ~ 'c',) * 90000) }}";
    refused(affixes, "steps");
    refused("{{ (('x' * 9000000,) * 9000) | unique | list | length }}", "steps");
    refused("{{ (('x' * 9000000,) * 9000) | sort | length }}", "steps");
    refused("{{ ([('a', 'x' * 9000000)] * 9000) | urlencode }}", "bytes");
    refused("{{ dict.fromkeys(range(9000) | map('string'), '<' * 900000) | xmlattr }}", "bytes");
    let name = "n".repeat(500_000);
    refused(&format!("{{% for i in range(99999) %}}{{{{ {name} }}}}{{% endfor %}}"), "steps");
    assert!(start.elapsed().as_secs() < 120, "{:?}", start.elapsed());
}

#[test]
fn long_sources_are_refused() {
    refused(&"x".repeat((1 << 20) + 1), "the template has 1048577 bytes; the limit is 1048576");
    assert_eq!(render(&"x".repeat(1 << 20)).map(|text| text.len()), Ok(1 << 20));
}

#[test]
fn damaged_tags_are_errors() {
    for source in
        ["{%}", "{{}}", "{%-%}", "{%+%}", "{#", "{% raw %}", "{{ '", "{{ '\\", "{% set %}", "{{ \"\\x", "{%"]
    {
        let error = render(source).unwrap_err();
        assert_eq!(error.line, Some(1), "{source}: {}", error.message);
    }
}

#[test]
fn a_raised_flag_ends_a_rendering() {
    let stop = Arc::new(AtomicBool::new(false));
    let template = Template::new("{% for i in range(9) %}{{ i }}{% endfor %}").unwrap();
    let render = || template.render(&[], None, Some(stop.clone())).map_err(|error| error.message);
    assert_eq!(render().as_deref(), Ok("012345678"));
    stop.store(true, Ordering::Relaxed);
    assert_eq!(render(), Err("the rendering was interrupted".to_owned()));
    stop.store(false, Ordering::Relaxed);
    assert_eq!(render().as_deref(), Ok("012345678"));
}

/// The loops around a macro or a generation block that is broken counted below 0.
#[test]
fn broken_blocks_within_loops_are_errors() {
    for block in ["generation", "macro f()", "call f()"] {
        let error = render(&format!("{{% for m in [1] %}}{{% {block} %}}{{% broken %}}")).unwrap_err();
        assert_eq!(error.message, "unknown tag {% broken %}", "{block}");
    }
}
