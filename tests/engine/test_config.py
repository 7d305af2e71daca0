"""The settings: defaults, three sources in order, and every kind of bad input told with its place."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import attrs
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.config import FLAGS, find_config, load_settings, policies_of, settings_dict
from engine.domain.errors import ConfigError
from engine.domain.models import Tier
from engine.settings import LimitSettings, Secret, Settings
from policies.schema import Misfit, rows
from policies.source import NESTING_MAX, SIZE_MAX_BYTES
from tests.fakes.processes import open_files

EXAMPLE = Path(__file__).parents[2] / "policies" / "wf.example.yaml"
LEAVES = [(path, field) for path, field in rows(Settings) if not attrs.has(field.type)]


def load(cwd, text=None, environ=None, flags=None):
    """Settings from `text` as ./wf.yaml (None: no file), an environment without a home, and flags."""
    if text is not None:
        (cwd / "wf.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_settings(argv_config=None, flags=flags or {}, environ=environ or {}, cwd=cwd)


def refusal(cwd, text=None, environ=None, flags=None):
    with pytest.raises(ConfigError) as caught:
        load(cwd, text, environ, flags)
    return caught.value.message


def setting(whole, path):
    for part in path:
        whole = whole[part] if isinstance(whole, dict) else getattr(whole, part)
    return whole


# -- defaults and the documented example


def test_defaults_are_those_of_the_contract(tmp_path):
    found = load(tmp_path)
    assert found == Settings()
    assert (found.http.host, found.http.port, found.ws_host, found.ws.port) == ("127.0.0.1", 8145, "127.0.0.1", 8146)
    assert attrs.astuple(found.ws)[2:] == (5, 5, 10, 524_288, 100, 65_536, 1024)
    assert attrs.astuple(found.limits) == (1_048_576, 16_384, 64, 256, 256, 16, 5, 10, 5)
    assert attrs.astuple(found.timeouts) == (300, 120, 300, 3)
    assert attrs.astuple(found.session) == (60, 1_048_576)
    assert (found.tier, found.level, found.runtime, found.synthetic) == ("auto", 5, None, None)
    assert (found.allow_remote, found.api_keys, found.allowed_hosts, found.allowed_origins) == (False, (), (), ())
    assert (found.log.level, found.log.format) == ("info", "text")
    assert (found.embedded.enabled, found.embedded.pace_tps) == (True, 30)


def test_the_example_names_every_key_and_only_defaults(tmp_path):
    text = EXAMPLE.read_text()
    assert load(tmp_path, text) == Settings()
    data = yaml.safe_load(text)
    for path, _ in LEAVES:
        assert setting(data, path[:-1]).keys() >= {path[-1]}, path
    assert sum(1 for line in text.splitlines() if re.match(r" *[a-z_]+:", line)) == len(list(rows(Settings)))


def test_the_example_documents_every_key_with_unit_and_range():
    lines = iter(EXAMPLE.read_text().splitlines())
    for path, field in rows(Settings):
        row = field.metadata["row"]
        line = next(line for line in lines if line.strip().startswith(f"{path[-1]}:"))  # in the order of the tables
        assert f"# {row.doc}" in line
        assert row.range_text() in line
        assert (row.unit or "") in line


def test_numbers_with_a_unit_in_their_name_state_that_unit():
    units = {"_s": "s", "_ms": "ms", "_tps": "tokens/s"}
    for path, field in LEAVES:
        for ending, unit in units.items():
            if path[-1].endswith(ending):
                assert field.metadata["row"].unit == unit, path
        if "_bytes" in path[-1]:
            assert field.metadata["row"].unit == "bytes", path


# -- sources


def test_file_below_environment_below_flags(tmp_path):
    text = "http: {port: 1}\nws: {port: 2}\nlevel: 1\nlog: {level: error}"
    found = load(tmp_path, text, {"WF_WS__PORT": "3", "WF_LEVEL": "2"}, {"level": 3, "log_level": None})
    assert (found.http.port, found.ws.port, found.level, found.log.level) == (1, 3, 3, "error")


def test_environment_values_are_yaml(tmp_path):
    environ = {
        "WF_TIER": "mid",
        "WF_EMBEDDED__PACE_TPS": "1e1",
        "WF_ALLOW_REMOTE": "true",
        "WF_RUNTIME": "null",
        "WF_ALLOWED_HOSTS": "[a.example, 'b.example:8145']",
        "WF_LIMITS": "{streams_max: 5, queued_max: 6}",
        "WF_LIMITS__QUEUED_MAX": "7",  # a key's own variable goes over its section's
        "WF_POLICIES__ENERGY__TPS_MAX__MID": "25",
        "HOME_WF_X": "not ours",
    }
    found = load(tmp_path, "limits: {body_bytes_max: 2048}", environ)
    assert (found.tier, found.embedded.pace_tps, found.allow_remote, found.runtime) == ("mid", 10.0, True, None)
    assert found.allowed_hosts == ("a.example", "b.example:8145")
    assert found.limits == LimitSettings(body_bytes_max=2048, streams_max=5, queued_max=7)
    assert policies_of(found).energy.params(Tier.MID).tps_max == 25


def test_reserved_variables_are_not_settings(tmp_path):
    (tmp_path / "other.yaml").write_text("level: 2")
    found = load(tmp_path, None, {"WF_CONFIG": "other.yaml", "WF_DATA_DIR": "/x", "WF_CHROMIUM": "/y"})
    assert found.level == 2


def test_every_flag_sets_a_known_key(tmp_path):
    values = {"host": "::1", "port": 1, "ws_port": 2, "tier": "low", "level": 1, "runtime": "ollama", "synthetic": 7,
              "gguf": "models/a.gguf", "services": True, "core_lock": True,
              "log_level": "debug", "log_format": "json"}  # fmt: skip
    found = load(tmp_path, flags=values)
    assert {name: setting(found, path) for name, path in FLAGS.items()} == values


def test_which_file_counts(tmp_path):
    cwd, home, xdg = (tmp_path / name for name in ("cwd", "home", "xdg"))
    in_home, in_xdg = home / ".config/wf-engine/wf.yaml", xdg / "wf-engine/wf.yaml"
    for file in (in_home, in_xdg):
        file.parent.mkdir(parents=True)
        file.touch()
    cwd.mkdir()
    assert find_config(None, {}, cwd) is None
    assert find_config(None, {"HOME": str(home)}, cwd) == in_home
    assert find_config(None, {"HOME": str(home), "XDG_CONFIG_HOME": str(xdg)}, cwd) == in_xdg
    assert find_config(None, {"HOME": str(home), "XDG_CONFIG_HOME": "relative"}, cwd) == in_home
    (cwd / "wf.yaml").touch()
    assert find_config(None, {"HOME": str(home)}, cwd) == cwd / "wf.yaml"
    assert find_config(None, {"WF_CONFIG": "missing.yaml"}, cwd) == cwd / "missing.yaml"
    assert find_config(Path("/named.yaml"), {"WF_CONFIG": "missing.yaml"}, cwd) == Path("/named.yaml")


# -- refusals


def test_all_problems_are_told_with_their_places_in_the_order_of_the_file(tmp_path):
    text = """\
