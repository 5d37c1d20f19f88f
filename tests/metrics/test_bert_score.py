"""BERTScore over tiny random models, against the definition computed here with NumPy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, RobertaConfig, RobertaModel

from evalkit.metrics.bert_score import BertScore, default_layers
from evalkit.metrics.metric import MetricUnavailableError, Triple

PAIRS = [
    ("a cat sat", "the cat sat"),
    ("猫が寝ている。", "猫がソファで寝ている。"),
    ("cat", "cat"),
    ("", "the cat"),
]
TRIPLES = [Triple(src="", mt=mt, ref=ref) for mt, ref in PAIRS]
LAYERS = 2
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    letters = sorted({c for pair in PAIRS for text in pair for c in text if c != " "})
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocab), encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 64, "do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(vocab), **SIZES)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roberta")
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += ["Ġc", "Ġca", "Ġcat", "ca", "cat"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\nĠ c\nĠc a\nĠca t\nc a\nca t\n")
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    RobertaModel(RobertaConfig(vocab_size=len(pieces), **SIZES)).save_pretrained(folder)
    return folder


def defined_f1(folder: Path, mt: str, ref: str, prefix: str) -> float:
    """Greedy matching of cosine similarities between all tokens but the specials (Zhang et al. 2020)."""
    if not mt.strip() or not ref.strip():
        return 0.0
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    sides = []
    for text in (mt, ref):
        ids = torch.tensor([tokenizer.encode(prefix + text)])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[LAYERS][0].numpy()
        sides.append(states / np.linalg.norm(states, axis=1, keepdims=True))
    similarity = sides[0] @ sides[1].T
    precision = similarity.max(axis=1)[1:-1].mean()
    recall = similarity.max(axis=0)[1:-1].mean()
    return float(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize(("kind", "prefix"), [("bert", ""), ("roberta", " ")])
def test_f1_is_the_definitions(request: pytest.FixtureRequest, kind: str, prefix: str) -> None:
    folder = request.getfixturevalue(kind)
    scorer = BertScore(folder, LAYERS, device="cpu")
    expected = [defined_f1(folder, mt, ref, prefix) for mt, ref in PAIRS]
    assert scorer.score(TRIPLES) == pytest.approx(expected, abs=1e-5)
    assert scorer.score([]) == []
    assert "bert-score" in scorer.version


def test_the_words_of_roberta_begin_with_a_space(roberta: Path) -> None:
    # Without it "cat" would be another token than in bert-score under transformers 4.
    with_space, without = (defined_f1(roberta, "cat sat", "a cat", prefix) for prefix in (" ", ""))
    assert abs(with_space - without) > 1e-3


def test_a_path_bert_score_would_misread_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MetricUnavailableError, match="t5"):
        BertScore(tmp_path / "models-t5", 2)


def test_the_default_layers_are_bert_scores() -> None:
    assert (default_layers("ja"), default_layers("en")) == (9, 17)
