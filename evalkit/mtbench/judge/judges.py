"""A judge's configuration -> who is asked, with what, at which price, and what names it in the store.

The API key comes from the environment when the service is opened and is written nowhere.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
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
from evalkit.mtbench.answers.chat import model_config
from evalkit.mtbench.judge.budget import Price, load_prices, price_of
from evalkit.mtbench.judge.store import CachedReply, JudgmentStore, default_store, judgment_key
from evalkit.mtbench.presets import Preset
from evalkit.services.client import Service
from evalkit.tasks.answers import check_rule
from evalkit.tasks.thoughts import Thoughts

# Models whose names begin so take max_completion_tokens and no top_p (protocol notes, section 14).
NEW_PARAMETERS = "gpt-5"


@dataclass(frozen=True)
class JudgeEngine:
    """What a judge that evalkit runs itself is built from."""

    model: ModelConfig
    options: EngineConfig
    dtype: Dtype
    bos: BosRule
    offline: bool


@dataclass(frozen=True)
class Judge:
    """A judge. `label` names its tables and files; `price` None: not known.

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
                return value * int(self.parameters.get("n", 1))
        return 4096

    def record(self) -> dict[str, Any]:
        """The judge as results name it."""
        rule = {"parser": self.thoughts.identity} if self.thoughts else {}
        return {"label": self.label, **self.identity, "parameters": self.parameters, **rule}

    def keys(
        self, messages: Sequence[Message], repeat: int, prompts: str | None = None, reasks: int = 0
    ) -> tuple[str, ...]:
        """The cache keys of a judgment and of its re-asks; see `judgment_key`."""
        return tuple(
            judgment_key(self.identity, self.parameters, messages, repeat, reask, prompts)
            for reask in range(reasks + 1)
        )

    def price_in(self, mode: JudgeMode) -> Price | None:
        """The price of a call in this mode."""
        return self.price.in_batch() if self.price and mode is JudgeMode.batch else self.price

    def open_store(self, kept: Sequence[CachedReply] = ()) -> JudgmentStore:
        """The shared store of this judge's judgments; `kept` are the replies a run folder holds."""
        chosen = self.config.store
        folder = Path(chosen).expanduser() if chosen else default_store()
        return JudgmentStore(folder, self.identity, kept)


def open_judge(config: Config, preset: Preset) -> Judge:
    """The judge that was chosen, or the preset's own.

    Args:
        config: its `judge`; a local judge takes its engine options from it too.
        preset: names a judge for when none is chosen.

    Raises:
        InputError: no judge, or an incomplete one (`resolve_judge`).
    """
    judge = resolve_judge(judge_config(config.judge, preset))
    return as_local(judge, config) if judge.config.kind is JudgeKind.local else judge


def judge_config(config: JudgeConfig | None, preset: Preset) -> JudgeConfig:
    """The judge that was chosen, else the preset's own.

    Raises:
        InputError: neither is there.
    """
    if config is not None:
        return config
    if preset.judge is None:
        raise InputError(
            f"no judge is given, and the preset {preset.name} names none",
            fix="judge=gpt-4o-2024-08-06   (evalkit list judges)",
        )
    path = assets.CONF / "judge" / f"{preset.judge}.yaml"
    if preset.judge not in judge_names():
        raise InputError(
            f"the preset {preset.name} names a judge that is not there: {preset.judge!r}",
            fix="evalkit list judges",
        )
    return read_options(path, JudgeConfig, "judge configuration")


def judge_names() -> list[str]:
    """The judges of conf/judge: a preset names one of these, never a path."""
    return sorted(path.stem for path in (assets.CONF / "judge").glob("*.yaml"))


