"""Names: the exact one first, then `runtime/name`; a runtime that is away says why."""

from __future__ import annotations

import pytest
import trio

from actors.catalog import LISTED_S, Catalog
from engine.domain.errors import InvalidRequest, ModelNotFound, RuntimeUnavailable
from tests.fakes.runtime import ScriptedRuntime


def runtime(name, *models, kind="scripted"):
    return ScriptedRuntime(lambda: 0, name=name, kind=kind, models=models)


async def listed(*runtimes):
    catalog = Catalog({r.name: r for r in runtimes}, lambda: 0)
    await catalog.refresh()
    return catalog


async def test_built_in_models_are_listed_under_their_runtime():
    catalog = await listed(runtime("one", "llama3:8b"), runtime("embedded", "lexicon", kind="embedded"))
    assert [m.name for m in catalog.models] == ["llama3:8b", "embedded/lexicon"]


async def test_exact_name_first_then_runtime_and_name():
    catalog = await listed(runtime("one", "a"), runtime("two", "a", "one/a"))
    assert catalog.find("a").runtime.name == "one"
    assert catalog.find("two/a").runtime.name == "two"
    assert catalog.find("one/a").runtime.name == "two"  # its exact name


async def test_an_unknown_name_lists_what_there_is_and_the_nearest():
    catalog = await listed(runtime("embedded", "lexicon", "hacker", kind="embedded"))
    with pytest.raises(ModelNotFound) as caught:
        catalog.find("embedded/lexikon")
    assert "did you mean embedded/lexicon?" in caught.value.message
    assert caught.value.details["available"] == ["embedded/lexicon", "embedded/hacker"]


@pytest.mark.parametrize("name", ["", "../x", "a/b/c/d", "a:b:c", "a b", "a\n", "x" * 400])
async def test_a_name_outside_the_grammar_is_refused_and_not_repeated(name):
    catalog = await listed(runtime("one", "a"))
    with pytest.raises(InvalidRequest) as caught:
        catalog.find(name)
    assert not name or name not in caught.value.message


async def test_a_runtime_that_is_away_has_no_models_and_says_why():
    away = runtime("away", "a")
    away.up = False
    catalog = await listed(away, runtime("here", "b"))
    assert [m.name for m in catalog.models] == ["b"]
    assert (catalog.probes["away"].up, catalog.probes["away"].reason) == (False, "switched off")


async def test_a_runtime_that_fails_to_list_counts_as_away():
    class Broken(ScriptedRuntime):
        async def list_models(self):
            raise RuntimeUnavailable("it went away")

    catalog = await listed(Broken(lambda: 0, name="broken"))
    assert catalog.models == ()
    assert (catalog.probes["broken"].up, catalog.probes["broken"].reason) == (False, "it went away")


async def test_resolve_waits_for_the_first_answer_and_asks_again_for_a_new_model(autojump_clock):
    changing = runtime("one", "a")
    catalog = Catalog({"one": changing}, lambda: 0)
    async with trio.open_nursery() as nursery:

        async def later():
            await trio.sleep(1)
            await catalog.refresh()

        nursery.start_soon(later)
        assert (await catalog.resolve("a")).name == "a"
    changing.models = ("a", "pulled")
    assert (await catalog.resolve("pulled")).name == "pulled"


async def test_a_recent_answer_is_kept_and_its_age_told(autojump_clock):
    changing = runtime("one", "a")
    catalog = Catalog({"one": changing}, lambda: 0)
    assert await catalog.recent() == 0.0  # there was none
    changing.models = ("a", "b")
    await trio.sleep(LISTED_S / 2)
    assert (await catalog.recent(), len(catalog.models)) == (LISTED_S / 2, 1)
    await catalog.refresh()
    assert (await catalog.recent(), len(catalog.models)) == (0.0, 2)
    changing.models = ("b",)
    await trio.sleep(LISTED_S)
    assert (await catalog.recent(), len(catalog.models)) == (0.0, 1)


async def test_whoever_wants_a_recent_answer_waits_for_one_round_at_most_but_for_the_one_under_way(autojump_clock):
    class Slow(ScriptedRuntime):
        asked = 0

        async def probe(self):
            self.asked += 1
            await trio.sleep(10)
            return await ScriptedRuntime.probe(self)

    slow = Slow(lambda: 0, name="slow")
    catalog, ages = Catalog({"slow": slow}, lambda: 0), []

    async def ask():
        ages.append(await catalog.recent())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(9)
        for _ in range(20):  # the round under way began too long ago for them
            nursery.start_soon(ask)
    assert (slow.asked, ages) == (2, [10.0] * 21)
