"""The options of `plan`; part of `evalkit.config`."""

from dataclasses import dataclass


@dataclass
class PlanConfig:
    """What `plan` assumes of one card; docs/scaling.md has the formulas.

    `tflops` in the run's precision and `tflops_float32` (COMET), `bandwidth` in GB per second:
    peaks, null for an A100's, or with `gpus=0` for what this CPU is measured to do. `efficiency`
    and `bandwidth_efficiency` are the shares of them that are reached, `layer_ms` what a layer
    takes in every pass besides. `storage`: GB per second at which one worker reads weights;
    `storage_total`: that all of them together reach (null: not bounded).
    `startup`: seconds until a run reads them. `scoring_ms`: for each sample.
    """

    tflops: float | None = None
    tflops_float32: float | None = None
    bandwidth: float | None = None
    efficiency: float = 0.4
    bandwidth_efficiency: float = 0.6
    layer_ms: float = 0.5
    storage: float = 2.0
    storage_total: float | None = None
    startup: float = 30.0
    scoring_ms: float = 1.2
