"""Tokenizers that cut texts as their own file says.

transformers 5 builds some tokenizers by the rules of their class instead of those in the file: a
LlamaTokenizer merges pairs also where the file holds a unigram model, and a T5Tokenizer takes the id
2 for unknown characters, which is EOS in many vocabularies. Both answer without a warning.
"""

import json
import logging
from pathlib import Path
from typing import Any

from evalkit.errors import InputError

log = logging.getLogger(__name__)

# Of a sentencepiece model: tokenizers' name of each kind by its number in the file.
_KINDS = {1: "Unigram", 2: "BPE"}
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def as_in_the_file(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer, with the model of its file in place of another that transformers built.

    Raises:
        InputError: the file's model cannot be had with this class of tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer
    built = json.loads(backend.to_str())["model"]
    if (folder / "tokenizer.json").is_file():
        return _by_json(tokenizer, built, folder)
    path = next((folder / name for name in _SENTENCEPIECE if (folder / name).is_file()), None)
    if path is not None:
        _by_sentencepiece(tokenizer, built, path)
    return tokenizer


def _by_json(tokenizer: Any, built: dict[str, Any], folder: Path) -> Any:
    meant = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    kind = meant.get("type", built["type"])
    same_unknown = kind != "Unigram" or _unknown(built) == _unknown(meant)
    if kind == built["type"] and same_unknown:
        return tokenizer
    log.warning(
        "%s does not cut texts as tokenizer.json says (%s): the file is followed",
        type(tokenizer).__name__,
        kind,
    )
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _by_sentencepiece(tokenizer: Any, built: dict[str, Any], path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import models

    data = path.read_bytes()
    try:
        content = sentencepiece_model_pb2.ModelProto.FromString(data)
    except Exception:
        # A vocabulary of tiktoken's may have the same name.
        return
    trainer = content.trainer_spec
    kind, unknown = _KINDS.get(trainer.model_type), content.pieces[trainer.unk_id].piece
    if kind == built["type"] and (kind != "Unigram" or _unknown(built) == unknown):
        return
    if kind != "Unigram":
        raise InputError(
            f"{type(tokenizer).__name__} does not cut texts as its file does (a {kind or 'word'} model)",
            where=path,
            fix="name the tokenizer's own class in tokenizer_config.json (tokenizer_class), "
            "or give a tokenizer.json",
        )
    if built["type"] == "Unigram":
        vocabulary = [(piece, score) for piece, score in built["vocab"]]
    else:
        vocabulary = [(piece.piece, piece.score) for piece in content.pieces]
    place = [piece for piece, _ in vocabulary].index(unknown)
    log.warning(
        "%s does not cut texts as %s says (a unigram model): the file is followed",
        type(tokenizer).__name__,
        path.name,
    )
    tokenizer.backend_tokenizer.model = models.Unigram(vocabulary, place, trainer.byte_fallback)


def _unknown(model: dict[str, Any]) -> str | None:
    """The piece that stands for unknown characters in a unigram model."""
    place = model.get("unk_id")
    return None if place is None else str(model["vocab"][place][0])
