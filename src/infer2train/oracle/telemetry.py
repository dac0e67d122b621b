"""OpenVINO reports its use to its maker over the network, unasked, in a fork of this process. Here it does not."""

import sys


def switch_off_openvino_telemetry() -> None:
    """Make `openvino`, where it is not imported yet, run as it does without its optional package `openvino_telemetry`.

    A fork of a process with threads may hang, and is not waited for: it stays as a zombie. Whoever wants the reports
    imports `openvino` before infer2train builds an engine.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: importing it fails
