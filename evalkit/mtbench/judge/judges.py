"""A judge's configuration -> who is asked, with what, at which price, and what names it in the store.

The API key comes from the environment when the service is opened and is written nowhere.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from evalkit.core import assets
from evalkit.core.config import (
    BosRule,
    Config,
    Dtype,
    EngineConfig,
    JudgeConfig,
    JudgeKind,
    JudgeMode,
    ModelConfig,
    ReasoningConfig,
)
from evalkit.core.errors import InputError
from evalkit.core.files import read_options, read_yaml
from evalkit.core.secrets import public_address, refuse_keys
from evalkit.core.text import canonical_json, text_sha256
from evalkit.core.types import Message
from evalkit.mtbench.judge.budget import Price, load_prices, price_of
from evalkit.mtbench.judge.store import CachedReply, JudgmentStore, judgment_key
from evalkit.mtbench.presets import Preset
from evalkit.mtbench.ratings import HIGHEST, LOWEST
from evalkit.services.client import Service
from evalkit.tasks.answers import check_rule
from evalkit.tasks.thoughts import Thoughts

if TYPE_CHECKING:
    from evalkit.engines.models import ResolvedModel

# Models whose names begin so take max_completion_tokens and no top_p (protocol notes, section 14).
NEW_PARAMETERS = "gpt-5"


@dataclass(frozen=True)
class JudgeEngine:
    """What a judge that evalkit runs itself is built from."""

    model: "ResolvedModel"
    options: EngineConfig
    dtype: Dtype
    bos: BosRule


@dataclass(frozen=True)
class Judge:
    """A judge under a preset. `label` names its tables and files; `price` None: not known.

    `thoughts` is the rule that splits its replies, None: they are read whole; `opened`: its prompts end
    inside a thought. Neither is part of the cache keys: replies are kept whole.

    `service`, `model` and `parameters` decide its judgments and are part of their cache keys. A model
    that evalkit runs itself has two fields more: `weights`, the hash of its files and number format,
    which is part of the keys too, and `engine`, the configuration its engine is built from.
    """

    label: str
    service: str
    model: str
    parameters: dict[str, Any]
    config: JudgeConfig
    preset: Preset
    weights: str | None = None
    price: Price | None = None
    engine: JudgeEngine | None = None
    thoughts: Thoughts | None = None
    opened: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """The part of the cache keys that names this judge, as plain JSON values."""
        named = {"service": self.service, "model": self.model}
        return named if self.weights is None else named | {"weights": self.weights}

    @property
    def max_output(self) -> int:
        """The tokens an answer may have; 4096 where no parameter limits them."""
        for name in ("max_completion_tokens", "max_tokens"):
            value = self.parameters.get(name)
            if isinstance(value, int):
                return value * int(number(self.parameters, "n", 1, least=1, whole=True))
        return 4096

    def record(self) -> dict[str, Any]:
        """The judge as results name it."""
        rule = {"parser": self.thoughts.identity} if self.thoughts else {}
        return {"label": self.label, **self.identity, "parameters": self.parameters, **rule}

    def keys(self, messages: Sequence[Message], repeat: int, reasks: int = 0) -> tuple[str, ...]:
        """The cache keys of a judgment and of its re-asks; see `judgment_key`."""
        prompts = self.preset.own_prompts
        return tuple(
            judgment_key(self.identity, self.parameters, messages, repeat, reask, prompts)
            for reask in range(reasks + 1)
        )

    def answer_in(self, reply: CachedReply) -> str | None:
        """What a rating or a verdict is read from; None: the service did not answer.

        Raises:
            InputError: the special tokens are lost that the rule reads, or its pattern takes too long.
        """
        if reply.status != "ok":
            return None
        if self.thoughts is None or reply.text is None:
            return reply.text
        opened = self.opened and reply.thought is None
        try:
            split = self.thoughts.split(reply.text, opened=opened, finish_reason=reply.finish_reason, ends=())
        except InputError as error:
            raise _of_the_judge(error) from None
        return split.answer

    def asks_again(self, reply: CachedReply) -> bool:
        """Whether a preset that re-asks does so: the rating is no whole number from 1 to 10."""
        if reply.status != "ok":
            return self.preset.reask_refused
        value = self.preset.rating(self.answer_in(reply)).value
        return value is None or value != int(value) or not LOWEST <= value <= HIGHEST

    def price_in(self, mode: JudgeMode) -> Price | None:
        """The price of a call in this mode."""
        return self.price.in_batch() if self.price and mode is JudgeMode.batch else self.price

    def open_store(self, kept: Sequence[CachedReply] = ()) -> JudgmentStore:
        """The shared store of this judge's judgments; `kept` are the replies a run folder holds."""
        chosen = self.config.store
        folder = Path(chosen).expanduser() if chosen else assets.cache_dir() / "judgments"
        return JudgmentStore(folder, self.identity, kept)


