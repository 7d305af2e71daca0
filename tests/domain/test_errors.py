from __future__ import annotations

import json
import re
from http import HTTPStatus

import pytest

from engine.domain import errors
from engine.domain.errors import (
    AddressInUse,
    CallerError,
    ConfigError,
    EngineError,
    InvalidRequest,
    Overloaded,
    RuntimeFault,
)

ALL = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, EngineError)]
BRANCHES = (EngineError, CallerError, RuntimeFault)
LEAVES = [error for error in ALL if error not in BRANCHES]


@pytest.mark.parametrize("error", ALL)
def test_a_body_has_code_message_retryable_and_details(error):
    body = error("why", limit=3).body()
    assert body == {
        "error": {"code": error.code, "message": "why", "retryable": error.retryable, "details": {"limit": 3}}
    }
    assert json.loads(json.dumps(body)) == body


def test_the_message_is_what_a_person_sees():
    error = InvalidRequest("top_k must be at least 1")
    assert str(error) == error.message == "top_k must be at least 1"
    assert error.details == {}


@pytest.mark.parametrize("error", ALL)
def test_codes_are_words_and_statuses_are_of_http(error):
    assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", error.code)
    assert 400 <= HTTPStatus(error.status) < 600


@pytest.mark.parametrize("error", LEAVES)
def test_a_branch_says_whose_fault_it_is(error):
    assert issubclass(error, CallerError) == (400 <= error.status < 500)
    assert not issubclass(error, RuntimeFault) or error.status in (502, 503, 504)


@pytest.mark.parametrize("error", [e for e in LEAVES if issubclass(e, CallerError)])
def test_a_refused_request_is_not_worth_repeating(error):
    """Unchanged it is refused again; only a body that came too slowly may do better next time."""
    assert error.retryable == (error.status == 408)


@pytest.mark.parametrize("status", [503, 504])
def test_what_is_not_there_now_is_worth_repeating(status):
    assert all(error.retryable for error in LEAVES if error.status == status)


def test_a_code_belongs_to_one_error_and_its_kinds():
    """A kind without a code of its own is told as what it is a kind of."""
    codes = [error.code for error in LEAVES if "code" in vars(error) and error.code != EngineError.code]
    assert len(codes) == len(set(codes))
    assert {error.code for error in LEAVES} == {*codes, EngineError.code}


@pytest.mark.parametrize("error", LEAVES)
def test_details_are_not_shared(error):
    one, two = error("a"), error("a")
    one.details["request_id"] = "x"
    assert two.details == {}


def test_errors_that_end_the_process_are_none_of_a_caller():
    assert not issubclass(ConfigError, CallerError)
    assert not issubclass(AddressInUse, CallerError | RuntimeFault)
    assert not issubclass(Overloaded, CallerError)
