//! Templates in the styles models use, JSON and dates as Python writes them, and templates that fail.

use super::*;
use serde_json::json;

fn talk() -> Vec<Message> {
    vec![
        Message::new("system", " Be brief. "),
        Message::new("user", "2+2?"),
        Message::new("assistant", "4"),
        Message::new("user", "<b>&</b>"),
    ]
}

fn options() -> ChatOptions {
    ChatOptions {
        add_generation_prompt: true,
        bos: "<s>".to_owned(),
        eos: "</s>".to_owned(),
        variables: Vec::new(),
    }
}

#[test]
fn header_style() {
    let template = "{{- bos_token }}\n{%- if not tools is defined %}\n  {%- set tools = none %}\n{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
";
    let turn = |role: &str, text: &str| {
        format!("<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>")
    };
    let expected = format!(
        "<s>{}{}{}{}<|start_header_id|>assistant<|end_header_id|>\n\n",
        turn("system", "Be brief."),
        turn("user", "2+2?"),
        turn("assistant", "4"),
        turn("user", "<b>&</b>"),
    );
    assert_eq!(render(template, &talk(), &options()), Ok(expected));
}

#[test]
fn chatml_style_with_thinking_and_namespace() {
    let template = "{%- set ns = namespace(last=-1) %}
{%- for m in messages[::-1] %}
    {%- if ns.last < 0 and m.role == 'user' and not (m.content.startswith('<tool>') and m.content.endswith('</tool>')) %}
        {%- set ns.last = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- if tools %}{{ raise_exception('no tools here') }}{% endif %}
{%- for m in messages %}
{%- if loop.index0 > ns.last %}{% continue %}{% endif %}
{{- '<|im_start|>' + m.role + '\\n' + m.content.strip() + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}";
    let mut options = options();
    let plain = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n\
        <|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\n<b>&</b><|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(render(template, &talk(), &options).as_deref(), Ok(plain));
    options
        .variables
        .push(("enable_thinking".to_owned(), json!(false)));
    assert_eq!(
        render(template, &talk(), &options),
        Ok(format!("{plain}<think>\n\n</think>\n\n"))
    );
    options
        .variables
        .push(("tools".to_owned(), json!([{"name": "f"}])));
    assert_eq!(
        render(template, &talk(), &options),
        Err(ChatError::Refused("no tools here".to_owned()))
    );
}

#[test]
fn turn_style_with_alternation_check() {
    let template = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] | trim + '\\n\\n' %}{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}
{% for message in rest %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate') }}
{% endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') + message['content'] | trim }}<end_of_turn>
{% endfor %}
{% if add_generation_prompt %}
<start_of_turn>model
{% endif %}";
    assert_eq!(
        render(template, &talk(), &options()).as_deref(),
        Ok(
            "<s><start_of_turn>user\nBe brief.\n\n2+2?<end_of_turn>\n<start_of_turn>model\n4<end_of_turn>\n\
            <start_of_turn>user\n<b>&</b><end_of_turn>\n<start_of_turn>model\n"
        )
    );
    assert!(matches!(
        render(template, &talk()[2..], &options()),
        Err(ChatError::Refused(_))
    ));
}

#[test]
fn json_is_python_s() {
    let mut options = options();
    let tool = json!({"name": "f", "args": ["<é>", 1, {"x": null}]});
    options.variables.push(("tool".to_owned(), tool));
    assert_eq!(
        render("{{ tool.args | tojson }}", &[], &options).as_deref(),
        Ok(r#"["<é>", 1, {"x": null}]"#)
    );
    assert_eq!(
        render("{{ [1] | tojson(indent=2) }}", &[], &options).as_deref(),
        Ok("[\n  1\n]")
    );
    assert_eq!(
        render(
            "{% for k, v in tool.items() %}{{ k }};{% endfor %}{{ 'a,b'.split(',')[-1] }}",
            &[],
            &options
        )
        .map(|text| text.len()),
        Ok("name;args;b".len())
    );
}

#[test]
fn bad_and_endless_templates_are_errors() {
    let o = options();
    assert!(matches!(
        render("{% if %}", &[], &o),
        Err(ChatError::Syntax(_))
    ));
    assert!(matches!(
        render("{{ nothing() }}", &[], &o),
        Err(ChatError::Render(_))
    ));
    for wide in [
        "{{ 'a'|indent(9999) }}",
        "{{ 'a'|indent(width=9999) }}",
        "{{ '%09999d'|format(1) }}",
        "{{ [1]|batch(9999) }}",
    ] {
        assert!(matches!(render(wide, &[], &o), Err(ChatError::Render(_))));
    }
    let wide = "{{ 'a\nb'|indent(width=2) }}|{{ '%03d*'|format(7) }}";
    assert_eq!(render(wide, &[], &o), Ok("a\n  b|007*".into()));
    let flood = "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}";
    assert_eq!(render(flood, &[], &o), Err(ChatError::TooLarge));
    let refused = render("{{ raise_exception('two\nlines') }}", &[], &o);
    let refused = refused.expect_err("refused").to_string();
    assert!(refused.ends_with(": two lines"), "{refused}");
    let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    assert_eq!(render(nested, &[], &o), Err(ChatError::TooLong));
    let endless = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert!(render(endless, &[], &o).is_err());
}

#[test]
fn dates() {
    assert_eq!(strftime("%d %b %Y", 0), "01 Jan 1970");
    assert_eq!(
        strftime("%A %F %T", 951_782_399),
        "Monday 2000-02-28 23:59:59"
    );
    assert_eq!(
        strftime("%a %e %B %y %I%p %%%q", 1_709_164_800),
        "Thu 29 February 24 12AM %%q"
    );
    assert_eq!(strftime("%Y-%m-%d", 4_102_444_799), "2099-12-31");
}
