"""Files of others are data: nothing in a model, a YAML file or a checkpoint runs, or reads secrets."""

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalkit import __file__ as package
from evalkit.core import files
from evalkit.core.config import Config, ModelConfig
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.files import as_text, read_yaml
from evalkit.mtbench.judge.budget import load_prices
from evalkit.mtbench.presets import load_preset
from evalkit.runs.rescore import kept_config
from evalkit.tasks.spec import load_spec

SOURCES = sorted(Path(package).parent.rglob("*.py"))
FORBIDDEN = ("eval", "exec", "compile", "os.system", "yaml.unsafe_load", "yaml.full_load")
SECRET = "only-this-machine-knows-it"


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


# --- the source ---------------------------------------------------------------------------------


def calls() -> Iterator[tuple[Path, str, ast.Call]]:
    """Every call in evalkit's source with the name it is written by, `torch.load`."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path, ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(given.value) for given in call.keywords if given.arg == name), None)


def test_no_unrestricted_loading_in_the_source() -> None:
    seen = set()
    for path, name, call in calls():
        where = f"{path}:{call.lineno}"
        seen.add(name)
        assert not re.search(r"\b(pickle|dill|joblib|shelve|marshal|cloudpickle)\.", name), where
        assert name not in ("eval", "exec", "compile", "os.system", "yaml.unsafe_load", "yaml.full_load"), (
            where
        )
        assert keyword(call, "shell") in (None, "False"), where
        assert keyword(call, "allow_pickle") in (None, "False"), where
        if name == "torch.load":
            assert keyword(call, "weights_only") == "True", where
        if name == "yaml.load":
            assert keyword(call, "Loader") in ("_Loader", "_AsWritten") and path.name == "files.py", where
        if name.endswith("extractall"):
            assert keyword(call, "filter") == "'data'", where
    assert {"torch.load", "yaml.load"} <= seen
    assert issubclass(files._AsWritten, files._Loader) and files._Loader.__mro__[1].__name__.endswith(
        "SafeLoader"
    )


def test_remote_code_only_by_the_option() -> None:
    trusted = "resolved.config.trust_remote_code"
    loaders = [call for call in calls() if call[1].endswith(".from_pretrained") and "Auto" in call[1]]
    assert len(loaders) >= 5
    for path, name, call in loaders:
        given = keyword(call, "trust_remote_code")
        if given == "remote":
            # A short name for the option, and for nothing else.
            sources = re.findall(r"\bremote ?= ?([\w.]+)", path.read_text(encoding="utf-8"))
            assert set(sources) - {"remote"} == {trusted}, f"{path}: {sources}"
            continue
        spread = any(entry.arg is None for entry in call.keywords) and path.name == "comet_model.py"
        assert given in ("False", trusted) or spread, f"{path}:{call.lineno} {name}"


# --- YAML ---------------------------------------------------------------------------------------

READERS: list[Callable[[Path], Any]] = [
    read_yaml,
    lambda path: load_spec(str(path)),
    lambda path: load_preset(str(path)),
    load_prices,
    kept_config,
]


@pytest.mark.parametrize("reader", READERS)
def test_yaml_makes_no_objects(reader: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"name: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'sprung'}]\n")
    with pytest.raises(InputError, match="not YAML"):
        reader(path)
    assert not (tmp_path / "sprung").exists()


def test_a_file_of_others_does_not_read_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_MINE", SECRET)
    stolen = "${oc.env:SECRET_OF_MINE}"
    task = {"name": "t", "instruction": stolen, "output_length": 1, "metrics": ["exact_match"]}
    data = {"file": "d.jsonl", "input": "q", "output": "a"}
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump({**task, "data": data}), encoding="utf-8")
    assert load_spec(str(path)).instruction == stolen
    template, run = f"{{input}} \\{stolen}", tmp_path / "config.yaml"
    run.write_text(
        yaml.safe_dump({"engine": {"name": "local"}, "protocol": {"custom_prompt_template": template}})
    )
    assert kept_config(run).protocol.custom_prompt_template == template
    preset = yaml.safe_load((Path(package).parents[1] / "conf/mtbench/llm-jp-3-card.yaml").read_text())
    own = tmp_path / "preset.yaml"
    own.write_text(yaml.safe_dump(preset | {"system_message": stolen}), encoding="utf-8")
    assert load_preset(str(own)).system_message == stolen


@pytest.mark.parametrize("slashes", range(5))
def test_dollar_and_brace_stay_text_after_any_number_of_backslashes(slashes: int) -> None:
    from omegaconf import OmegaConf

    text = "a" + "\\" * slashes + "${oc.env:HOME} $x ${ \\"
    assert OmegaConf.to_container(OmegaConf.create(as_text({"k": [text]})), resolve=True) == {"k": [text]}


# --- models -------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with a tiny real model."""
    from evalkit.core.config import RandomShape
    from evalkit.engines.local.random_model import byte_tokenizer, random_model

    folder = tmp_path / "model"
    tokenizer = byte_tokenizer()
    random_model(RandomShape(), tokenizer, None).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> Any:
    from evalkit.engines.local.loading import load as load_model
    from evalkit.engines.models import resolve

    config = Config(model=ModelConfig(path=str(folder), **options))
    assert config.model is not None
    return load_model(resolve(config.model, offline=True), config.engine, config.dtype)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def test_pickled_weights_are_not_opened(tiny: Path, tmp_path: Path) -> None:
    import torch

    torch.save({"trap": Trap(tmp_path / "sprung")}, tiny / "pytorch_model.bin")
    # Beside safetensors they are passed over ...
    assert load(tiny).model is not None
    # ... and alone they are refused, also when a file that is no weights makes up for the others.
    (tiny / "model.safetensors").rename(tiny / "other.safetensors")
    with pytest.raises(EvalkitError):
        load(tiny)
    (tiny / "other.safetensors").unlink()
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        load(tiny)
    assert not (tmp_path / "sprung").exists()


def test_code_of_a_model_runs_by_the_option_only(tiny: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    (tiny / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(sprung)!r}).touch()\n"
        "from transformers import LlamaConfig\nfrom transformers import LlamaForCausalLM\n"
        "class EvilConfig(LlamaConfig):\n    model_type = 'evil'\n"
        "class EvilModel(LlamaForCausalLM):\n    config_class = EvilConfig\n",
        encoding="utf-8",
    )
    auto = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    change(tiny / "config.json", model_type="evil", auto_map=auto)
    with pytest.raises(EvalkitError):
        load(tiny)
    assert not sprung.exists()
    load(tiny, trust_remote_code=True)
    assert sprung.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_model_that_asks_for_a_kernel_of_the_hub_is_refused(tiny: Path, key: str) -> None:
    change(tiny / "config.json", **{key: "somebody/kernel"})
    with pytest.raises(InputError, match="code from elsewhere"):
        load(tiny)