def open_judge(config: Config, preset: Preset) -> Judge:
    """The judge that was chosen, or the preset's own; a local one takes its engine from `config` too.

    Raises:
        InputError: no judge, or an incomplete one (`resolve_judge`).
    """
    judge = resolve_judge(config.judge, preset)
    return as_local(judge, config) if judge.config.kind is JudgeKind.local else judge


def resolve_judge(chosen: JudgeConfig | None, preset: Preset) -> Judge:
    """The judge that was chosen, or the preset's own, with its price; what asks it is not opened yet.

    Raises:
        InputError: there is none, it has no model or deployment, or `judge.max_cost` without a price.
    """
    config = chosen or _own_judge(preset)
    refuse_keys("judge", config.api_key_env, config.parameters)
    model = config.deployment if config.kind is JudgeKind.azure else config.model
    if not model and config.kind is JudgeKind.azure:
        raise InputError("judge=azure needs the name of a deployment", fix="judge.deployment=NAME")
    if not model:
        raise InputError(f"judge={config.name} needs a model", fix="judge.model=NAME")
    if config.kind is JudgeKind.local:
        service = "local"
    elif config.kind is JudgeKind.azure:
        service = f"azure:{public_address(_address(config) or '')}"
    else:
        address = _address(config)
        service = public_address(address) if address else "openai"
    name = config.model or model
    price = price_of(name, load_prices(Path(config.prices).expanduser() if config.prices else None))
    if config.max_cost is not None and price is None and config.kind is not JudgeKind.local:
        raise InputError(
            f"judge.max_cost needs the price of {name}",
            where=config.prices or "conf/prices.yaml",
            fix="add it to a copy of the table: judge.prices=FILE",
        )
    return Judge(
        label=_label(config, model),
        service=config.identity or service,
        model=model,
        parameters=_parameters(config, model),
        config=config,
        preset=preset,
        price=price,
        thoughts=_thoughts(config, None),
    )


def _own_judge(preset: Preset) -> JudgeConfig:
    if preset.judge is None:
        raise InputError(
            f"no judge is given, and the preset {preset.name} names none",
            fix="judge=gpt-4o-2024-08-06   (evalkit list judges)",
        )
    # A preset names one of these, never a path.
    shipped = {path.stem: path for path in (assets.CONF / "judge").glob("*.yaml")}
    if preset.judge not in shipped:
        raise InputError(
            f"the preset {preset.name} names a judge that is not there: {preset.judge!r}",
            fix="evalkit list judges",
        )
    return read_options(shipped[preset.judge], JudgeConfig, "judge configuration")


def _address(config: JudgeConfig) -> str | None:
    """The server that was given, else that of the environment."""
    variable = "AZURE_OPENAI_ENDPOINT" if config.kind is JudgeKind.azure else "OPENAI_BASE_URL"
    return config.base_url or os.environ.get(variable)


def _parameters(config: JudgeConfig, model: str) -> dict[str, Any]:
    """What is sent with every request: the models whose names begin with gpt-5 know other parameters."""
    given = {key: value for key, value in sorted(config.parameters.items()) if value is not None}
    if config.kind is JudgeKind.local or not (config.model or model).startswith(NEW_PARAMETERS):
        return given
    most = given.pop("max_tokens", None)
    given.pop("top_p", None)
    return given if most is None else dict(sorted(({"max_completion_tokens": most} | given).items()))


def _thoughts(config: JudgeConfig, tokenizer: Any | None) -> Thoughts | None:
    options = ReasoningConfig(parser=config.parser, pattern=config.pattern)
    try:
        thoughts = Thoughts.of(options, tokenizer, chat=True)
        if thoughts is None:
            check_rule("none", pattern=config.pattern)
    except InputError as error:
        raise _of_the_judge(error) from None
    return thoughts


def _of_the_judge(error: InputError) -> InputError:
    """An error about an option `reasoning.`, as one about the judge's option of that name."""
    where, fix = ((text or "").replace("reasoning.", "judge.") or None for text in (error.where, error.fix))
    return InputError(error.what, where=where, fix=fix)