limits:
  streams_max: 0
  streems_max: 3
  queued_max: "5"
limts: {}
queued_max: 3
log: {level: loud}
level: true
http: 3
allowed_hosts: [ok, 3]
timeouts: {drain_s: .nan}
embedded: {enabled: off}
runtime: "a\\nb"
"""
    assert refusal(tmp_path, text).splitlines() == [
        "wf.yaml:2: limits.streams_max must be 1–4096, not 0",
        "wf.yaml:3: limits.streems_max is unknown; did you mean limits.streams_max?",
        "wf.yaml:4: limits.queued_max must be a whole number, not '5'",
        "wf.yaml:5: limts is unknown; did you mean limits?",
        "wf.yaml:6: queued_max is unknown; did you mean limits.queued_max?",
        "wf.yaml:7: log.level must be debug or info or warning or error, not 'loud'",
        "wf.yaml:8: level must be a whole number, not true",
        "wf.yaml:9: http must be a mapping, not 3",
        "wf.yaml:10: allowed_hosts[1] must be text, not 3",
        "wf.yaml:11: timeouts.drain_s must be a number, not '.nan'",
        "wf.yaml:12: embedded.enabled must be true or false, not 'off'",
        "wf.yaml:13: runtime must be a runtime's name (letters, digits, . _ -), not 'a\\nb'",
    ]


def test_problems_of_all_sources_are_told_together(tmp_path):
    environ = {"WF_LIMTS__X": "1", "WF_tier": "low", "WF_TIER": "lo", "WF_LEVEL": "[1", "WF_POLICIES__TIRES__X": "1"}
    assert refusal(tmp_path, "level: 9", environ, {"port": 70_000}).splitlines() == [
        "wf.yaml:1: level must be 1–5, not 9",
        "WF_LEVEL: while parsing a flow sequence: expected ',' or ']', but got '<stream end>'",
        "WF_LIMTS__X is unknown; did you mean WF_LIMITS?",
        "WF_POLICIES__TIRES__X is unknown; did you mean WF_POLICIES__TIERS?",
        "WF_TIER: tier must be auto or low or mid or high or hybrid, not 'lo'",
        "WF_tier is unknown; did you mean WF_TIER?",
        "--port: http.port must be 0–65535, not 70000",
    ]


def test_a_bad_value_is_told_even_where_it_is_hidden(tmp_path):
    assert refusal(tmp_path, "level: 9", {"WF_LEVEL": "3"}) == "wf.yaml:1: level must be 1–5, not 9"


def test_policy_changes_are_checked_with_their_places(tmp_path):
    text = "policies:\n  energy:\n    alpha:\n      low: 3\n  tiers: {low: {tick_hz: 30}}"
    assert refusal(tmp_path, text, {"WF_POLICIES__TIERS__MID__TICK_HZ": "0"}).splitlines() == [
        "wf.yaml:4: policies.energy.alpha.low must be more than 0 and at most 1, not 3",
        "WF_POLICIES__TIERS__MID__TICK_HZ: policies.tiers.mid.tick_hz must be 1–60, not 0",
    ]


def test_many_problems_are_cut(tmp_path):
    lines = refusal(tmp_path, "\n".join(f"unknown_{n}: 1" for n in range(500))).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 480 more"


BAD_YAML = {
    "a: &x 1": "wf.yaml:1: anchors and aliases (& and *) are not allowed",
    "level: 3\na: *x": "wf.yaml:2: anchors and aliases (& and *) are not allowed",
    "a: !!python/object/apply:os.system [id]": "wf.yaml:1: tags (!) are not allowed",
    "level: 3\nlevel: 3": "wf.yaml:2: level is given twice",
    "- level": "wf.yaml:1: the file must be a mapping (`key: value` lines)",
    "level": "wf.yaml:1: the file must be a mapping (`key: value` lines)",
    "level: 3\n---\nlevel: 3": "wf.yaml:2: expected a single document in the stream: but found another document",
    "? [a]\n: 1": "wf.yaml:1: a key must be plain text",
    "a: b: c": "wf.yaml:1: mapping values are not allowed here",
    "level: 3\n@": "wf.yaml:2: while scanning for the next token: found character '@' that cannot start any token",
    'a: "\\ud800"': "wf.yaml:1: half of a surrogate pair is not text",
    'a: "\\UFFFFFFFF"': "wf.yaml: not valid YAML (a character or an escape that cannot be)",
    "a: \x07": "wf.yaml: not valid YAML (a character or an escape that cannot be)",
    "<<: {level: 3}": "wf.yaml:1: << is unknown",
    "a: " + "[" * 10_000: f"wf.yaml:1: nested deeper than {NESTING_MAX} levels",
    "a: " + "{a: " * NESTING_MAX: f"wf.yaml:1: nested deeper than {NESTING_MAX} levels",
    "#" * (SIZE_MAX_BYTES + 1): f"wf.yaml: larger than {SIZE_MAX_BYTES} bytes",
}


@pytest.mark.parametrize("text", BAD_YAML, ids=lambda text: text[:24])
def test_bad_yaml(tmp_path, text):
    assert refusal(tmp_path, text) == BAD_YAML[text]


def test_bytes_that_are_not_utf8_are_told_with_their_line(tmp_path):
    assert refusal(tmp_path, b"level: 3\n# \xff") == "wf.yaml:2: not UTF-8"


@pytest.mark.parametrize("text", ["", "# nothing", "---\n", "\ufefflevel: 5", "~", "level: 5\n..."])
def test_a_file_may_say_nothing(tmp_path, text):
    assert load(tmp_path, text) == Settings()


def test_text_that_yaml_1_1_takes_for_something_else(tmp_path):
    found = load(tmp_path, "runtime: off\nallowed_hosts: [1.2.3.4, 12:30, 2026-01-01, no]")
    assert found.runtime == "off"
    assert found.allowed_hosts == ("1.2.3.4", "12:30", "2026-01-01", "no")


def test_what_is_not_a_readable_regular_file(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    expected = {
        "folder": "folder: not a regular file",
        "fifo": "fifo: not a regular file",
        "/dev/zero": "/dev/zero: not a regular file",
        "dangling": "dangling: cannot be read: No such file or directory",
        "loop": "loop: cannot be read: Too many levels of symbolic links",
        "missing.yaml": "missing.yaml: cannot be read: No such file or directory",
        "nul\0": "nul\\x00: cannot be read: not a possible path",
    }
    before = open_files()
    assert {name: refusal(tmp_path, None, {"WF_CONFIG": name}) for name in expected} == expected
    assert open_files() <= before
    (tmp_path / "wf.yaml").symlink_to("nowhere")
    assert refusal(tmp_path) == "wf.yaml: cannot be read: No such file or directory"


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "real.yaml").write_text("level: 2")
    (tmp_path / "wf.yaml").symlink_to("real.yaml")
    assert load(tmp_path).level == 2


# -- cross rules

REMOTE = " is not a loopback address; that needs allow_remote: true and at least one of api_keys"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "127.1", "::ffff:192.168.1.2"])
def test_an_address_that_others_can_reach_needs_two_consents(tmp_path, host):
    remote, keys = {"WF_ALLOW_REMOTE": "true"}, {"WF_API_KEYS": "[k1]"}
    expected = f"--host: http.host '{host}'{REMOTE}"
    for environ in ({}, remote, keys):
        assert refusal(tmp_path, None, environ, {"host": host}) == expected
    assert load(tmp_path, None, remote | keys, {"host": host}).ws_host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost", "::ffff:127.0.0.1"])
def test_an_address_that_only_this_machine_reaches_needs_none(tmp_path, host):
    assert load(tmp_path, None, {}, {"host": host}).http.host == host


def test_the_websocket_address_is_held_to_the_same_rule(tmp_path):
    assert refusal(tmp_path, "ws: {host: 0.0.0.0}") == f"wf.yaml:1: ws.host '0.0.0.0'{REMOTE}"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_no_consent(tmp_path, host):
    assert load(tmp_path, None, {}, {"host": host}).http.host == host


@pytest.mark.parametrize("host", ["", "[::1]", "a b", "*", "http://x", "a\nb", ".."])
def test_what_is_no_host(tmp_path, host):
    assert refusal(tmp_path, None, {}, {"host": host}).startswith("--host: http.host ")


def test_the_two_ports_must_differ_unless_any_will_do(tmp_path):
    expected = "--port: http.port and ws.port must differ, both are 8146"
    assert refusal(tmp_path, flags={"port": 8146}) == expected
    assert load(tmp_path, flags={"port": 0, "ws_port": 0}).http.port == 0


@pytest.mark.parametrize(
    "origin", ["null", "*", "https://*", "example.org", "https://a/b", "https://a b", "https://u@a"]
)
def test_what_is_no_origin(tmp_path, origin):
    assert "allowed_origins[0] must be an origin" in refusal(tmp_path, json.dumps({"allowed_origins": [origin]}))


# -- secrets

SECRET = "s3cret-of-the-house"


def test_secrets_do_not_show(tmp_path):
    found = load(tmp_path, f"api_keys: [{SECRET}]")
    assert found.api_keys[0].reveal() == SECRET
    assert settings_dict(found)["api_keys"] == ["***"]
    shown = f"{found!r} {found.api_keys} {found.api_keys[0]} {found.api_keys[0]!r} {json.dumps(settings_dict(found))}"
    assert SECRET not in shown


@pytest.mark.parametrize(
    "text",
    [f"api_keys: {SECRET}", f"api_keys: {{{SECRET}: 1}}", f"api_keys: [[{SECRET}]]", f"api_keys: ['{SECRET} ']",
     f"api_keys: ['{SECRET}é']", f"api_key: [{SECRET}]", f"api_keys: [{{a: {SECRET}}}]", f"api_keys: ['', {SECRET}]",
     f"api_keys: [{SECRET}", f"api_keys: '{SECRET}", f"api_keys: [{SECRET}, {SECRET}: ]]"],
)  # fmt: skip
def test_refusals_do_not_quote_secrets(tmp_path, text):
    assert SECRET not in refusal(tmp_path, text)
    value = text.partition(": ")[2]
    assert SECRET not in refusal(tmp_path, "", {"WF_API_KEYS": value + "\n]["})


def test_settings_as_json(tmp_path):
    data = settings_dict(load(tmp_path, "allowed_hosts: [a]\npolicies: {energy: {tps_max: {mid: 25}}}"))
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["allowed_hosts"] == ["a"]
    assert data["policies"]["energy"] == {"tps_max": {"mid": 25}}


def test_the_tables_guard_themselves():
    with pytest.raises(Misfit):
        LimitSettings(streams_max=0)
    with pytest.raises(Misfit):
        Settings(api_keys=(Secret(""),))


# -- anything at all


def loads_or_is_refused(cwd, text, environ=None):
    """The property itself: any other exception fails the test. The message is lines that a terminal can take."""
    try:
        load(cwd, text, environ)
    except ConfigError as error:
        message = error.message
    else:
        return
    assert message
    assert all(line.isprintable() and len(line) < 600 for line in message.split("\n"))


any_text = st.text(st.characters(codec="utf-8"), max_size=200)
PIECES = """{ } [ ] : , - ? & * ! | > ' " % @ ` # ~ \\ level limits api_keys policies energy streams_max 3 1e3 null true
    << --- ... %YAML %TAG \\x \\U !!int""".split()
any_bytes_text = st.text(st.characters(), max_size=50)  # with surrogates, as os.environ has them for stray bytes
yamlish = st.lists(
    st.sampled_from([*PIECES, " ", "\n", "\t", ": ", "\n  ", "\x85", "\u2028", "\ufeff", "\x00", "é", "x" * 130]),
    max_size=40,
).map("".join)
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)
SECTIONS = [path[0] for path, _ in rows(Settings) if len(path) == 1]
shaped = st.dictionaries(st.sampled_from(SECTIONS), plain_values | st.dictionaries(
    st.sampled_from([path[-1] for path, _ in LEAVES]), plain_values, max_size=3), max_size=4)  # fmt: skip
ANY = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=200, deadline=None
)


@ANY
@given(any_text | yamlish)
@example("%YAML 1." + "9" * 5000 + "\n--- a")
@example("? " * 500)
@example('"\\U00110000"')
@example("- " * 2000)
@example("level: " + "9" * 5000)
@example("policies: {energy: {stall_ms: {low: " + "9" * 20 + "}}}")
def test_any_text_loads_or_is_refused(tmp_path, text):
    loads_or_is_refused(tmp_path, text)


@ANY
@given(shaped)
def test_any_values_under_known_names_load_or_are_refused(tmp_path, data):
    loads_or_is_refused(tmp_path, json.dumps(data, ensure_ascii=False))


@ANY
@given(st.binary(max_size=200))
def test_any_bytes_load_or_are_refused(tmp_path, data):
    loads_or_is_refused(tmp_path, data)


known_names = st.sampled_from(["WF_" + "__".join(path).upper() for path, _ in rows(Settings)])
near_names = st.sampled_from(["", "__", "POLICIES__ENERGY__", "POLICIES__ENERGY__ALPHA", "LEVEL__X"])
names = known_names | st.builds("WF_{}".format, any_bytes_text | near_names)


@ANY
@given(st.dictionaries(names, any_bytes_text | yamlish | plain_values.map(str), max_size=5))
@example({"WF_POLICIES__ENERGY" + "__A" * 5000: "1", "WF_POLICIES__ENERGY" + "__A" * 5001: "1"})
@example({"WF_POLICIES__ENERGY" + "__A" * 25: "1", "WF_POLICIES__ENERGY" + "__A" * 26: "1"})
def test_any_environment_loads_or_is_refused(tmp_path, environ):
    loads_or_is_refused(tmp_path, "", environ)


def valid(field):
    """Values that fit a row, as YAML would hold them."""
    row, kind = field.metadata["row"], str(field.type)
    if "Literal" in kind:
        return st.sampled_from(field.type.__args__)
    if field.type is bool:
        return st.booleans()
    if field.type is float:
        return st.floats(row.minimum, row.maximum)
    if "int" in kind:
        whole = st.integers(int(row.minimum), int(row.maximum))
        return st.none() | whole if "None" in kind else whole
    if "Secret" in kind:
        key = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)
        return st.lists(key, max_size=3) if "tuple" in kind else st.none() | key
    if "tuple" in kind:
        return st.lists(st.from_regex(row.pattern, fullmatch=True), max_size=3)
    if "dict" in kind:
        names = st.sampled_from(["a", "org/b:1"])
        return st.dictionaries(names, names) if field.name == "aliases" else st.just({})
    return st.from_regex(row.pattern, fullmatch=True)


@settings(ANY, max_examples=50)
@given(st.data())
def test_what_is_written_is_what_is_read(tmp_path, data):
    """Every setting at once, any valid value: dump and load gives it back."""
    wanted: dict = {}
    for path, field in LEAVES:
        section = wanted
        for part in path[:-1]:
            section = section.setdefault(part, {})
        section[path[-1]] = data.draw(valid(field), label=".".join(path))
    wanted["http"]["host"], wanted["ws"]["host"] = "127.0.0.1", None  # the cross rules have tests of their own
    wanted["ws"]["port"] = (wanted["http"]["port"] + 1) % 65536
    found = load(tmp_path, json.dumps(wanted, ensure_ascii=False))
    read = settings_dict(found) | {"api_keys": [key.reveal() for key in found.api_keys]}
    token = found.llama_cpp.hub_token
    assert read["llama_cpp"]["hub_token"] == (None if token is None else "***")
    read["llama_cpp"]["hub_token"] = None if token is None else token.reveal()
    assert read == wanted
    masked = {**read, "api_keys": [], "llama_cpp": {**read["llama_cpp"], "hub_token": None}}
    assert settings_dict(load(tmp_path, json.dumps(masked, ensure_ascii=False))) == masked
