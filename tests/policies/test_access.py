from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.errors import EngineError
from policies.access import AccessRules, RequestHead, check, loopback_rules

RULES = loopback_rules(8145, 8145, token="t0ken")
KEYED = loopback_rules(8145, 8145, token="t0ken", api_keys=("first-key", "second-kéy"))
HOST = ("host", "127.0.0.1:8145")
JSON = ("content-type", "application/json")
BODY = ("content-length", "2")
PAGE = ("origin", "http://127.0.0.1:8145")


def head(*headers: tuple[str, str], method: str = "GET") -> RequestHead:
    return RequestHead(method, b"/health", tuple((k.encode(), v.encode("utf-8")) for k, v in headers))


def verdict(*headers: tuple[str, str], method: str = "GET", rules: AccessRules = RULES) -> str:
    error = check(rules, head(*headers, method=method))
    return "ok" if error is None else f"{error.status} {error.code}"


@pytest.mark.parametrize("host", ["127.0.0.1:8145", "localhost:8145", "LOCALHOST:8145", "[::1]:8145"])
def test_the_three_names_of_this_machine(host):
    assert verdict(("host", host)) == "ok"


@pytest.mark.parametrize(
    "host",
    [
        "",
        "127.0.0.1",
        "localhost",
        "127.0.0.1:8146",
        "127.0.0.1:8145:8145",
        "127.0.0.1:08145",
        "127.1:8145",
        "0.0.0.0:8145",
        "::1:8145",
        "localhost.:8145",
        "localhost.evil.example:8145",
        "evil.example",
        "evil.example:8145",
        "user@127.0.0.1:8145",
        "127.0.0.1:8145, evil.example",
        "ｌocalhost:8145",
        "localhost:8145\x00",
    ],
)
def test_any_other_host_is_refused(host):
    assert verdict(("host", host)) == "403 FORBIDDEN"


def test_a_host_is_needed_once():
    assert verdict() == "400 VALIDATION_ERROR"
    assert verdict(HOST, HOST) == "400 VALIDATION_ERROR"
    assert verdict(HOST, ("host", "evil.example")) == "400 VALIDATION_ERROR"


def test_port_80_may_be_left_out():
    rules = loopback_rules(80, 80, token="t")
    assert verdict(("host", "127.0.0.1"), ("origin", "http://localhost"), rules=rules) == "ok"
    assert verdict(("host", "127.0.0.1:80"), ("origin", "http://[::1]:80"), rules=rules) == "ok"


def test_allowed_hosts_and_origins():
    rules = loopback_rules(
        8145,
        8145,
        token="t",
        allowed_hosts=["Engine.lan", "proxy.lan:443", "[fd00::1]", "[fd00::2]:9"],
        allowed_origins=["https://Page.example/"],
    )
    for host in ("engine.lan", "engine.lan:8145", "proxy.lan:443", "[fd00::1]", "[fd00::1]:8145", "[fd00::2]:9"):
        assert verdict(("host", host), rules=rules) == "ok"
    for host in ("engine.lan:443", "proxy.lan", "proxy.lan:8145", "[fd00::2]"):
        assert verdict(("host", host), rules=rules) == "403 FORBIDDEN"
    assert verdict(HOST, ("origin", "https://page.example"), rules=rules) == "ok"
    assert verdict(HOST, ("origin", "http://page.example"), rules=rules) == "403 FORBIDDEN_ORIGIN"


def test_the_frames_listener_takes_pages_of_the_http_listener():
    rules = loopback_rules(8146, 8145, token="t")
    assert verdict(("host", "localhost:8146"), ("origin", "http://localhost:8145"), rules=rules) == "ok"
    assert (
        verdict(("host", "localhost:8146"), ("origin", "http://localhost:8146"), rules=rules) == "403 FORBIDDEN_ORIGIN"
    )
    assert verdict(("host", "localhost:8145"), rules=rules) == "403 FORBIDDEN"


@pytest.mark.parametrize(
    "origin",
    ["null", "", "http://evil.example", "https://127.0.0.1:8145", "http://127.0.0.1", "http://127.0.0.1:8145/"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_foreign_origins_are_refused_whatever_they_ask(origin, method):
    assert verdict(HOST, ("origin", origin), method=method) == "403 FORBIDDEN_ORIGIN"


def test_our_own_pages_may_call():
    assert verdict(HOST, PAGE) == "ok"
    assert verdict(HOST, PAGE, ("sec-fetch-site", "same-origin"), JSON, BODY, method="POST") == "ok"
    assert verdict(HOST, PAGE, PAGE) == "400 VALIDATION_ERROR"


@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "Same-Origin"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "post", "get", "CONNECT", "X"])
def test_other_sites_may_not_change_anything(site, method):
    assert verdict(HOST, ("sec-fetch-site", site), JSON, method=method) == "403 FORBIDDEN_ORIGIN"
    assert verdict(HOST, ("sec-fetch-site", "none"), ("sec-fetch-site", site), method=method) == "403 FORBIDDEN_ORIGIN"


