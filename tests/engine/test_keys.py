"""Where keys come from, and that each goes to its own host or nowhere."""

from __future__ import annotations

import os

import pytest

from engine.keys import FILE_BYTES_MAX, find_keys
from policies.providers import provider_specs

KEY = "sk-this-is-secret"


def found_for(tmp_path, text=None, environ=None, mode=0o600, **providers):
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    specs = provider_specs(providers or {"openai": {}})
    found = find_keys(specs, environ or {}, file)
    name = next(iter(specs))
    assert KEY not in repr(found)
    assert KEY not in (found[name].problem or "")
    assert (found[name].key is None) != (found[name].problem is None)
    return found[name]


def test_a_key_of_the_environment(tmp_path):
    assert found_for(tmp_path, environ={"OPENAI_API_KEY": f" {KEY}\n"}).key.reveal() == KEY


def test_a_key_of_the_environment_goes_to_the_providers_own_host_alone(tmp_path):
    """The way in which proxies lost keys: an address in somebody else's hands, and the key sent along."""
    moved = {"openai": {"base_url": "https://evil.example"}}
    assert found_for(tmp_path, environ={"OPENAI_API_KEY": KEY}, **moved).key is None
    other = {"mistral": {"base_url": "https://api.mistral.ai"}}
    assert found_for(tmp_path, environ={"MISTRAL_API_KEY": KEY}, **other).key is None


def test_a_line_of_the_file_names_its_host(tmp_path):
    text = f"# comment\n\nopenai api.openai.com {KEY}\nmistral API.mistral.ai other\n"
    assert found_for(tmp_path, text).key.reveal() == KEY
    assert found_for(tmp_path, text, mistral={"base_url": "https://api.mistral.ai"}).key.reveal() == "other"
    assert found_for(tmp_path, text, openai={"base_url": "https://evil.example"}).key is None
    assert found_for(tmp_path, f"#openai api.openai.com {KEY}").key is None


def test_the_environment_goes_before_the_file(tmp_path):
    found = found_for(tmp_path, "openai api.openai.com old", {"OPENAI_API_KEY": KEY})
    assert found.key.reveal() == KEY


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o644, 0o622])
def test_a_file_that_others_can_read_is_not_used(tmp_path, mode):
    found = found_for(tmp_path, f"openai api.openai.com {KEY}", mode=mode)
    assert found.key is None
    assert "chmod 600" in found.problem


def test_a_link_is_not_followed(tmp_path):
    real = tmp_path / "real"
    real.write_text(f"openai api.openai.com {KEY}")
    real.chmod(0o600)
    (tmp_path / "keys").symlink_to(real)
    assert "cannot be read" in found_for(tmp_path).problem


def test_something_else_than_a_file(tmp_path):
    os.mkfifo(tmp_path / "keys")  # opening it must not wait for a writer
    assert "no file" in found_for(tmp_path).problem


def test_a_file_that_is_too_large(tmp_path):
    assert "larger" in found_for(tmp_path, "x" * (FILE_BYTES_MAX + 1)).problem


@pytest.mark.parametrize("key", ["clé-secrète", "x" * 257])
def test_a_key_that_cannot_stand_in_a_header(tmp_path, key):
    found = found_for(tmp_path, environ={"OPENAI_API_KEY": key})
    assert found.key is None
    assert key not in found.problem


def test_without_any_it_is_said_what_to_do(tmp_path):
    assert "OPENAI_API_KEY" in found_for(tmp_path).problem
    problem = found_for(tmp_path, mistral={"base_url": "https://api.mistral.ai"}).problem
    assert "mistral api.mistral.ai KEY" in problem
    assert "MISTRAL_API_KEY" not in problem
