"""Councils: which names mean one, who is in it, and may it be formed. Pure decisions, in the order in which a request
meets them: names and numbers (400), level (403), turbo (403), count (429), then sizes (429)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs

from engine.domain.errors import InvalidRequest, LevelLocked, ModelNotFound, TierLimitExceeded, TurboNotAvailable
from engine.domain.models import ModelInfo, is_model_name
from engine.domain.synthesis import CouncilMethod as CouncilMethod
from policies.tiers import Level, TierLimits

MEMBERS_MIN: Final = 2
MEMBERS_MAX: Final = 6
GRACE_DEFAULT_S: Final = 10.0
GRACE_MAX_S: Final = 3600.0
NAMED: Final = "council/"  # council/<name>, from the configuration
LISTED: Final = "council:"  # council:<a>+<b>, as the caller lists them
MODES: Final = ("council", "turbo")
EXCESS: Final = ("truncate", "refuse")
_LATEST: Final = ":latest"  # some clients put it behind every name without a tag


@attrs.frozen
class CouncilSpec:
    """A council as it was asked for; `name` is what a caller says for it, `members` are names of models, the first the
    most preferred.

    Once `quorum` members (None: all) have ended their answers, the others get `grace_s` seconds more before the choice.
    `stop_on_consensus` ends members early when what they would add cannot matter. `judge` is the model that chooses,
    with method judge. Raises ValueError for values out of range.
    """

    name: str
    members: tuple[str, ...]
    method: CouncilMethod = CouncilMethod.CONSENSUS
    quorum: int | None = None
    grace_s: float = GRACE_DEFAULT_S
    stop_on_consensus: bool = False
    judge: str | None = None

    def __attrs_post_init__(self) -> None:
        problem = members_problem(self.members)
        if problem is not None:
            raise ValueError(f"members: {problem}")
        if self.quorum is not None and not 1 <= self.quorum <= len(self.members):
            raise ValueError(f"quorum: 1 to {len(self.members)}, the number of members")
        if not (math.isfinite(self.grace_s) and 0 <= self.grace_s <= GRACE_MAX_S):
            raise ValueError(f"grace_s: 0 to {GRACE_MAX_S:g} seconds")
        if (self.method is CouncilMethod.JUDGE) != (self.judge is not None):
            raise ValueError("judge: a model's name with method judge, and with no other")
        if self.judge is not None and not (is_model_name(self.judge) and not is_council_name(self.judge)):
            raise ValueError("judge: a model's name")

    @property
    def quorum_members(self) -> int:
        return len(self.members) if self.quorum is None else self.quorum


@attrs.frozen
class CouncilAdmission:
    """Who takes part, and who was left out because level or tier allow no more (in the order of the request)."""

    members: tuple[str, ...]
    dropped: tuple[str, ...] = ()


def is_council_name(name: str) -> bool:
    """True for names that mean a council, well-formed or not. They win over models of the same name."""
    return name.startswith((NAMED, LISTED))


def members_problem(members: Sequence[str]) -> str | None:
    """What is wrong with a list of members in words that repeat none of them, or None."""
    if len(members) < MEMBERS_MIN:
        return f"a council has at least {MEMBERS_MIN} models"
    if len(members) > MEMBERS_MAX:
        return f"a council has at most {MEMBERS_MAX} models, not {len(members)}"
    if any(is_council_name(member) for member in members):
        return "a council cannot be a member of another one"
    if not all(is_model_name(member) for member in members):
        return "every member is the name of a model"
    if len(set(members)) < len(members):
        return "every member stands once"
    return None


def parse_council(name: str, councils: Mapping[str, CouncilSpec]) -> CouncilSpec | None:
    """The council that `name` means; None when it means a model.

    `council/<name>` is looked up in `councils`, whose keys are the names without the prefix; a `:latest` behind it does
    not matter. `council:<a>+<b>…` is a council of those models with the defaults of CouncilSpec. Raises ModelNotFound
    (with the known ones) and InvalidRequest (naming `model`).
    """
    if name.startswith(NAMED):
        spec = councils.get(name.removeprefix(NAMED).removesuffix(_LATEST))
        if spec is None:
            known = [NAMED + each for each in councils]
            hint = f"there are {', '.join(known)}" if known else "none is configured"
            raise ModelNotFound(f"there is no such council; {hint}", available=known)
        return spec
    if not name.startswith(LISTED):
        return None
    members = tuple(name.removeprefix(LISTED).split("+"))
    problem = members_problem(members)
    if problem is not None:
        raise InvalidRequest(f"model: {problem} (council:<a>+<b>)", field="model")
    return CouncilSpec(name, members)


def admit_council(
    members: Sequence[str], mode: str, tier: TierLimits, tier_name: str, level: Level, on_excess: str
) -> CouncilAdmission:
    """May these models answer together? The first gate that is closed decides:

    1. the request itself: 2 to 6 distinct model names, a known mode and `on_excess`: InvalidRequest, naming the field
    2. the level allows two models: LevelLocked
    3. with mode turbo, the tier has it: TurboNotAvailable
    4. no more than both level and tier allow: with `truncate` the first ones stay and the rest is dropped, with
       `refuse` TierLimitExceeded. A tier of one model has no councils at all, whatever `on_excess` says.

    Pass the names under which the models were found, so that two spellings of one model count as one standing twice.
    """
    problem = members_problem(members)
    if problem is not None:
        raise InvalidRequest(f"models: {problem}", field="models")
    if mode not in MODES:
        raise InvalidRequest("mode: council or turbo", field="mode")
    if on_excess not in EXCESS:
        raise InvalidRequest("on_excess: truncate or refuse", field="on_excess")
    if level.max_models < MEMBERS_MIN:
        raise LevelLocked(
            f"level {level.name} allows one model in a request; a council needs a higher level",
            level=level.name,
            max_models=level.max_models,
        )
    if mode == "turbo" and not tier.turbo_enabled:
        raise TurboNotAvailable(f"tier {tier_name} has no turbo; mode council works on it", tier=tier_name)
    models_max = min(level.max_models, tier.max_parallel_models)
    if models_max < MEMBERS_MIN or (len(members) > models_max and on_excess == "refuse"):
        raise TierLimitExceeded(
            f"{len(members)} models in one request; level {level.name} allows {level.max_models}, "
            f"tier {tier_name} {tier.max_parallel_models}",
            requested=len(members),
            max_models=models_max,
            tier=tier_name,
            level=level.name,
        )
    return CouncilAdmission(tuple(members[:models_max]), tuple(members[models_max:]))


def admit_size(models: Iterable[ModelInfo], tier: TierLimits, tier_name: str) -> None:
    """Raises TierLimitExceeded for the first model that is larger on disk than the tier allows. One whose runtime does
    not tell its size passes: there is nothing to compare."""
    for model in models:
        if model.size_bytes is not None and model.size_bytes > tier.max_model_size_bytes:
            raise TierLimitExceeded(
                f"{model.name} has {model.size_bytes / 1e9:.1f} GB; tier {tier_name} allows models of "
                f"{tier.max_model_size_bytes / 1e9:.1f} GB",
                model=model.name,
                size_bytes=model.size_bytes,
                max_model_size_bytes=tier.max_model_size_bytes,
                tier=tier_name,
            )
