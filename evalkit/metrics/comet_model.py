"""The network of Unbabel/wmt22-comet-da, read from its checkpoint with torch and transformers.

An XLM-R encoder whose L+1 hidden states are mixed by the sparsemax of learned scalars, averaged
over the tokens of a sentence, and a Tanh feed-forward over six features of the three sentence
embeddings (docs/protocol/jaster.md, section 3).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evalkit.core.errors import InputError, foreign
from evalkit.core.files import read_yaml
from evalkit.metrics.metric import MetricUnavailableError

ENCODER_PREFIX = "encoder.model."
# Two positions that XLM-R reserves, and COMET's margin of two more.
RESERVED_POSITIONS = 4
# Older versions of transformers saved these buffers in the state dict; they are not weights.
_NOT_LEARNED = ("embeddings.position_ids", "pooler.")
# What this loader implements; a checkpoint with other settings would give wrong scores.
_EXPECTED_HPARAMS = {
    "class_identifier": "regression_metric",
    "encoder_model": "XLM-RoBERTa",
    "layer": "mix",
    "layer_transformation": "sparsemax",
    "layer_norm": False,
    "pool": "avg",
    "activations": "Tanh",
    "final_activation": None,
}


def checkpoint_paths(checkpoint: Path) -> tuple[Path, Path]:
    """(model.ckpt, hparams.yaml) of a checkpoint file or of the folder above `checkpoints/`.

    Raises:
        MetricUnavailableError: one of the two is not there.
    """
    weights = checkpoint / "checkpoints" / "model.ckpt" if checkpoint.is_dir() else checkpoint
    hparams = weights.parent.parent / "hparams.yaml"
    for path in (weights, hparams):
        if not path.is_file():
            raise MetricUnavailableError(
                "a file of the COMET checkpoint is not there",
                where=path,
                fix="give the folder that holds checkpoints/model.ckpt and hparams.yaml",
            )
    return weights, hparams


def check_hparams(path: Path) -> None:
    """Checks that the COMET model has the design this loader implements.

    Raises:
        MetricUnavailableError: a setting this loader does not implement, or an unreadable file.
    """
    try:
        hparams = read_yaml(path)
    except InputError as error:
        raise MetricUnavailableError(error.what, where=error.where) from error
    if not isinstance(hparams, dict):
        raise MetricUnavailableError("hparams.yaml is not a table of settings", where=path)
    for key, expected in _EXPECTED_HPARAMS.items():
        if hparams.get(key, expected) != expected:
            raise MetricUnavailableError(
                f"only COMET models with {key} {expected!r} can be loaded, this one has {hparams[key]!r}",
                where=path,
                fix="use Unbabel/wmt22-comet-da",
            )


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a Lightning checkpoint, memory-mapped; nothing in the pickle is executed.

    Raises:
        MetricUnavailableError: not a Lightning checkpoint, or one that holds more than plain data.
    """
    with foreign(
        "the COMET checkpoint cannot be read", where=path, fix="fetch it again", raises=MetricUnavailableError
    ):
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = content["state_dict"]
        return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def sparsemax(scores: torch.Tensor) -> torch.Tensor:
    """The Euclidean projection of `scores` [k] on the probability simplex (Martins & Astudillo 2016)."""
    ordered, _ = torch.sort(scores, descending=True)
    ranks = torch.arange(1, len(scores) + 1, dtype=scores.dtype, device=scores.device)
    sums = ordered.cumsum(0)
    support = 1 + ranks * ordered > sums
    size = int(support.sum())
    threshold = (sums[size - 1] - 1) / size
    return torch.clamp(scores - threshold, min=0)