def _label(config: JudgeConfig, model: str) -> str:
    if config.kind is JudgeKind.local:
        return f"local-{model}"
    path = assets.CONF / "judge" / f"{config.name}.yaml"
    shipped = read_yaml(path) if path.is_file() else {}
    # A named judge that was given another model goes by the name of that model.
    return config.name if shipped.get("model") == config.model and config.model else model


def number(
    parameters: Mapping[str, Any], name: str, usual: float, *, least: float = 0, whole: bool = False
) -> float:
    """The number that `judge.parameters` give under a name, else the usual one.

    Raises:
        InputError: it is no number, below `least`, or not whole though it must be.
    """
    value = parameters.get(name, usual)
    given = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not given or value < least or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        where = f"option judge.parameters.{name}"
        raise InputError(f"{value!r} is not {kind} of at least {least:g}", where=where)
    return float(value)


def template_args(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What the parameters of a local judge hand to its chat template, by the names that servers know.

    Raises:
        InputError: `chat_template_kwargs` has no keys and values.
    """
    given = parameters.get("chat_template_kwargs", {})
    if not isinstance(given, Mapping):
        raise InputError(
            "keys and values were expected",
            where="option judge.parameters.chat_template_kwargs",
            fix="judge.parameters.chat_template_kwargs.enable_thinking=false",
        )
    effort = {key: parameters[key] for key in ("reasoning_effort",) if key in parameters}
    return {**given, **effort}


def model_config(name: str) -> ModelConfig:
    """The member of conf/model of that name, else the model at that hub name or folder."""
    path = assets.CONF / "model" / f"{name}.yaml"
    if "/" in name or not path.is_file():
        return ModelConfig(path=name)
    return read_options(path, ModelConfig, "model configuration")


def as_local(judge: Judge, config: Config) -> Judge:
    """A judge that evalkit runs itself, with its engine, its `weights` and the rule for its thoughts.

    `weights` hashes all that decides the replies: files, number format, engine, the template's date, and
    whether special tokens are written out in them.

    Raises:
        InputError: the model or its chat template is missing, or `parser` and `pattern` do not fit.
    """
    from evalkit.engines import identify
    from evalkit.engines.local.chat_template import clock_date, render_chat
    from evalkit.engines.local.tokenizer import load_tokenizer

    model = model_config(judge.model)
    model.chat_template_args = {**model.chat_template_args, **template_args(judge.parameters)}
    found = identify(model, config.engine, config.dtype, offline=config.data.offline)
    tokenizer = load_tokenizer(found.model)
    thoughts = _thoughts(judge.config, tokenizer)
    date = clock_date(tokenizer)
    made_of = {
        "model": found.model.identity,
        "dtype": found.dtype,
        "engine_family": found.family,
        **({"template_date": date} if date else {}),
        **({"special_tokens": True} if thoughts is not None else {}),
    }
    return replace(
        judge,
        weights=text_sha256(canonical_json(made_of))[:16],
        engine=JudgeEngine(found.model, config.engine, config.dtype, config.protocol.bos),
        thoughts=thoughts,
        opened=thoughts is not None and thoughts.opened(render_chat([Message("user", "?")], tokenizer)),
    )


def open_service(judge: Judge) -> Service:
    """Where the judge is asked, with the key of the environment.

    Raises:
        InputError: no key (a server of one's own may do without), no address, or a malformed one.
    """
    config = judge.config
    base_url, azure = _address(config), config.kind is JudgeKind.azure
    if azure and not base_url:
        raise InputError(
            "judge=azure needs the address of the resource",
            fix="export AZURE_OPENAI_ENDPOINT=https://NAME.openai.azure.com   (or judge.base_url=)",
        )
    usual = ["AZURE_OPENAI_API_KEY", "AZURE_OPENAI_KEY"] if azure else ["OPENAI_API_KEY"]
    names = [config.api_key_env] if config.api_key_env else usual
    key = next((value for name in names if (value := os.environ.get(name, "").strip())), "")
    own_server = config.kind is JudgeKind.openai and base_url is not None
    if not key and not own_server:
        raise InputError(
            f"no API key for the judge {judge.label}", where="environment", fix=f"export {names[0]}=..."
        )
    if base_url is not None and urlsplit(base_url).scheme not in ("http", "https"):
        raise InputError("not an address: it must begin with http:// or https://", where="judge.base_url")
    return Service(
        base_url=base_url,
        api_key=key or "none",
        deployment=judge.model if azure else None,
        api_version=config.api_version,
        timeout=config.timeout,
    )
