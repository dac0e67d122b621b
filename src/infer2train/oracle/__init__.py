"""The oracle: an inference-only copy of the model, low in precision and some steps behind, that scores candidates."""