class SentenceEncoder:
    """Sentences -> token ids -> sentence embeddings, always returned in float32.

    `folder` holds the tokenizer and config; the weights are in the checkpoint's `state`.

    Raises:
        MetricUnavailableError: tokenizer, config and weights do not fit together.
    """

    def __init__(
        self, state: Mapping[str, torch.Tensor], folder: Path, device: str, dtype: torch.dtype
    ) -> None:
        trusted: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        with foreign(
            "the encoder's tokenizer or config cannot be read", where=folder, raises=MetricUnavailableError
        ):
            from transformers import AutoConfig, AutoTokenizer

            config = AutoConfig.from_pretrained(folder, **trusted)
            self._tokenizer = AutoTokenizer.from_pretrained(folder, **trusted)
        self._model = _encoder_model(state, config).to(device=device, dtype=dtype)
        self._device = device
        scalars = [
            state[f"layerwise_attention.scalar_parameters.{i}"] for i in range(config.num_hidden_layers + 1)
        ]
        self._layer_weights = sparsemax(torch.cat([s.float().reshape(1) for s in scalars])).tolist()
        self._gamma = float(state["layerwise_attention.gamma"])
        self._pad = int(config.pad_token_id)
        self._max_tokens = int(config.max_position_embeddings) - RESERVED_POSITIONS

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids with the specials around them, cut at the model's length (510 for XLM-R)."""
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)
        return [list(ids) for ids in encoded["input_ids"]]

    @torch.inference_mode()
    def __call__(self, batch: Sequence[Sequence[int]]) -> torch.Tensor:
        """Embeds a batch of token id lists: float32 [batch, dim] on the CPU."""
        longest = max(map(len, batch))
        ids = torch.tensor(
            [[*row, *[self._pad] * (longest - len(row))] for row in batch], device=self._device
        )
        lengths = torch.tensor([len(row) for row in batch], device=self._device)
        mask = (torch.arange(longest, device=self._device) < lengths[:, None]).long()
        states = self._model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        mixed = torch.zeros(states[0].shape, dtype=torch.float32, device=self._device)
        for weight, state in zip(self._layer_weights, states, strict=True):
            if weight:
                mixed += weight * state.float()
        # A literal "<pad>" in a text adds nothing to the sum but counts in the mean, as in COMET.
        mixed = (self._gamma * mixed).masked_fill((ids == self._pad).unsqueeze(-1), 0.0)
        return (mixed.sum(dim=1) / lengths[:, None]).cpu()


def _encoder_model(state: Mapping[str, torch.Tensor], config: Any) -> Any:
    from transformers import XLMRobertaModel
    from transformers.utils import logging

    weights = {
        name.removeprefix(ENCODER_PREFIX): tensor
        for name, tensor in state.items()
        if name.startswith(ENCODER_PREFIX)
    }
    logging.disable_progress_bar()
    model, report = XLMRobertaModel.from_pretrained(
        None,
        config=config,
        state_dict={name: weights[name] for name in weights if not name.startswith(_NOT_LEARNED)},
        add_pooling_layer=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            raise MetricUnavailableError(
                f"the encoder's config does not fit the COMET checkpoint: {problem} {min(report[problem])}",
                fix="metrics.comet.encoder must be the folder of the encoder COMET was trained with",
            )
    return model.eval()


class Estimator:
    """Three sentence embeddings -> the score."""

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        prefix = "estimator.ff."
        steps = sorted(
            {int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix)}
        )
        if not steps:
            raise MetricUnavailableError("the COMET checkpoint lacks estimator.ff")
        self.layers = [
            (state[f"{prefix}{step}.weight"].float(), state[f"{prefix}{step}.bias"].float()) for step in steps
        ]

    @torch.inference_mode()
    def __call__(self, src: torch.Tensor, mt: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
        """Scores: three float32 [batch, dim] -> float32 [batch]."""
        x = torch.cat((mt, ref, mt * ref, (mt - ref).abs(), mt * src, (mt - src).abs()), dim=-1)
        for index, (weight, bias) in enumerate(self.layers):
            if index:
                x = torch.tanh(x)
            x = torch.nn.functional.linear(x, weight, bias)
        return x.squeeze(-1)