def resolve_judge(config: JudgeConfig) -> Judge:
    """The judge a configuration describes, with its price.

    Raises:
        InputError: no model or deployment is named, or `judge.max_cost` without a price.
    """
    refuse_keys("judge", config.api_key_env, config.parameters)
    if config.kind is JudgeKind.azure:
        model = config.deployment or ""
        if not model:
            raise InputError("judge=azure needs the name of a deployment", fix="judge.deployment=NAME")
        address = config.base_url or os.environ.get("AZURE_OPENAI_ENDPOINT", "")
        service = f"azure:{public_address(address)}"
    else:
        model = config.model or ""
        if not model:
            raise InputError(f"judge={config.name} needs a model", fix="judge.model=NAME")
        given = config.base_url or os.environ.get("OPENAI_BASE_URL")
        service = "local" if config.kind is JudgeKind.local else public_address(given) if given else "openai"
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
        price=price,
        thoughts=_thoughts(config, None),
    )


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
        raise of_the_judge(error) from None
    return thoughts


def of_the_judge(error: InputError) -> InputError:
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


def as_local(judge: Judge, config: Config) -> Judge:
    """A judge that evalkit runs itself, with its engine, its `weights` and the rule for its thoughts.

    Args:
        judge: the judge.
        config: has the options of its engine.

    Raises:
        InputError: the model or its chat template is missing, or `parser` and `pattern` do not fit.
    """
    from evalkit.engines.local.chat_template import render_chat
    from evalkit.engines.local.tokenizer import load_tokenizer
    from evalkit.engines.models import resolve

    model = model_config(judge.model)
    model.chat_template_args = {**model.chat_template_args, **template_args(judge.parameters)}
    engine = JudgeEngine(model, config.engine, config.dtype, config.protocol.bos, config.data.offline)
    tokenizer = load_tokenizer(resolve(model, offline=engine.offline))
    thoughts = _thoughts(judge.config, tokenizer)
    opened = thoughts is not None and thoughts.opened(render_chat([Message("user", "?")], tokenizer))
    weights = weights_of(engine, special_tokens=thoughts is not None)
    return replace(judge, weights=weights, engine=engine, thoughts=thoughts, opened=opened)


def weights_of(engine: JudgeEngine, *, special_tokens: bool = False) -> str:
    """A hash of all that decides a local judge's replies: its files, number format, engine, template date.

    `special_tokens`: they are written out in the replies.

    Raises:
        InputError: the model or its chat template is missing.
    """
    from evalkit.engines import identify
    from evalkit.engines.local.chat_template import clock_date
    from evalkit.engines.local.tokenizer import load_tokenizer

    found = identify(engine.model, engine.options, engine.dtype, offline=engine.offline)
    date = clock_date(load_tokenizer(found.model))
    made_of: dict[str, Any] = {
        "model": found.model.identity,
        "dtype": found.dtype,
        "engine_family": found.family,
    }
    made_of |= {"template_date": date} if date else {}
    made_of |= {"special_tokens": True} if special_tokens else {}
    return text_sha256(canonical_json(made_of))[:16]


def open_service(judge: Judge) -> Service:
    """Where the judge is asked, with the key of the environment.

    Raises:
        InputError: no key (a server of one's own may do without), no address, or a malformed one.
    """
    config = judge.config
    if config.kind is JudgeKind.azure:
        names = [config.api_key_env] if config.api_key_env else ["AZURE_OPENAI_API_KEY", "AZURE_OPENAI_KEY"]
        base_url = config.base_url or os.environ.get("AZURE_OPENAI_ENDPOINT")
        if not base_url:
            raise InputError(
                "judge=azure needs the address of the resource",
                fix="export AZURE_OPENAI_ENDPOINT=https://NAME.openai.azure.com   (or judge.base_url=)",
            )
    else:
        names = [config.api_key_env or "OPENAI_API_KEY"]
        base_url = config.base_url or os.environ.get("OPENAI_BASE_URL")
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
        deployment=judge.model if config.kind is JudgeKind.azure else None,
        api_version=config.api_version,
        timeout=config.timeout,
    )
