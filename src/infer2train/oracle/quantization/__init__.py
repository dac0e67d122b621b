"""From a trained network to what an inference device runs: batch-norm folded away, then ranges, scales, integers."""