def test_reading_from_another_site_is_the_browser_s_to_guard():
    assert verdict(HOST, ("sec-fetch-site", "same-site")) == "ok"


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/json", "ok"),
        ("Application/JSON; charset=utf-8", "ok"),
        ("text/plain", "415 UNSUPPORTED_MEDIA_TYPE"),
        ("application/x-www-form-urlencoded", "415 UNSUPPORTED_MEDIA_TYPE"),
        ("text/plain; application/json", "415 UNSUPPORTED_MEDIA_TYPE"),
        ("application/jsonx", "415 UNSUPPORTED_MEDIA_TYPE"),
    ],
)
@pytest.mark.parametrize("mark", [PAGE, ("sec-fetch-site", "same-origin")])
@pytest.mark.parametrize("body", [BODY, ("transfer-encoding", "chunked")])
def test_a_browser_sends_json_or_nothing(content_type, expected, mark, body):
    assert verdict(HOST, mark, body, ("content-type", content_type), method="POST") == expected


def test_a_browser_must_say_what_it_sends_and_only_once():
    assert verdict(HOST, PAGE, BODY, method="POST") == "415 UNSUPPORTED_MEDIA_TYPE"
    assert verdict(HOST, PAGE, BODY, JSON, ("content-type", "text/plain"), method="POST").startswith("415")
    assert verdict(HOST, PAGE, ("content-length", "0"), method="POST") == "ok"
    assert verdict(HOST, PAGE, method="POST") == "ok"


def test_programs_may_send_what_curl_sends():
    assert verdict(HOST, BODY, ("content-type", "application/x-www-form-urlencoded"), method="POST") == "ok"


def test_without_keys_the_authorization_header_is_ignored():
    assert verdict(HOST, ("authorization", "Bearer anything")) == "ok"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (("authorization", "Bearer first-key"), "ok"),
        (("authorization", "bearer  second-kéy"), "ok"),
        (("x-api-key", "first-key"), "ok"),
        (("authorization", "Bearer first-ke"), "401 UNAUTHORIZED"),
        (("authorization", "Bearer first-key2"), "401 UNAUTHORIZED"),
        (("authorization", "Basic first-key"), "401 UNAUTHORIZED"),
        (("authorization", "first-key"), "401 UNAUTHORIZED"),
        (("authorization", "Bearer "), "401 UNAUTHORIZED"),
        (("x-api-key", ""), "401 UNAUTHORIZED"),
        (("x-wf-token", "t0ken"), "401 UNAUTHORIZED"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_with_keys_every_request_needs_one(header, expected, method):
    assert verdict(HOST, header, method=method, rules=KEYED) == expected
    assert verdict(HOST, method=method, rules=KEYED) == "401 UNAUTHORIZED"


def basic(text):
    return ("authorization", "Basic " + base64.b64encode(text.encode()).decode())


@pytest.mark.parametrize(
    ("header", "let_in"),
    [
        (basic("anybody:first-key"), True),
        (basic(":second-kéy"), True),
        (basic("first-key:"), False),
        (basic("first-key"), False),
        (("authorization", "Basic not base64!"), False),
        (("authorization", "Basic"), False),
        (("sec-websocket-protocol", "wf.frames, wf.token.t0ken"), True),
        (("sec-websocket-protocol", "wf.token.first-key"), False),
        (("sec-websocket-protocol", "wf.token."), False),
        (("sec-websocket-protocol", "t0ken"), False),
    ],
)
def test_a_browser_shows_its_key_as_a_password_and_its_page_the_token(header, let_in):
    assert verdict(HOST, header, rules=KEYED) == ("ok" if let_in else "401 UNAUTHORIZED")


def test_a_key_opens_no_door_that_host_or_origin_closed():
    assert verdict(("host", "evil.example"), ("x-api-key", "first-key"), rules=KEYED) == "403 FORBIDDEN"
    assert verdict(HOST, ("origin", "null"), ("x-api-key", "first-key"), rules=KEYED) == "403 FORBIDDEN_ORIGIN"


@pytest.mark.parametrize("secrets", [{"token": ""}, {"token": "t", "api_keys": ("k", "")}])
def test_empty_secrets_are_refused_at_the_start(secrets):
    with pytest.raises(ValueError):
        loopback_rules(8145, 8145, **secrets)


def test_rules_do_not_print_their_secrets():
    assert "t0ken" not in repr(KEYED)
    assert "key" not in repr(KEYED).replace("api_keys", "")


NAMES = ["host", "origin", "sec-fetch-site", "content-type", "content-length", "transfer-encoding", "authorization"]
headers = st.lists(
    st.tuples(st.sampled_from([n.encode() for n in [*NAMES, "x-api-key", "x-wf-token"]]) | st.binary(max_size=12))
    .map(lambda pair: pair[0])
    .flatmap(lambda name: st.tuples(st.just(name), st.binary(max_size=40))),
    max_size=12,
).map(tuple)


@given(st.sampled_from([RULES, KEYED]), st.text(max_size=8), st.binary(max_size=20), headers)
def test_no_bytes_make_it_fail(rules, method, target, fields):
    request = RequestHead(method, target, fields)
    error = check(rules, request)
    assert error is None or isinstance(error, EngineError)
    if check(rules, request) is None:
        (host,) = request.values("host")
        assert host.lower() in rules.hosts


@given(st.sampled_from([*NAMES, "x-api-key"]), st.binary(max_size=40))
def test_refusals_say_what_is_expected_and_nothing_of_what_came(name, value):
    mark = "<script>7b1f"
    fields = ((b"host", b"127.0.0.1:8145"), (name.encode(), mark.encode() + value))
    error = check(KEYED, RequestHead("POST", b"/", fields))
    assert error is not None
    assert mark not in str(error.body())
