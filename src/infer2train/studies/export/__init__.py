"""A finished run as files that other programs run: written, loaded again in a fresh process, judged, described."""
