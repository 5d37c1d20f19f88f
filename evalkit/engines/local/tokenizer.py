"""The tokenizer of a model: loaded, checked, and made to follow its own file.

transformers 5 builds some tokenizers by the rules of their class instead of those in the file. A
LlamaTokenizer merges pairs although the file holds a unigram model. A T5Tokenizer takes id 2 for
unknown characters, which is EOS in many vocabularies. Neither gives a warning.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evalkit.core.config import ModelConfig
from evalkit.core.errors import EvalkitError, InputError, foreign
from evalkit.core.text import listed
from evalkit.engines.local.chat_template import choose_template
from evalkit.engines.local.tokens import Encoded
from evalkit.engines.models import ResolvedModel, resolve_without_weights
from evalkit.engines.models.whole import check_small_files

log = logging.getLogger(__name__)

# The model types of a sentencepiece file by number, with their names in the library tokenizers.
_KINDS = {1: "Unigram", 2: "BPE"}
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_OWN_TOKENIZER = "model.tokenizer=FOLDER_OR_HUB_NAME with the tokenizer this model was trained with"


def load_tokenizer(resolved: ResolvedModel) -> Any:
    """The tokenizer of a resolved model, with the chat template of the options, else its own.

    Raises:
        InputError: the model is a server's, and its tokenizer is not here; or the tokenizer's files
            cannot be read, or a package that reads them is missing.
    """
    folder = resolved.tokenizer or resolved.path
    if not resolved.has_tokenizer:
        raise InputError(
            "the model's tokenizer is needed, and it is not here",
            where=resolved.name,
            fix="model.tokenizer=FOLDER_OR_HUB_NAME",
        )
    if folder is None:
        from evalkit.engines.local.random_model import byte_tokenizer

        tokenizer = byte_tokenizer()
    else:
        from transformers import AutoTokenizer

        remote = resolved.config.trust_remote_code
        check_small_files(folder)
        with foreign("the tokenizer cannot be loaded", where=folder, fix=loading_fix(folder, remote)):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote, local_files_only=True)
            tokenizer = _as_in_the_file(tokenizer, folder)
        _refuse_empty(tokenizer, folder)
    tokenizer.chat_template = choose_template(
        resolved.config, folder, getattr(tokenizer, "chat_template", None)
    )
    return tokenizer


def tokenizer_of(resolved: ResolvedModel) -> Any | None:
    """As `load_tokenizer`; None where only a server has the tokenizer."""
    return load_tokenizer(resolved) if resolved.has_tokenizer else None


def tokenizer_here(model: ModelConfig) -> Any | None:
    """The tokenizer of a configured model when its files are on this machine; fetches nothing."""
    try:
        return tokenizer_of(resolve_without_weights(model, offline=True))
    except EvalkitError:
        return None


def _refuse_empty(tokenizer: Any, folder: Path) -> None:
    # transformers makes a tokenizer of special tokens only where it does not find the vocabulary.
    with foreign("the tokenizer cannot be used", where=folder):
        ids = tokenizer("a 1 。", add_special_tokens=False)["input_ids"]
        size = len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens))
    if not size or not isinstance(ids, list):
        kind = type(tokenizer).__name__
        raise InputError(
            f"the tokenizer has no vocabulary: {kind} has not found its file",
            where=folder,
            fix="fetch or copy the tokenizer's files again; tokenizer_config.json must name their class",
        )


def loading_fix(folder: Path, trusted: bool) -> str:
    """The advice for a folder that transformers cannot load."""
    if not trusted and any(folder.glob("*.py")):
        return "if you trust the code in the folder: model.trust_remote_code=true"
    config = folder / "config.json"
    if config.is_file() and b"quantization_config" in config.read_bytes():
        return "install the package of this quantisation, or take the model without it"
    return "fetch or copy the files again; a new model may need a newer transformers"


def refuse_special_ids(tokenizer: Any, embeddings: int, where: object) -> None:
    """Refuses a tokenizer whose BOS or EOS has no embedding; says which other tokens have none.

    Raises:
        InputError: names the token and its id.
    """
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= embeddings}
    for name in ("bos_token", "eos_token"):
        token = getattr(tokenizer, name, None)
        if token is not None and str(token) in beyond:
            raise InputError(
                f"the tokenizer's {name} {str(token)!r} has the id {beyond[str(token)]}, "
                f"and the model has {embeddings} embeddings",
                where=where,
                fix=_OWN_TOKENIZER,
            )
    if beyond:
        log.warning(
            "%d tokens of the tokenizer have no embedding in the model (%d rows): %s; "
            "a prompt with one of them is refused",
            len(beyond),
            embeddings,
            listed([f"{token!r} ({index})" for token, index in beyond.items()]),
        )


def refuse_ids(encoded: Sequence[Encoded], tokenizer: Any, embeddings: int) -> None:
    """Refuses prompts with a token that has no embedding.

    Raises:
        InputError: names the sample, the token and its id.
    """
    for each in encoded:
        highest = max(each.ids, default=0)
        if highest >= embeddings:
            raise InputError(
                f"a prompt has the token {tokenizer.convert_ids_to_tokens(highest)!r} with the id "
                f"{highest}, and the model has {embeddings} embeddings",
                where=f"sample {each.request.id}",
                fix=_OWN_TOKENIZER,
            )


def _as_in_the_file(tokenizer: Any, folder: Path) -> Any:
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
