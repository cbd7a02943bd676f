"""Constructs of Jinja2 and Python that templates may use, one template each. templates.py renders them."""

CONSTRUCTS = r"""
{{ none is iterable }}{{ tools is iterable and tools | length > 0 }}{{ undefined_name is iterable }}{{ text is iterable }}
{% for c in text %}{{ c }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.previtem }}{{ loop.nextitem }}{% endfor %}
{{ 1e-7 }} {{ 1e16 }} {{ 123456789.123 }} {{ 1.0 }} {{ [1e-7, 1e22, 0.1, -0.0] }} {{ 1e5 }} {{ 0.1 + 0.2 }}
{{ 123456789012345678901234567890 }} {{ [2 ** 70] }} {{ (2 ** 70) | tojson }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** -1 }}
{{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 7 % -3 }} {{ 1_000 }} {{ 0x1f }} {{ 0b11 }} {{ 0o17 }} {{ 1e3 | int }}
{{ '%s-%d' % ('a', 3) }} {{ '%5.2f|%-5s|%05d|%x|%r|%%' % (3.14159, 'ab', 42, 255, "it's") }}
{{ '%(a)s %(b)d' % {'a': 1, 'b': 2} }} {{ '%s' % [1, 2] }} {{ '%s' % text }} {{ '%e %g %G' % (12345.678, 0.00001, 1e20) }}
{{ '%s' % ('a', 'b') }}
{{ '%+d % d %#x %#o %c %5s %.2s %i' % (5, 5, 255, 8, 'x', 'ab', 'abc', 3.9) }}
{{ '{} {}'.format(1, 'a') }} {{ '{0}{1}{0}'.format('a', 'b') }} {{ '{a:>5}|{b:<5}|{c:^5}'.format(a=1, b='x', c='y') }}
{{ '{:,} {:_} {:.2f} {:e} {:g} {:%} {:x} {:#b} {:05d} {:+d}'.format(1234567, 1234567, 3.14159, 12345.678, 0.00001, 0.25, 255, 5, 42, 3) }}
{{ '{m[role]} {m.role} {l[0]}'.format(m=messages[0], l=numbers) }} {{ '{!r:>10}'.format('a') }} {{ '{{}}'.format(1) }} {{ '{:{w}}'.format(1, w=4) }}
{{ '{a}'.format_map({'a': 1}) }} {{ '{:.3}'.format(1000.0) }} {{ '{:.4}'.format(1000.0) }} {{ '{}'.format(none) }} {{ '{:10.3}|'.format('abcdef') }}
{{ 'a.b.c'.rsplit('.', 1) }} {{ 'a.b.c'.split('.', 1) }} {{ ' a  b c '.split() }} {{ ' a  b c '.rsplit(None, 1) }} {{ 'a b c'.split(maxsplit=1) }} {{ 'a,b'.split(sep=',') }}
{{ 'foobar'.removeprefix('foo') }} {{ 'foobar'.removesuffix('bar') }} {{ 'foobar'.removeprefix('x') }}
{{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.partition('=') }} {{ 'abc'.rpartition('=') }}
{{ '7'.zfill(3) }} {{ '-7'.zfill(4) }} {{ '7'.ljust(3, '*') }} {{ '7'.rjust(3) }} {{ 'a'.center(4, '-') }} {{ 'ab'.center(5, '-') }}
{{ 'Ab'.swapcase() }} {{ 'Straße'.casefold() }} {{ 'ß'.upper() }} {{ 'they are ß'.title() }} {{ "it's".capitalize() }} {{ 'ÀB'.lower() }} {{ 'a\tb'.expandtabs(4) }}
{{ 'xabc'.index('b') }} {{ 'xabc'.find('z') }} {{ 'xabca'.rfind('a') }} {{ 'abcabc'.find('b', 2) }} {{ 'abcabc'.count('bc') }} {{ 'aaa'.count('') }}
{{ 'abc'.index('z') }}
{{ 'abc'.rindex('z') }}
{{ 'a\nb\r\nc\n'.splitlines() }} {{ 'a\nb\r\nc\n'.splitlines(true) }} {{ ''.splitlines() }} {{ 'a\x0bb'.splitlines() }}
{{ 'abc'.isalpha() }}{{ 'a1'.isalnum() }}{{ '1'.isdigit() }}{{ '1'.isdecimal() }}{{ '1'.isnumeric() }}{{ ' '.isspace() }}{{ 'Ab'.istitle() }}{{ 'ab'.islower() }}{{ 'AB'.isupper() }}{{ 'a_1'.isidentifier() }}{{ 'é'.isascii() }}{{ 'a\n'.isprintable() }}
{{ ''.isalpha() }}{{ ''.isspace() }}{{ ''.isascii() }}{{ 'é'.isalpha() }}{{ '1a'.isidentifier() }}{{ '日本'.isalpha() }}{{ '1'.isupper() }}
{{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.endswith('c') }} {{ 'abc'.startswith('b', 1) }} {{ 'abc'.startswith('') }}
{{ 'aXbX'.replace('X', '-', 1) }} {{ 'abc'.replace('', '-') }} {{ ', '.join(['a', 'b']) }} {{ '-'.join('abc') }}
{{ ', '.join([1, 2]) }}
{{ ' x '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ ' x '.lstrip() }}|{{ 'abc'.rstrip('bc') }}|{{ '\u00a0x\u2003'.strip() }}
{{ 'abc'[::-1] }} {{ 'abcdef'[1:-1] }} {{ 'abcdef'[::2] }} {{ 'abcdef'[-3:] }} {{ 'abcdef'[4:1:-1] }} {{ 'abc'[10:] }}| {{ numbers[::-1] }} {{ (1,2,3)[1:] }}
{{ 'abc'[-1] }} {{ 'abc'[5] }}| {{ numbers[-1] }} {{ numbers[7] }}| {{ numbers['x'] }}| {{ range(10)[2:8:2] }} {{ range(10)[::-1] }}
{{ 'b' in 'abc' }} {{ 2 in numbers }} {{ 'a' in d }} {{ 'x' not in d }} {{ 1 in range(3) }} {{ 'role' in messages[0] }} {{ 1 in undefined_name }}
{{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }} {{ 1 == 1.0 == true }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ (1,) == (1,) }} {{ [1] == (1,) }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ 'a' 'b' "c" }} {{ 'a' ~ 1 ~ none ~ true ~ 1.5 }} {{ 'a' + 'b' * 3 }} {{ [1] + [2] }} {{ (1,) + (2,) }} {{ [0] * 3 }} {{ 3 * 'ab' }}
{{ 'a' + 1 }}
{{ [1] + (2,) }}
{{ 1 + none }}
{{ true + true }} {{ -true }} {{ +1 }} {{ --1 }} {{ not 1 }} {{ not '' }} {{ 1 and 2 }} {{ 0 or 'x' }} {{ '' and 1 }}| {{ none or [] }}
{{ true }} {{ True }} {{ none }} {{ None }} {{ [true, none, 'a', 1.5, (1,), {'a': 1}] }} {{ {} }} {{ [] }} {{ () }} {{ (1,) }} {{ 1, 2 }}
{{ "it's" | list }} {{ ["it's", 'say "x"', 'both \' and "', 'a\nb\t\\', '\x00\x7f\u00ad\u200b\ue000\U000e0001', 'é日🙂'] }}
{{ {'a': "it's", 1: none, 1.5: true, none: 'x', (1, 2): 3} }}
{{ {'a': 1, 'a': 2} }} {{ {1: 'a', 1.0: 'b', true: 'c'} }}
{{ {[1]: 2} }}
{% set x %}block {{ 1 + 1 }}{% endset %}[{{ x }}] {% set y | upper | trim %} a{{ 'b' }} {% endset %}[{{ y }}]
{% filter upper | replace('A', 'b') %}abc {{ text }}{% endfilter %}
{% filter trim %}  x  {% endfilter %}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (c, e) = [3, 4] %}{{ c }}{{ e }}{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{% set a, b = [1] %}{{ a }}
{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}
{% with a = 1 %}{% with b = a %}{{ b }}{% endwith %}{% endwith %}
{% set ns = namespace(a=1, l=[]) %}{% for m in messages %}{% set ns.a = ns.a + 1 %}{% set ns.l = ns.l + [m.role] %}{% endfor %}{{ ns.a }}{{ ns.l }}{{ ns }}{{ ns.x is defined }}
{% set ns = namespace({'q': 1}, r=2) %}{{ ns.q }}{{ ns.r }}{{ ns['q'] is defined }}
{% set x = 1 %}{% for i in range(3) %}{% set x = i %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 9 %}{% endif %}{{ x }}
{% for i in range(2) %}{{ x is defined }}{% set x = i %}{{ x }}{% endfor %}
{% macro m(a, b=a, c='x') %}{{ a }}{{ b }}{{ c }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1) }}|{{ m(1, 2, 3, 4, 5, z=6) }}|{{ m(b=1, a=2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}
{% macro m(a) %}[{{ a }}{{ a is defined }}]{% endmacro %}{{ m() }}{{ m.name }}{{ m.arguments }}{{ m.catch_kwargs }}
{% macro m(a) %}{{ caller('x') }}{{ a }}{% endmacro %}{% call(y) m(1) %}<{{ y }}>{% endcall %}{% call m(2) %}-{% endcall %}
{% macro m() %}{{ caller() }}{{ caller is defined }}{% endmacro %}{% call m() %}body{% endcall %}
{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}
{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}
{% macro outer() %}{% macro inner() %}i{% endmacro %}{{ inner() }}o{% endmacro %}{{ outer() }}{{ inner is defined }}
{% set g = 1 %}{% macro m() %}{{ g }}{{ messages | length }}{% endmacro %}{% set g = 2 %}{{ m() }}
{% for i in [1,2] %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}
{% for x in [[1,[2]],[3]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}{{ loop.depth }}{% endif %}{% endfor %}
{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{% else %}none{% endfor %}
{% for m in messages if m.role == 'nobody' %}x{% else %}none{% endfor %}{% for x in [] %}{% else %}e{% endfor %}
{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{{ loop.cycle('a', 'b') }}{{ loop.changed(i // 2) }}{% endfor %}
{% for i in range(5) %}{{ loop.first }}{{ loop.index0 }}{{ loop.revindex0 }}{{ loop.depth0 }}{% endfor %}{{ loop is defined }}
{% set ns = namespace(f=true) %}{% for i in [1,2,3] if ns.f %}{{ i }}{% set ns.f = false %}{% endfor %}
{% for k in d %}{{ k }}{% endfor %}{% for i in none %}{{ i }}{% endfor %}
{% for i in undefined_name %}x{% else %}empty{% endfor %}
{% for i in 5 %}{% endfor %}
{% for m in messages | map(attribute='role') %}{{ m }}{{ loop.last }}{{ loop.length }}{% endfor %}
{{ undefined_name }}|{{ undefined_name is defined }}|{{ messages[0].nothing }}|{{ messages[0].nothing is undefined }}|{{ undefined_name == undefined_other }}|{{ [undefined_name] }}
{{ undefined_name.attribute }}
{{ undefined_name['x'] }}
{{ undefined_name + 'x' }}
{{ 'x' + undefined_name }}
{{ undefined_name() }}
{{ undefined_name | tojson }}
{{ undefined_name ~ 'x' }}{{ undefined_name | length }}{{ undefined_name | list }}{{ undefined_name | default('d') }}{{ undefined_name | upper }}{{ not undefined_name }}{{ undefined_name | join(',') }}{{ undefined_name | first is defined }}
{{ undefined_name | int }}
{{ undefined_name < 1 }}
{{ -undefined_name }}
{{ undefined_name[1:] }}
{{ 'x' if false }}|{{ ('x' if false) is defined }}|{{ 1 if true else 2 }}|{{ 'a' if 0 else 'b' if 0 else 'c' }}
{{ none.x }}|{{ (1).x }}|{{ 'a'.x }}|{{ [].x is defined }}|{{ 'a'['upper']() }}|{{ d['items'] is callable }}|{{ d.items is callable }}
{{ none['x']['y'] }}
{{ d.items() }} {{ d.keys() }} {{ d.values() }} {{ d.items() | list }} {{ d | items | list }} {{ d.get('b') }} {{ d.get('z') }} {{ d.get('z', 5) }} {{ d.copy() }} {{ d | length }} {{ d.items() | length }} {{ d.items()[0] is defined }}
{{ d | dictsort }} {{ d | dictsort(by='key', reverse=true) }} {{ {'b': 2, 'A': 1} | dictsort }} {{ {'b': 2, 'A': 1} | dictsort(true) }} {{ {'x': 2, 'y': 1} | dictsort(by='value') }}
{{ dict(a=1, b=2) }} {{ dict([('a', 1)]) }} {{ dict({'x': 1}, y=2) }} {{ dict.fromkeys(['a'], 1) }}
{{ [1,2].append(3) }}
{{ [].append is defined }}{{ d.pop is defined }}{{ d.update is defined }}{{ d.setdefault }}|
{{ d.update({'x': 1}) }}
{{ [1,2,1].count(1) }} {{ [1,2,1].index(2) }} {{ (1,2).index(2) }} {{ [3].copy() }}
{{ [1].index(5) }}
{{ range(5) }} {{ range(1, 10, 3) | list }} {{ range(5, 0, -2) | list }} {{ range(3) | length }} {{ range(2).stop }}
{{ range(200000) }}
{% set j = joiner(', ') %}{% for m in messages %}{{ j() }}{{ m.role }}{% endfor %}{% set k = joiner() %}{{ k() }}{{ k() }}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.current }}
{{ lipsum is callable }}{{ range is callable }}{{ raise_exception is callable }}{{ text.upper is callable }}{{ text is callable }}{{ joiner() is callable }}{{ undefined_name is callable }}
{{ raise_exception('no') }}
{{ numbers | sort }} {{ numbers | sort(reverse=true) }} {{ ['b', 'A', 'c'] | sort }} {{ ['b', 'A', 'c'] | sort(case_sensitive=true) }} {{ messages | sort(attribute='role') | map(attribute='role') | list }}
{{ [1, 'a'] | sort }}
{{ numbers | sum }} {{ numbers | min }} {{ numbers | max }} {{ [] | min is defined }} {{ [0.1, 0.2] | sum }} {{ numbers | sum(start=10) }} {{ [[1],[2]] | sum(start=[]) }} {{ ['b', 'A'] | min }} {{ [{'a': 2}, {'a': 1}] | min(attribute='a') }}
{{ ['a', 'A', 'b', 'a'] | unique | list }} {{ ['a', 'A'] | unique(true) | list }} {{ messages | unique(attribute='role') | map(attribute='role') | join(',') }}
{{ messages | map(attribute='role') | list }} {{ ['a', 'b'] | map('upper') | list }} {{ ['a,b'] | map('replace', ',', '.') | join }} {{ messages | map(attribute='x', default='d') | list }} {{ [[1, 2]] | map('first') | list }} {{ [{'a': {'b': 1}}] | map(attribute='a.b') | list }} {{ [[5, 6]] | map(attribute=1) | list }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('tool_calls') | list | length }} {{ messages | selectattr('tool_calls', 'defined') | list | length }} {{ [0, 1, 2] | select | list }} {{ [1, 2, 3] | select('odd') | list }} {{ [1, 2, 3] | reject('gt', 1) | list }} {{ [1, none] | select('none') | list }} {{ [1,2,3] | select('in', [1, 3]) | list }}
{{ messages | selectattr('role', '==', 'user') | map(attribute='content') | first }} {{ messages | selectattr('role', 'in', ['tool']) | list | length }}
{{ messages | map('x') | list }}
{{ messages | selectattr('role') }}
{{ messages | map(attribute='role') | length }}
{% set it = messages | map(attribute='role') %}{{ it | list | length }}{{ it | list | length }}{{ it is iterable }}{{ it is sequence }}
{{ messages | groupby('role') | map(attribute='grouper') | list }} {% for g in messages | groupby('role') %}{{ g.grouper }}{{ g.list | length }}{{ g[0] }}{% endfor %} {% for role, list in messages | groupby('role') %}{{ role }}{{ list | length }}{% endfor %}
{{ [{'a': 'B'}, {'a': 'b'}, {}] | groupby('a', default='z') }}
{{ [1,2,3,4,5] | batch(2) | list }} {{ [1,2,3] | batch(2, 'x') | list }} {{ [1,2,3,4,5] | slice(3) | list }} {{ [1,2,3,4] | slice(3, 'x') | list }}
{{ 'abc' | reverse }} {{ [1,2] | reverse | list }} {{ 'abc' | first }} {{ 'abc' | last }} {{ [] | first is defined }} {{ d | first }} {{ d | last }} {{ 'abc' | list }} {{ {'a':1} | list }}
{{ [1, 'a', none, 1.5] | join('-') }} {{ [[1]] | join }} {{ messages | join(', ', attribute='role') }} {{ 'abc' | join('-') }} {{ [] | join }}
{{ 'abcdefghijkl' | truncate(5, true, '') }} {{ 'hello big world of text' | truncate(12) }} {{ 'hello big world' | truncate(9, leeway=0) }} {{ 'hello big' | truncate(9) }} {{ 'hello big world of' | truncate(9, true) }}
{{ 'a' | center(3) }}| {{ 'ab' | center(5) }}| {{ 'a b-c d' | wordcount }} {{ '<b>x</b>  y <!-- c --> &amp; z' | striptags }} {{ 'foo-bar (baz) it\'s' | title }} {{ 'hELLO' | capitalize }}
{{ numbers | pprint }} {{ d | pprint }} {{ text | pprint }} {{ messages | pprint }}
{{ ['word ' * 30, {'k' * 40: 'v' * 60}] | pprint }} {{ ('lorem ipsum ' * 12) | pprint }}
{{ 'the quick brown fox jumps' | wordwrap(10) }} {{ 'abcdefghij klm' | wordwrap(4) }} {{ 'abcdefghij klm' | wordwrap(4, false) }} {{ 'a\n\nb c' | wordwrap(2) }}
{{ 1000 | filesizeformat }} {{ 1 | filesizeformat }} {{ 123456789 | filesizeformat(true) }} {{ 999 | filesizeformat }} {{ '5000' | filesizeformat }}
{{ {'class': 'a b', 'id': none, 'x': '<'} | xmlattr }} {{ 'a b/ü?' | urlencode }} {{ {'a': 1, 'b c': 'ü&'} | urlencode }}
{{ '<a&"\'>' | escape }} {{ '<' | e | e }} {{ '<' | safe }} {{ ('<' | e) + '<' }} {{ '<' | forceescape }} {{ ('<' | e) ~ '<' }} {{ '<' | e is escaped }} {{ ['<' | e] }} {{ '<' | e | forceescape }}
{{ 'a\nb\n\nc' | indent }}| {{ 'a\nb' | indent(2, true) }}| {{ 'a\n\nb' | indent(2, blank=true) }}| {{ 'a\nb' | indent('>> ') }}| {{ '' | indent }}|
{{ 5 | indent }}
{{ '42' | int }} {{ '42.7' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ 'ff' | int(base=16) }} {{ '0x1f' | int(0, 16) }} {{ 3.9 | int }} {{ -3.9 | int }} {{ none | int }} {{ true | int }} {{ ' 5 ' | int }} {{ '1_000' | int }} {{ [] | int }}
{{ '1.5' | float }} {{ 'x' | float }} {{ '1e3' | float }} {{ 3 | float }} {{ none | float(2.5) }} {{ 'inf' | float }} {{ 'nan' | float }}
{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 42.55 | round(1, 'floor') }} {{ 42.51 | round(1, 'ceil') }} {{ 42 | round }} {{ -2.5 | round }} {{ 1.5 | round | int }} {{ 42 | round(1, 'floor') }}
{{ -5 | abs }} {{ -5.5 | abs }} {{ true | abs }}
{{ 1 | string }} {{ none | string }} {{ [1] | string }} {{ 1.0 | string }} {{ 'a' | string }}
{{ '%s is %d' | format('x', 5) }} {{ '%(a)s' | format(a=1) }} {{ 'abab' | replace('a', 'x', 1) }} {{ 5 | replace('5', '6') }} {{ ' x ' | trim }} {{ 'xax' | trim('x') }} {{ 5 | trim }} {{ none | upper }}
{{ d | tojson }} {{ d | tojson(indent=2) }} {{ [1, 2.0, 1e-7, 'é<>&\'"', none, true, (1, 2)] | tojson }} {{ tools | tojson(ensure_ascii=true) }} {{ d | tojson(sort_keys=true, separators=(',', ':')) }} {{ 'é\u007f\u2028' | tojson(true) }} {{ [] | tojson(indent=2) }} {{ d | tojson(indent='\t') }}
{{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }} {{ ('inf' | float) | tojson }} {{ messages | tojson }} {{ tools | tojson(indent=4) }}
{{ d.items() | tojson }}
{{ range(3) | tojson }}
{{ {(1, 2): 3} | tojson }}
{{ 3 is odd }}{{ 4 is even }}{{ 9 is divisibleby 3 }}{{ 9 is divisibleby(2) }}{{ true is boolean }}{{ 1 is boolean }}{{ true is true }}{{ 1 is true }}{{ false is false }}{{ 1 is integer }}{{ true is integer }}{{ 1.0 is float }}{{ 1 is number }}{{ true is number }}{{ 'a' is string }}{{ d is mapping }}{{ [] is mapping }}
{{ 'a' is sequence }}{{ [] is sequence }}{{ d is sequence }}{{ 1 is sequence }}{{ none is sequence }}{{ range(2) is sequence }}{{ d.items() is sequence }}{{ undefined_name is sequence }}{{ undefined_name is string }}
{{ none is none }}{{ none is sameas none }}{{ true is sameas true }}{{ 1 is sameas true }}{{ messages is sameas messages }}{{ [] is sameas [] }}{{ 'a' is lower }}{{ 'A' is upper }}{{ 1 is lower }}
{{ 1 is eq 1 }}{{ 1 is ne 1 }}{{ 1 is lt 2 }}{{ 1 is le 1 }}{{ 1 is gt 0 }}{{ 1 is ge 2 }}{{ 1 is in [1] }}{{ 1 is not in [1] }}{{ 1 is == 1 }}
{{ 1 is equalto 1 }}{{ 1 is lessthan 2 }}{{ 1 is greaterthan 2 }}{{ 'upper' is filter }}{{ 'x' is filter }}{{ 'odd' is test }}{{ 'x' is not test }}
{{ 1 is not odd }}{{ not 1 is odd }}{{ 1 + 1 is odd }}{{ -1 | abs }}{{ 'a' ~ 'b' | upper }}{{ 2 * 3 ** 2 }}{{ 2 ** 3 ** 2 }}{{ 10 - 2 - 3 }}{{ 2 + 3 * 4 }}{{ -2 ** 2 }}
{{ 1 is nosuchtest }}
{{ 1 | nosuchfilter }}
{{ nosuchfunction(1) }}
{{ strftime_now('%Y') | length }} {{ strftime_now('%d %b %Y %%') }} {{ strftime_now('%A %B %j %U %W %V %u %w %G %g %C %e %-d %-m %y %D %F %p %I %l %h %x %n%t|%q|%z|%Z|%a') }} {{ strftime_now('%^a %_d %3d %P %R') | length }}
{# comment #}a{#- c -#} b {#+ d +#} c
  {% if true %}
    x
  {% endif %}
a {%- if true -%} b {%- endif -%} c
a {%+ if true +%} b {%+ endif +%} c
{{- ' x ' -}}  y {{ 1 }}
{% raw %}{{ x }}{% y %}{# z #}{% endraw %}{%- raw -%} a {%- endraw -%} b
{{ '{{' }}{{ '%}' }}{{ "}}" }}{{ {'a': {'b': 1}}['a']['b'] }}{{ {'a': {}} }}
{{ '\x41\u0042\t\\n\'\"\a\0\101\q' | tojson }} {{ 'line\
joined' }}
{% if 1 %}a{% elif 2 %}b{% else %}c{% endif %}{% if none %}a{% elif 2 %}b{% else %}c{% endif %}{% if [] %}a{% elif '' %}b{% else %}c{% endif %}
{% generation %}x{% endgeneration %}{% set y = 1 %}{% generation %}{% set y = 2 %}{{ y }}{% endgeneration %}{{ y }}
{% block a %}b{{ text | length }}{% endblock %}{% block c %}{% set z = 1 %}{% endblock %}{{ z is defined }}
{% include 'x' %}
{% import 'x' as y %}
{% extends 'x' %}
{% do 1 %}
{% unknown %}
{% if %}{% endif %}
{% for %}
{{ 1 + }}
{{ (1 }}
{{ 'a }}
{{ a b }}
{% endif %}
{% if true %}
{% break %}
{% set true = 1 %}
{% print 1, 'a' %}
{{ [1,2,3,] }}{{ (1,2,) }}{{ {'a':1,} }}{{ [[1,2],[3]][0][1] }}{{ messages.0.role }}
{{ messages[-1]['role'] }} {{ messages[1:3] | length }} {{ (messages | first).content }} {{ messages[0]['con' ~ 'tent'] }} {{ (messages | last)['role'] }}
{{ (lambda: 1)() }}
{{ [x for x in numbers] }}
{{ f'{x}' }}
{{ numbers if numbers is iterable and numbers is not string and numbers is not mapping else 'no' }}
{{ text.__class__ }}|{{ text.__class__ is defined }}|{{ ''.__len__ is defined }}
{{ ''.__class__.__mro__ }}
{{ (1).bit_length() }} {{ (1.5).is_integer() }} {{ (2).real }} {{ 1.5.real }} {{ (5).numerator }}
{{ text | upper | lower | title }} {{ text.title() }} {{ text | length }} {{ text | first }} {{ text[0] }} {{ text.encode is defined }}
{{ range(3) | map('string') | join(',') }} {{ (1, 2) | list }} {{ [1, 2] | tojson | length }} {{ [3, 4] | last }} {{ 'a,b' | replace(',', ', ') }}
{{ [1, [2, [3]]] | string }} {{ "a'b\"c" | list }} {{ {'k': ["a'b"]} }} {{ ('a', "b'") }}
{{ 'x' * 0 }}|{{ 'x' * -1 }}|{{ [] * 5 }}|{{ 1.5 * 2 }}|{{ 10 // 3 }}|{{ 10 % 3 }}|{{ 1 / 3 }}|{{ 10 / 5 }}|{{ 0.1 * 3 }}|{{ 1e308 * 10 }}|{{ 5 // 0.3 }}|{{ 2 ** 0.5 }}
{{ 1 // 0 }}
{{ 1 / 0 }}
{{ 1 % 0 }}
{{ 10 ** 25 }} {{ 99999999999999999999 + 1 }} {{ 12345678901234567890 * 98765432109876543210 }} {{ -5 // 3 * 3 + -5 % 3 }} {{ 2 ** 64 - 1 }} {{ (2 ** 64) // 3 }} {{ '123456789012345678901234567890' | int + 1 }} {{ 2 ** 64 == 2.0 ** 64 }}
{{ {'a': 1} == {'a': 1.0} }} {{ [1, 2] == [1, 2] }} {{ 'a' == 1 }} {{ none == false }} {{ 0 == false }} {{ '' == none }} {{ 1 != 2 }}
{{ tools[0].function.parameters.properties.items() | list | length }} {{ tools[0]['function']['parameters'].properties.tags.items }}
{{ tools[0].function.parameters.properties.tags.items is mapping }}{{ tools[0].function.parameters.properties.tags.items.type is defined }}{{ tools[0].function.parameters.properties.tags['items'].type }}
{% for key, value in tools[0].function.parameters.properties | items %}{{ key }}: {{ value.type }} {{ loop.last }}{% if not loop.last %}, {% endif %}{% endfor %}
{% set content = messages[0].content %}{% if content is string %}{{ content }}{% else %}{% for item in content %}{{ item.text }}{% endfor %}{% endif %}
{{ messages | length }}{{ messages[0] }}{{ messages[2].tool_calls }}
{{ loop }}{{ self is defined }}{{ caller is defined }}{{ varargs is defined }}
{{ namespace }}
{{ messages | map(attribute='role') }}
{{ d.items }}
{{ 'a' is sameas 'b' }}{{ numbers is sameas numbers[:] }}
{{ 'ﬁ'.upper() }} {{ 'ǆ'.title() }} {{ 'İ'.lower() }} {{ 'ΑΣ'.lower() }} {{ 'ŉ'.capitalize() }} {{ '１'.isdigit() }} {{ '٣'.isdecimal() }}
{{ 'a-b_c d'.title() }} {{ "don't".title() }} {{ 'x1y'.title() }} {{ 'a\u00adb' | list }} {{ 'Ⅷ'.isalpha() }}
{{ ('a', 'b') | join }}{{ ('a',) }}{{ (('a', 'b'), 1) | first }}{{ {'a': (1, 2)}.a[1] }}
{{ cycler }}
{{ text.split('w', 1) | last }} {{ text.split()[-1].strip('”') }} {{ text | replace('o', '0') | lower }} {{ text.find('w') }} {{ text.index('“') }} {{ text[::-1] }}
""".strip("\n").split("\n")
# A template of more than one line, and line ends of other systems.
CONSTRUCTS += [
    "{% for m in messages %}\r\n[{{ m.role }}]\r\n{% endfor %}\r\nend\r\n",
    "{% if true %}\r  a\r  {% endif %}\rb",
    "{{ 'a\r\nb' | tojson }}\n\n",
    "  {% if true %}\n  x\n  {%- endif %}\n  y\n",
    "a\n  {# c #}\nb\n\t{%- set x = 1 %}\n  {{ x }}\n",
    "{%- for m in messages %}\n  {{- m.role }}\n{%- endfor %}\n",
    "x {% if true %} y {% endif %}\nz\n\n",
    "\n{% raw %}\n a\n {% endraw %}\n b",
    "  {%+ if true %} a\n  {%+ endif %}\n",
    "{% set a = 1 -%}\n\n  b {{ a -}}\n c",
    "{#\n multi\n#}\nx{# a #}{# b #}\n y",
    "{% macro m(x) %}\n  {{ x }}\n{% endmacro %}\n{{ m(1) | trim }}{{ m(2) }}",
    "{%- set ns = namespace(x='') -%}\n{%- for m in messages -%}\n{%- set ns.x = ns.x ~ m.role -%}\n{%- endfor -%}\n{{ ns.x }}",
    "{{ 1 }}{% if true %}\n\n{% endif %}\n{{ 2 }}\n \n",
    "{{\n  1\n  +\n  2\n}}\n{% if\n  true\n%}x{% endif\n%}",
    "",
    "\n",
    "a\n\n",
    "{{ '\u2028\x85' | tojson }}{% set x = 'é' %}{{ x }}",
]
