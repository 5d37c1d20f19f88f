"""What libraries write goes into run.log and not to the terminal."""

import logging
import warnings
from pathlib import Path

import pytest

from evalkit.core.logs import log_to


def test_libraries_write_into_run_log_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, handlers = logging.getLogger("transformers"), [logging.StreamHandler()]
    monkeypatch.setattr(theirs, "handlers", handlers)
    monkeypatch.setattr(theirs, "propagate", False)
    with log_to(tmp_path / "run.log"):
        logging.getLogger("transformers.modeling_utils").warning("a library\x1b[31m speaks")
        logging.getLogger("somebody.else").warning("another one")
        warnings.warn("a warning of Python's", stacklevel=1)
        logging.getLogger("evalkit.engines").info("ours")
        logging.getLogger("evalkit.engines").warning("ours, also for the terminal")
    assert theirs.handlers is handlers and not theirs.propagate
    written = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert all(text in written for text in ("a library", "another one", "a warning of Python's", ": ours\n"))
    assert written.count("also for the terminal") == 1 and "\x1b" not in written
    assert capfd.readouterr().err == "WARNING: ours, also for the terminal\n"
