"""Natural language inference: Jamp, JaNLI, JSeM, JSICK.

Rules: docs/protocol/jaster.md, section 2.
"""

from xml.etree.ElementTree import Element

from evalkit.core.types import Row
from evalkit.sources.pins import SourceFile
from evalkit.sources.readers import SourceError, SourceFiles, per_file, tab_separated, unique, xml_of
from evalkit.sources.splits import Pools

# Judgements of acceptability, not of inference: no sample is made of them.
JSEM_DROPPED = frozenset({"", "infelicitous", "unacceptable", "weakacceptable"})


def jamp(files: SourceFiles) -> Pools:
    """tomo-ut/temporalNLI_dataset: columns num, premise, hypothesis, gold_label."""
    columns = {0: "num", 1: "premise", 2: "hypothesis", 3: "gold_label"}
    return per_file(files, lambda file: _table(file, columns))


def jsick(files: SourceFiles) -> Pools:
    """verypluming/JSICK: the Japanese sentences and their label, columns 8 to 10."""
    columns = {0: "pair_ID", 8: "sentence_A_Ja", 9: "sentence_B_Ja", 10: "entailment_label_Ja"}
    return per_file(files, lambda file: _table(file, columns))


def janli(files: SourceFiles) -> Pools:
    """verypluming/JaNLI: one file; its last column says which rows are the test."""
    columns = {1: "sentence_A_Ja", 2: "sentence_B_Ja", 3: "entailment_label_Ja"}
    pools: dict[str, list[Row]] = {"pool": [], "test": []}
    for file in files["all"]:
        lines = list(tab_separated(file, columns | {7: "split"}))
        unique(((place, cells[0]) for place, cells in lines), file)
        for _, cells in lines:
            part = "test" if cells[-1].strip() == "test" else "pool"
            pools[part].append(_inference(cells[1], cells[2], cells[3]))
    return {part: [rows] for part, rows in pools.items()}


def jsem(files: SourceFiles) -> Pools:
    """DaisukeBekki/JSeM v1.0: every problem whose answer judges an inference.

    The ids of the problems are not checked: upstream gives five of them twice.
    """
    return {"all": [_problems(file) for file in files["all"]]}


def _table(file: SourceFile, columns: dict[int, str]) -> list[Row]:
    identifier, premise, hypothesis, label = columns
    lines = list(tab_separated(file, columns))
    unique(((place, cells[identifier]) for place, cells in lines), file)
    return [_inference(cells[premise], cells[hypothesis], cells[label]) for _, cells in lines]


def _problems(file: SourceFile) -> list[Row]:
    rows = []
    for number, problem in enumerate(xml_of(file.path.read_bytes(), file).iter("problem"), start=1):
        place = f"problem {number}"
        answer = problem.get("answer")
        if answer is None:
            raise SourceError("the attribute 'answer' is missing", file, place)
        if answer not in JSEM_DROPPED:
            premise = "".join(_script(part, file, place) for part in problem.findall("p"))
            hypothesis = problem.find("h")
            if hypothesis is None or not premise:
                raise SourceError("a problem without premise or hypothesis", file, place)
            rows.append(_inference(premise, _script(hypothesis, file, place), answer))
    return rows


def _script(element: Element, file: SourceFile, place: str) -> str:
    text = element.findtext("script")
    if text is None:
        raise SourceError(f"the element <{element.tag}> has no <script>", file, place)
    return text.strip()


def _inference(premise: str, hypothesis: str, label: str) -> Row:
    return Row(f"前提：{premise}\n仮説：{hypothesis}", label)
